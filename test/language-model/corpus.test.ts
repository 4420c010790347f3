import { createHash } from 'node:crypto'
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { afterAll, describe, expect, test } from 'vitest'
import {
  Batches,
  BytePairTokenizer,
  CharacterTokenizer,
  type Corpus,
  type CorpusProgress,
  loadCorpus,
  type Tokenizer,
} from '../../language-model/index.js'
import { WordCounts } from '../../language-model/pair-merges.js'
import { sentences } from '../support/sentences.js'

// What loadCorpus makes of a text, which it reads in pieces, vs. the text as one string.

const folder = mkdtempSync(join(tmpdir(), 'st-moe-corpus-'))
afterAll(() => rmSync(folder, { recursive: true }))

/** Bytes of a piece. */
const piece = 2 ** 18
const at = (name: string): string => join(folder, name)
const ofBytes = (bytes: string | Uint8Array, vocabSize?: number): Promise<Corpus> =>
  loadCorpus('text', { context: 16, bytes: Buffer.from(bytes), vocabSize })
/** For a comparison that is fast. */
const bytesOf = (tokens: ArrayLike<number>): Buffer => Buffer.from(Int32Array.from(tokens).buffer)
const sha = (text: string): string => createHash('sha256').update(text).digest('hex')

function expectCharacters({ characters, digest }: Corpus, plain: string): void {
  const tokenizer = CharacterTokenizer.of(plain)
  const tokens = tokenizer.encode(plain)
  expect(characters.tokenizer.vocabulary).toEqual(tokenizer.vocabulary)
  const cut = Math.floor(tokens.length * 0.9)
  expect(bytesOf(characters.training).equals(bytesOf(tokens.subarray(0, cut)))).toBe(true)
  expect(bytesOf(characters.heldOut).equals(bytesOf(tokens.subarray(cut)))).toBe(true)
  expect(digest).toBe(sha(plain))
}

describe('a border of pieces', () => {
  test.each(['é', '漢', '😀', '\r\n', '\r', '\r\r', '\r\r\n', '\ufeff', ' ', '\ue000😀'])(
    'in %j changes nothing',
    async (sign) => {
      for (let before = 0; before <= Buffer.byteLength(sign) + 1; before++) {
        const text = `${'a'.repeat(piece - before)}${sign}b${sign}${'a'.repeat(piece)}`
        expectCharacters(await ofBytes(text), text.replaceAll('\r\n', '\n'))
      }
    },
  )

  test('is where several arrays end, or not', async () => {
    const text = 'Thé 漢字 😀\r\n'.repeat(100)
    const bytes = Buffer.from(text)
    const parts = [0, 1, 5, 8, 700, bytes.length].map((end, i, ends) => bytes.subarray(ends[i - 1] ?? 0, end))
    expectCharacters(await loadCorpus('-', { context: 16, bytes: parts }), text.replaceAll('\r\n', '\n'))
  })

  const random = (letters: string, length: number): string => {
    const all = [...letters]
    let state = 7
    const next = (): string => {
      state = (state * 48271) % 2147483647
      return all[state % all.length]
    }
    return Array.from({ length }, next).join('')
  }
  test.each<[string, string]>([
    ['sentences', sentences(15_000)],
    ['letters without a space', random('ACGT', piece * 2)],
    ['spaces', random(' \t\n\r', piece * 2)],
    ['letters, digits and signs', random('ab12,;é漢😀', piece)],
    ['a space, and then none', `${random('ab', 99)} ${random('ab', piece * 2)}`],
  ])('of byte pairs does not cut %s', async (_, text) => {
    const { tokenizer, training, heldOut, characters } = await ofBytes(text, 300)
    const plain = [...text.replaceAll('\r\n', '\n')]
    const cut = characters.training.length
    const parts = [plain.slice(0, cut), plain.slice(cut)]
    const expected = BytePairTokenizer.train(parts[0].join(''), 300)
    expect((tokenizer as BytePairTokenizer).merges).toEqual(expected.merges)
    for (const [i, tokens] of [training, heldOut].entries())
      expect(bytesOf(tokens).equals(bytesOf(expected.encode(parts[i].join(''))))).toBe(true)
  })
})

test('a byte order mark is dropped at the beginning only', async () => {
  const text = `a\ufeffb ${'c'.repeat(400)}`
  expectCharacters(await ofBytes(`\ufeff${text}`), text)
})

