import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import {
  BytePairTokenizer,
  CharacterTokenizer,
  type GenerateOptions,
  LanguageModel,
  type LanguageModelSizes,
  loadLanguageModel,
  saveLanguageModel,
} from '../../language-model/index.js'
import {
  defaultGenerator,
  MoeError,
  manualSeed,
  memory,
  noGrad,
  saveCheckpoint,
  scope,
  tensor,
} from '../../lib/index.js'
import { listOf, long, relativeError, values } from '../support/numbers.js'
import { own } from '../support/owned.js'

// Text of language models. Weights are those of the initialization, with a head that has preferences.

const letters = [...'abcdefghijklmnopqrstuvwxyz .\n']
const tokenizer = new CharacterTokenizer(letters)
const small = { context: 16, dim: 32, layers: 2, heads: 4, experts: 4 }

/** The emulator of a GPU is slow. */
const emulated = process.env.ST_MOE_TEST_DEVICE !== undefined
const length = emulated ? 20 : 36

function made(sizes: LanguageModelSizes = {}): LanguageModel {
  manualSeed(5)
  const model = own(new LanguageModel({ tokenizer, ...small, ...sizes }))
  scope(() => model.head.weight.copyFrom(model.head.weight.detach().mul(6)))
  return model.eval()
}

/** A model whose tokenizer encodes every text as `tokens`. */
const encoding = (tokens: unknown) =>
  own(
    new LanguageModel({
      ...small,
      tokenizer: { size: 3, encode: () => tokens as Int32Array, decoder: () => tokenizer.decoder() },
    }),
  )

async function textOf(model: LanguageModel, prompt: string, options: GenerateOptions): Promise<string> {
  let text = ''
  for await (const piece of model.generate(prompt, options)) text += piece
  return text
}

async function textsOf(model: LanguageModel, prompts: readonly string[], options: GenerateOptions): Promise<string[]> {
  const texts = prompts.map(() => '')
  for await (const pieces of model.generate(prompts, options))
    for (const [i, piece] of pieces.entries()) texts[i] += piece
  return texts
}

test('more positions than memory holds are OUT_OF_MEMORY', () => {
  const before = memory().tensors
  expect(() => new LanguageModel({ tokenizer, ...small, context: 1e9 })).toThrowError(
    expect.objectContaining({ code: 'OUT_OF_MEMORY' }),
  )
  expect(memory().tensors).toBe(before)
})

describe('a text', () => {
  test.each<[string, LanguageModelSizes]>([
    ['topk', {}],
    ['switch', { router: 'switch' }],
    ['switchMax', { router: 'switchMax' }],
    ['ntlb', { router: 'ntlb' }],
    ['all experts, dropless', { secondPolicy: 'all', dropless: true }],
    ['a threshold', { secondPolicy: 'threshold', sharedExperts: 1, activation: 'relu' }],
    ['an odd context', { context: 7, scoreFunction: 'sigmoid' }],
  ])('is the same with and without cache, alone and among others: %s', async (name, sizes) => {
    using model = made(sizes)
    const prompts = ['a', 'once upon a time there was a whale.\n', 'the sea', 'zz', 'the end'].slice(
      0,
      emulated ? 2 : long ? 5 : 3,
    )
    for (const options of [
      { seed: 4, topP: 0.7, temperature: 1.5 },
      { temperature: 0 },
      { seed: 3, topK: 3 },
      { seed: 7, temperature: 0.5 },
      { seed: 1 },
    ].slice(0, long ? 5 : name === 'topk' && !emulated ? 3 : 1)) {
      const all = await textsOf(model, prompts, { ...options, maxTokens: length })
      expect(await textsOf(model, prompts, { ...options, maxTokens: length, cache: false })).toEqual(all)
      for (const [i, prompt] of prompts.entries())
        expect(await textOf(model, prompt, { ...options, seed: (options.seed ?? 0) + i, maxTokens: length })).toBe(
          all[i],
        )
      for (const text of all) expect([...text]).toHaveLength(length)
    }
  })

  test('of other seeds is another', async () => {
    using model = made()
    const texts = await Promise.all([0, 1, 2, 3].map((seed) => textOf(model, 'a', { seed, maxTokens: 30 })))
    expect(new Set(texts).size).toBe(4)
  })

  test.skipIf(emulated)('longer than a block of random numbers does not repeat', async () => {
    using model = made({ layers: 1, dim: 8, heads: 1, experts: 1, topN: 1 })
    const text = await textOf(model, 'a', { maxTokens: 1200 })
    expect(text).toHaveLength(1200)
    expect(text.slice(1024, 1124)).not.toBe(text.slice(0, 100))
  })

  test('follows from the logits of the window that begins again with its last half when it is full', async () => {
    using model = made()
    const text = `abc${await textOf(model, 'abc', { temperature: 0, maxTokens: 40 })}`
    let window = [...tokenizer.encode('abc')]
    for (const token of tokenizer.encode(text.slice(3))) {
      const logits = noGrad(() =>
        scope(() => {
          const all = model.forward(tensor(Int32Array.from(window), [1, window.length])).logits
          return listOf(all.slice(1, window.length - 1))
        }),
      )
      expect(token).toBe(logits.indexOf(Math.max(...logits)))
      if (window.length === 16) window = window.slice(8)
      window.push(token)
    }
  })

  test('may be several at once, in any order', async () => {
    using model = made()
    const wanted = [
      await textOf(model, 'abc', { maxTokens: 30 }),
      await textOf(model, 'xyz', { maxTokens: 30, seed: 9 }),
    ]
    const two = [model.generate('abc', { maxTokens: 30 }), model.generate('xyz', { maxTokens: 30, seed: 9 })]
    const got = ['', '']
    for (let i = 0; i < 30; i++) for (const [j, pieces] of two.entries()) got[j] += (await pieces.next()).value
    for (const pieces of two) expect((await pieces.next()).done).toBe(true)
    expect(got).toEqual(wanted)
  })
})

