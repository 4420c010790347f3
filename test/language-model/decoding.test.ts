import { describe, expect, test } from 'vitest'
import { CharacterTokenizer, type GenerateOptions, LanguageModel } from '../../language-model/index.js'
import { AdamW, defaultGenerator, Generator, manualSeed, memory, randn, scope } from '../../lib/index.js'
import { own } from '../support/owned.js'

// The steps of one token that are captured: the same text as without, and as few calls of JavaScript.

const tokenizer = new CharacterTokenizer([...'abcdefghijklmnopqrstuvwxyz .\n'])
const sizes = { tokenizer, context: 16, dim: 16, layers: 1, heads: 2, experts: 4 }

function made(): LanguageModel {
  manualSeed(5)
  const model = own(new LanguageModel(sizes))
  scope(() => model.head.weight.copyFrom(model.head.weight.detach().mul(6)))
  return model
}

/** A model of which every token is computed by JavaScript, as of one with hooks. */
function plain(): LanguageModel {
  const model = made()
  model.norm.registerForwardHook(() => {})
  return model
}

/** Counts the calls of `predict`. */
function counted(model: LanguageModel): { calls: number } {
  const count = { calls: 0 }
  const { predict } = model
  model.predict = (...args) => {
    count.calls++
    return predict.apply(model, args)
  }
  return count
}

const greedy = { temperature: 0, maxTokens: 40 }

async function textOf(
  model: LanguageModel,
  options: GenerateOptions = greedy,
  between?: (token: number) => void,
): Promise<string> {
  let text = ''
  for await (const piece of model.generate('abc', options)) {
    text += piece
    between?.(text.length)
  }
  return text
}

test('a token is a replay: the prompt, two tokens, the capture and full windows are calls of predict', async () => {
  const model = made()
  const count = counted(model)
  const text = await textOf(model)
  expect(count.calls).toBe(1 + 2 + 1 + 4) // a window of 16 begins again with its last 8 at tokens 14, 22, 30 and 38
  expect(text).toBe(await textOf(plain()))
})

test('without a cache there are no replays', async () => {
  const model = made()
  const count = counted(model)
  await textOf(model, { ...greedy, cache: false })
  expect(count.calls).toBe(40)
})

describe('between two tokens', () => {
  /** Changes the model after 10 tokens: the text changes, as it does where every token is computed. */
  async function changed(change: (model: LanguageModel) => void): Promise<void> {
    const texts: string[] = []
    for (const model of [made(), plain()])
      texts.push(await textOf(model, greedy, (length) => void (length === 10 && change(model))))
    expect(texts[0]).toBe(texts[1])
    expect(texts[0]).not.toBe(await textOf(made()))
  }

  test('weights may be loaded', () =>
    changed((model) =>
      scope(() => {
        const state = model.stateDict()
        model.loadStateDict({ ...state, 'head.weight': state['head.weight'].mul(-1) })
      }),
    ))

  test('an optimizer may step', () =>
    changed((model) => {
      using optimizer = new AdamW([model.head.weight], { lr: 1 })
      scope(() => {
        model.head.weight.grad = randn(model.head.weight.shape, { generator: new Generator(1) })
      })
      optimizer.step()
      model.zeroGrad()
    }))

  test('weights may be stored in another format', async () => {
    const negated = (model: LanguageModel) => scope(() => model.head.weight.copyFrom(model.head.weight.mul(-1)))
    await changed((model) => {
      negated(model)
      model.freeze('bf16')
    })
    const model = made()
    const count = counted(model)
    await textOf(model, greedy, (length) => void (length === 10 && model.freeze('bf16')))
    expect(count.calls).toBe(8 + 1 + 1) // the next token, which is computed, and a capture
    expect(await textOf(model)).toBe(await textOf(plain().freeze('bf16')))
  })

  test('the mode may change, and parameters may be frozen', async () => {
    const model = made()
    const text = await textOf(model, greedy, (length) => {
      model.train(length % 2 === 0)
      for (const parameter of model.parameters()) parameter.requiresGrad = length % 3 === 0
    })
    expect(text).toBe(await textOf(plain()))
  })

  test('a model that is disposed is an error, and nothing is left', async () => {
    const { tensors } = memory()
    const model = made()
    const text = textOf(model, greedy, (length) => void (length === 10 && model.dispose()))
    await expect(text).rejects.toThrow(/disposed/)
    expect(memory().tensors).toBe(tensors)
  })

  test.runIf(process.env.ST_MOE_TEST_DEVICE)('a model that moves is an error', async () => {
    const model = made()
    const text = textOf(model, greedy, (length) => void (length === 10 && model.to('cpu')))
    await expect(text).rejects.toThrow(/must be on/)
  })
})

test('hooks see every token', async () => {
  const model = made()
  let seen = 0
  model.layers[0].block.registerForwardHook(() => void seen++)
  await textOf(model)
  expect(seen).toBe(40)
})

test('a forward that no step can hold is called for every token', async () => {
  const model = made()
  const { predict } = model
  let read = 0
  model.predict = (...args) => {
    const logits = predict.apply(model, args)
    read += logits.sum().item()
    return logits
  }
  expect(await textOf(model)).toBe(await textOf(plain()))
  expect(read).not.toBe(0)
})

test('texts that end leave steps of fewer; only some are kept, and all are freed', async () => {
  const prompts = [...'abcdefghijkl']
  const texts = async (model: LanguageModel, steps: number) => {
    const before = memory().tensors
    const most = before + 2 + steps * 4 // the caches, and of a step its inputs and logits
    const all = prompts.map(() => '')
    let tensors = 0
    for await (const pieces of model.generate(prompts, { maxTokens: 90, seed: 3, stop: ['ab', 'q', 'z'] })) {
      for (const [i, piece] of pieces.entries()) all[i] += piece
      tensors = Math.max(tensors, memory().tensors)
    }
    expect(tensors).toBeLessThanOrEqual(most)
    expect(memory().tensors).toBe(before)
    return all
  }
  expect(await texts(made(), 4)).toEqual(await texts(plain(), 0))
})

test('random numbers of a step are the same for each token, and those of others do not advance', async () => {
  const noisy = (model: LanguageModel): LanguageModel => {
    const { predict } = model
    model.predict = (...args) => {
      const logits = predict.apply(model, args)
      return logits.add(randn(logits.shape))
    }
    return model
  }
  const model = noisy(made())
  const { step } = defaultGenerator
  const text = await textOf(model)
  expect(defaultGenerator.step).toBe(step)
  expect(text).toBe(await textOf(noisy(plain())))
  expect(text).not.toBe(await textOf(plain()))
})