test.each<[string, Uint8Array, RegExp]>([
  ['a character that the end cuts', Buffer.from('aé').subarray(0, 2), /^\[loadCorpus\] text is not valid UTF-8$/],
  ['a byte amid a later piece', Buffer.alloc(3 * piece, 'a').fill(0x80, piece, piece + 1), /is not valid UTF-8/],
  ['zero in a later piece', Buffer.alloc(3 * piece, 'a').fill(0, 2 * piece, 2 * piece + 1), /contains a zero byte/],
])('%s is refused', async (_, bytes, message) => {
  await expect(ofBytes(bytes)).rejects.toThrow(message)
})

test.each([
  [256, Uint8Array],
  [257, Uint16Array],
  [65_537, Int32Array],
])('%i different characters are in a %o', async (count, type) => {
  const characters = Array.from({ length: count }, (_, i) => String.fromCodePoint((i < 55_000 ? 32 : 10_000) + i))
  const { training, heldOut, tokenizer } = await ofBytes(characters.join('').repeat(2))
  expect([training, heldOut].map((tokens) => tokens.constructor)).toEqual([type, type])
  expect(tokenizer.size).toBe(count)
  expect(heldOut.at(-1)).toBe(tokenizer.encode(characters.at(-1)!)[0])
})

test('batches of small integers are those of large ones', async () => {
  const { training } = await ofBytes(sentences(50))
  const options = { seed: 3, context: 16, batch: 4 }
  const [small, large] = [training, Int32Array.from(training)].map((tokens) => new Batches(tokens, options))
  for (const step of [0, 1, 30]) expect(small.at(step)).toEqual(large.at(step))
})

describe('a folder', () => {
  const write = (files: Record<string, string>, name: string): string => {
    for (const [path, text] of Object.entries(files)) {
      mkdirSync(dirname(at(`${name}/${path}`)), { recursive: true })
      writeFileSync(at(`${name}/${path}`), text)
    }
    return at(name)
  }
  const load = (path: string) => loadCorpus(path, { context: 4 })
  const shown = ({ tokenizer, training, heldOut }: Corpus): string[] => {
    const { vocabulary } = tokenizer as CharacterTokenizer
    return [training, heldOut].map((part) => Array.from(part, (token) => vocabulary[token]).join(''))
  }
  const [a, b, c] = ['abcdefghi-', '0123456789+++', 'klmnopqrst'].map(
    (text, i) => text.slice(0, -1).repeat(2 + i) + text,
  )

  test('is its files in the order of their paths, each with a last part that is held out', async () => {
    const path = write({ 'b.txt': b, 'a/z': a, c, '.hidden': 'xyz', '.git/x': 'xyz', empty: '' }, 'order')
    const corpus = await load(path)
    const cut = [a, b, c].map((text) => Math.floor(text.length * 0.9))
    expect(shown(corpus)).toEqual([
      [a, b, c].map((text, i) => text.slice(0, cut[i])).join(''),
      [a, b, c].map((text, i) => text.slice(cut[i])).join(''),
    ])
    const again = write({ 'a.txt': a, 'b/b': b, 'c.txt': c, d: '' }, 'renamed')
    expect((await load(again)).digest).toBe(corpus.digest) // the same texts in the same order
    const moved = write({ a, b: b.slice(0, -1), c: b.slice(-1) + c, d: '' }, 'moved')
    expect((await load(moved)).digest).not.toBe(corpus.digest)
  })

  test('of one file is that file', async () => {
    const text = sentences(20)
    const corpus = await load(write({ book: text }, 'one'))
    expectCharacters(corpus, text)
  })

  test('has byte pairs of the training text of all files', async () => {
    const parts = ['tell '.repeat(300), 'tall '.repeat(300), `no\nend${'zq'.repeat(900)}`]
    const path = write(Object.fromEntries(parts.map((text, i) => [`${i}`, text])), 'pairs')
    const { tokenizer, training, heldOut } = await loadCorpus(path, { context: 4, vocabSize: 280 })
    const cut = parts.map((text) => Math.floor(text.length * 0.9))
    const encode = (texts: string[]) => texts.flatMap((text) => [...tokenizer.encode(text)])
    expect([...training]).toEqual(encode(parts.map((text, i) => text.slice(0, cut[i]))))
    expect([...heldOut]).toEqual(encode(parts.map((text, i) => text.slice(cut[i]))))
    expect(tokenizer.encode(' tell')).toHaveLength(1)
    expect(tokenizer.encode('qzqzqz').length).toBeLessThan(4)
  })

  test('without a text is refused; so is a file that is none, by its name', async () => {
    await expect(load(write({ '.hidden': 'text' }, 'none'))).rejects.toThrow(/none is a folder without files/)
    await expect(load(write({ 'a.txt': '', b: '' }, 'empty'))).rejects.toThrow(/empty is empty$/)
    const binary = write({ 'a.txt': a, 'b.png': 'a\0b' }, 'binary')
    await expect(load(binary)).rejects.toThrow(/binary.b\.png is not a text file: it contains a zero byte/)
    await expect(load(write({ a: 'abc' }, 'short'))).rejects.toThrow(/short has 3 characters; a context of 4 needs/)
  })
})