test('logits with a cache are those without', () =>
  noGrad(() =>
    scope(() => {
      using model = made()
      const tokens = tensor(
        Int32Array.from({ length: 24 }, (_, i) => (i * 5) % 29),
        [2, 12],
      )
      const wanted = values(model.forward(tokens).logits.slice(1, 11))
      const caches = model.layers.map(({ attention }) => attention.cache(2, 12))
      const at = (position: number) => ({ position: tensor(Int32Array.of(position, position)) })
      model.predict(tokens.slice(1, 0, 8), caches, at(0))
      for (const n of [8, 9, 10]) model.predict(tokens.slice(1, n, n + 1), caches, at(n))
      const got = model.predict(tokens.slice(1, 11, 12), caches, at(11))
      expect(got.shape).toEqual([2, 1, 29])
      expect(relativeError(values(got), wanted)).toBeLessThan(1e-5)
    }),
  ))

describe('generate', () => {
  test('leaves mode, random numbers and memory as they are, if it is left early, too', async () => {
    using model = made()
    model.train()
    const before = [defaultGenerator.step, memory().tensors]
    for await (const _ of model.generate(['a', 'b'], { maxTokens: 100 })) {
      expect(model.training).toBe(true)
      break
    }
    await textOf(model, 'a', { maxTokens: 20 })
    expect([defaultGenerator.step, memory().tensors]).toEqual(before)
    expect([...model.modules()].every(({ training }) => training)).toBe(true)
  })

  test('leaves a layer in the mode of its own', async () => {
    using model = made()
    const modes = () => Array.from(model.modules(), ({ training }) => training)
    for (const training of [true, false]) {
      model.train(training)
      model.layers[0].train(!training)
      const before = modes()
      expect(new Set(before).size).toBe(2)
      await textOf(model, 'a', { maxTokens: 2 })
      expect(modes()).toEqual(before)
    }
  })

  test('ends with the reason of a signal', async () => {
    using model = made()
    const { tensors } = memory()
    const controller = new AbortController()
    let count = 0
    await expect(
      (async () => {
        for await (const _ of model.generate('a', { maxTokens: 1000, signal: controller.signal }))
          if (++count === 5) controller.abort(new Error('enough'))
      })(),
    ).rejects.toThrow('enough')
    expect(count).toBe(5)
    expect(memory().tensors).toBe(tensors)
    await expect(model.generate('a', { signal: AbortSignal.abort() }).next()).rejects.toThrow(/aborted/)
  })

  test('ends before a stop text, which no piece begins', async () => {
    using model = made()
    const options = { maxTokens: 100, seed: 2 }
    const whole = await textOf(model, 'a', options)
    const stop = whole.slice(60, 64)
    const wanted = whole.slice(0, whole.indexOf(stop))
    expect(await textOf(model, 'a', { ...options, stop })).toBe(wanted)
    expect(await textOf(model, 'a', { ...options, stop: ['no such', stop] })).toBe(wanted)
    // of two that end with the same piece the first in the text counts, not the first of the list
    expect(await textOf(model, 'a', { ...options, stop: [stop.slice(1), stop] })).toBe(wanted)
    expect(await textOf(model, 'a', { ...options, stop: 'no such text' })).toBe(whole)
    // One text of a batch ends, and the others go on.
    const [first, second] = await textsOf(model, ['a', 'b'], { ...options, stop })
    expect(first).toBe(wanted)
    expect(second.length).toBeGreaterThan(0)
    expect(second).not.toContain(stop)
  })

  test.each<[string, () => unknown, RegExp]>([
    ['an empty prompt', () => made().generate(''), /a prompt must be a text that is not empty, got ""/],
    ['a number', () => made().generate(3 as never), /prompts must be an array, got 3/],
    ['numbers', () => made().generate([3] as never), /a prompt must be a text that is not empty, got 3/],
    ['other characters', () => made().generate('aß'), /text contains characters outside the model's vocabulary: "ß"/],
    ['no tokens', () => made().generate('a', { maxTokens: 0 }), /maxTokens must be an integer of at least 1, got 0/],
    ['a temperature', () => made().generate('a', { temperature: -1 }), /temperature must be a finite number from 0/],
    ['topP', () => made().generate('a', { topP: 1.5 }), /topP must be a finite number from 0 to 1, got 1.5/],
    ['a stop', () => made().generate('a', { stop: '' }), /stop must hold texts, got ""/],
    ['a signal', () => made().generate('a', { signal: {} as never }), /signal must be an AbortSignal/],
    [
      'a tokenizer without tokens',
      () => encoding(new Int32Array(0)).generate('a'),
      /tokenizer.encode must return an Int32Array of at least one token/,
    ],
    ['a tokenizer of nothing', () => encoding(null).generate('a'), /tokenizer.encode must return .*, got null/],
    ['a name', () => made().generate('a', { topk: 1 } as never), /unknown option "topk"; did you mean 'topK'/],
  ])('refuses %s at once', (_what, call, message) => {
    expect(call).toThrow(message)
    expect(call).toThrow(MoeError)
  })
})

describe('a language model', () => {
  test.each<[object, RegExp]>([
    [{ context: 3 }, /\[LanguageModel\] context must be an integer of at least 4, got 3/],
    [{ dim: 30 }, /dim must be a multiple of heads, got 30 and 4/],
    [{ topN: 5 }, /topN must be at most experts, got 5 and 4/],
    [{ router: 'expertChoice' }, /router expertChoice is not for a language model/],
    [{ router: 'switch', topN: 3 }, /topN is for router "topk", got router "switch"/],
    [{ tokenizer: {} }, /tokenizer must be a Tokenizer, such as CharacterTokenizer.of\(text\), got an object/],
    [{ layer: 3 }, /unknown option "layer"; did you mean 'layers'/],
  ])('is not made of %s', (options, message) => {
    expect(() => new LanguageModel({ tokenizer, ...small, ...options } as never)).toThrow(message)
  })

  test('does not take other shapes', () =>
    scope(() => {
      using model = made()
      expect(() => model.forward(tensor(new Int32Array(17), [1, 17]))).toThrow(
        /\[LanguageModel.forward\] tokens must be \[B, N\] with N from 1 to 16, got \[1, 17\]/,
      )
      expect(() => model.forward(tensor(new Int32Array(17)))).toThrow(/got \[17\]/)
    }))
})

describe('a folder', () => {
  let folder: string
  beforeAll(() => {
    folder = mkdtempSync(join(tmpdir(), 'st-moe-model-'))
  })
  afterAll(() => rmSync(folder, { recursive: true }))

  test.each<[string, LanguageModelSizes]>([
    ['usual', {}],
    ['other', { router: 'switch', expertHiddenDim: 12, sharedExperts: 2, dropless: true, activation: 'silu' }],
  ])('rebuilds a model (%s)', async (name, sizes) => {
    using model = made(sizes)
    const path = join(folder, name, 'below')
    await saveLanguageModel(path, model)
    using loaded = await loadLanguageModel(path)
    expect(loaded.sizes).toEqual(model.sizes)
    expect(loaded.training).toBe(false)
    const options = { maxTokens: 40, seed: 2 }
    expect(await textOf(loaded, 'whale', options)).toBe(await textOf(model, 'whale', options))
    await expect(saveLanguageModel(path, model)).rejects.toThrow(/contains a model: overwrite: true replaces it/)
    await saveLanguageModel(path, model, { overwrite: true })
  })

  test('keeps its model if the one that would replace it cannot be saved', async () => {
    const path = join(folder, 'kept')
    using model = made()
    await saveLanguageModel(path, model)
    const files = () => readdirSync(path).map((name) => readFileSync(join(path, name), 'latin1'))
    const before = files()
    using other = new LanguageModel({ ...small, tokenizer: CharacterTokenizer.of('other') })
    other.head.weight.dispose()
    await expect(saveLanguageModel(path, other, { overwrite: true })).rejects.toMatchObject({ code: 'DISPOSED' })
    expect(files()).toEqual(before)
  })

  test('with the files of two saves is an error; files without an id are of an earlier version', async () => {
    const [one, two] = ['one', 'two'].map((name) => join(folder, name))
    using model = made()
    using other = new LanguageModel({ ...small, tokenizer: CharacterTokenizer.of(letters.join('').toUpperCase()) })
    await saveLanguageModel(one, model)
    await saveLanguageModel(two, other)
    const { tensors } = memory()
    const [file, text] = [join(two, 'run.json'), readFileSync(join(one, 'run.json'), 'utf8')]
    writeFileSync(file, text)
    const wrong = { code: 'STATE_DICT', message: expect.stringContaining('are of different saves') }
    await expect(loadLanguageModel(two)).rejects.toMatchObject(wrong)
    writeFileSync(file, text.replace(/"id":"\w+",/, ''))
    await expect(loadLanguageModel(two)).rejects.toMatchObject(wrong)
    expect(memory().tensors).toBe(tensors)
    await saveCheckpoint(join(two, 'checkpoint.safetensors'), { model, step: 0 })
    using loaded = await loadLanguageModel(two)
    expect(loaded.sizes).toEqual(model.sizes)
  })

  test('without a run, or with a damaged one, is an error that frees everything', async () => {
    const { tensors } = memory()
    await expect(loadLanguageModel(folder)).rejects.toThrow(/\[loadLanguageModel\] there is no run in/)
    const file = join(folder, 'usual/below/run.json')
    const text = readFileSync(file, 'utf8')
    for (const [from, to, message] of [
      ['"dim":32', '"dim":1e9', /holds \d+ bytes of tensors, but the model of .*dim 1000000000.* has at least \d+$/],
      ['"dim":32', '"dim":28', /holds tokens\.weight \[29, 32\], but the model of .* has tokens\.weight \[29, 28\]$/],
      ['"layers":2', '"layers":-2', /options: layers must be an integer from 1 to 1024, got -2/],
      ['"abc', '"aabc', /text: vocabulary must hold unique characters/],
    ] as const) {
      expect(text).toContain(from)
      writeFileSync(file, text.replace(from, to))
      await expect(loadLanguageModel(join(folder, 'usual/below'))).rejects.toThrow(message)
    }
    expect(memory().tensors).toBe(tensors)
  })

  test('rebuilds a model of byte pairs, whose pieces are whole characters', async () => {
    manualSeed(2)
    const pairs = BytePairTokenizer.train('the whale and the sea, the sea and the whale 😀😀', 270)
    using model = new LanguageModel({ ...small, tokenizer: pairs }).eval()
    const path = join(folder, 'pairs')
    await saveLanguageModel(path, model)
    using loaded = await loadLanguageModel(path)
    expect(loaded.tokenizer.size).toBe(model.tokenizer.size)
    const options = { maxTokens: 30, seed: 4 }
    const text = await textOf(model, 'the 漢', options)
    expect(await textOf(loaded, 'the 漢', options)).toBe(text)
    expect(await textOf(model, 'the 漢', { ...options, cache: false })).toBe(text)
    const file = join(path, 'run.json')
    writeFileSync(file, readFileSync(file, 'utf8').replace('"merges":[', '"merges":[[999,0],'))
    await expect(loadLanguageModel(path)).rejects.toThrow(/text: merges\[0\] must be an integer from 0 to 255, got 999/)
  })

  test('is not made of a tokenizer that it cannot hold', async () => {
    const { size } = tokenizer
    const foreign = { size, encode: (text: string) => tokenizer.encode(text), decoder: () => tokenizer.decoder() }
    using model = new LanguageModel({ ...small, tokenizer: foreign })
    expect(await textOf(model, 'abc', { maxTokens: 5 })).toHaveLength(5)
    await expect(saveLanguageModel(join(folder, 'own'), model)).rejects.toThrow(/a tokenizer of this package/)
  })
})