describe('while it is read', () => {
  const stages = async (path: string, vocabSize?: number, each: (progress: CorpusProgress) => void = () => {}) => {
    const seen = new Map<string, CorpusProgress[]>()
    const progress = (step: CorpusProgress) => {
      seen.set(step.stage, [...(seen.get(step.stage) ?? []), step])
      each(step)
    }
    await loadCorpus(path, { context: 4, vocabSize, progress })
    return seen
  }

  test('it tells how far it is', async () => {
    const text = sentences(12_000)
    writeFileSync(at('long'), text)
    const seen = await stages(at('long'), 262)
    expect([...seen.keys()]).toEqual([
      'reading',
      'encoding characters',
      'counting words',
      'merging byte pairs',
      'encoding byte pairs',
    ])
    for (const [stage, steps] of seen) {
      const total = stage === 'merging byte pairs' ? 6 : text.length
      expect(steps.at(-1)).toEqual({ stage, done: total, total })
      expect(steps.length).toBeGreaterThan(1)
      for (const [i, { done }] of steps.slice(1).entries()) expect(done).toBeGreaterThan(steps[i].done)
    }
  })

  test('other work goes on', async () => {
    let turns = 0
    const timer = setInterval(() => turns++, 0)
    await ofBytes(sentences(50_000), 300)
    clearInterval(timer)
    expect(turns).toBeGreaterThan(3)
  })

  test.each([
    ['changed', sentences(100).replaceAll('whale', 'Whale')],
    ['got shorter', sentences(90)],
    ['was emptied', ''],
  ])('a file that %s is an error', async (what, later) => {
    const path = at(what)
    writeFileSync(path, sentences(100))
    const change = ({ stage }: CorpusProgress): void => {
      if (stage === 'reading') writeFileSync(path, later)
    }
    await expect(stages(path, undefined, change)).rejects.toThrow(/(changed|ended) while it was read$/)
  })
})

test('a tokenizer of a program encodes the text between words; its tokens may be more than the characters', async () => {
  const texts: string[] = []
  const tokenizer: Tokenizer = {
    size: 1000,
    encode(text) {
      texts.push(text)
      return Int32Array.from({ length: 2 * text.length }, (_, i) => text.charCodeAt(i >> 1) + (i & 1) * 500)
    },
    decoder: () => new CharacterTokenizer(['a']).decoder(),
  }
  const text = sentences(12_000)
  const { training, heldOut } = await loadCorpus('-', { context: 16, bytes: Buffer.from(text), tokenizer })
  expect(texts.join('')).toBe(text)
  const cut = Math.floor(text.length * 0.9)
  expect(texts.slice(1).filter((part) => /^\w/.test(part) && !text.slice(cut).startsWith(part.slice(0, 99)))).toEqual(
    [],
  )
  expect([training.length, heldOut.length]).toEqual([2 * cut, 2 * (text.length - cut)])
  expect([...training.subarray(-2)]).toEqual([text.charCodeAt(cut - 1), text.charCodeAt(cut - 1) + 500])
  const both = loadCorpus('-', { context: 16, bytes: Buffer.from(text), tokenizer, vocabSize: 300 })
  await expect(both).rejects.toThrow('[loadCorpus] vocabSize trains a tokenizer: give it or a tokenizer, not both')
  const wrong = loadCorpus('-', { context: 16, bytes: Buffer.from(text), vocabSize: 5 })
  await expect(wrong).rejects.toThrow('[loadCorpus] vocabSize must be an integer from 256 to 65792, got 5')
})

test('too many different words: the rarest are forgotten', () => {
  const count = (limits?: { words: number; bytes: number }): string => {
    const counts = new WordCounts(limits)
    for (let i = 0; i < 1000; i++) counts.add(` tell tall x${i}y ${'z'.repeat(i % 40)}`)
    return [...counts.take().merges(4)].join(' ')
  }
  const all = count()
  expect(all).not.toBe('')
  expect(count({ words: 200, bytes: 1e9 })).toContain(all.split(' ')[0])
  const few = new WordCounts({ words: 1000, bytes: 40 })
  for (let i = 0; i < 50; i++) few.add(`often ${i}`)
  expect([...few.take().merges(99)].length).toBeLessThan(8) // of "often", and few words after it
})
