import { describe, expect, test } from 'vitest'
import { BytePairTokenizer, CharacterTokenizer, type Tokenizer } from '../../language-model/index.js'
import { textOf } from '../../language-model/tokenizer.js'
import { sentences } from '../support/sentences.js'

const strange = 'naïve 漢字 😀\t\n\n  a1b22 ...!? e\u0301 \u{1F468}\u200D\u{1F469} \ufeff'

describe('byte pairs', () => {
  test('have the text of their tokens, whatever it is, and fewer of them than bytes', () => {
    const text = sentences(100)
    const tokenizer = BytePairTokenizer.train(text, 320)
    for (const part of [text, strange, '', ' ', '\n', 'x'.repeat(1000)])
      expect(textOf(tokenizer, tokenizer.encode(part))).toBe(part)
    expect(textOf(tokenizer, tokenizer.encode('a\r\nb'))).toBe('a\nb')
    expect(tokenizer.encode(text).length).toBeLessThan(text.length / 3)
    expect(Math.max(...tokenizer.encode(text))).toBeLessThan(tokenizer.size)
  })

  test('are the most frequent ones, on ties the lowest, as counting again after each says', () => {
    const text = `${sentences(20)} aaaa abab baba 漢字漢字 zz zz`
    const trained = BytePairTokenizer.train(text, 300).merges
    const words = [...text.matchAll(/ ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+/gu)].map(([word]) => [
      ...Buffer.from(word),
    ])
    for (const [i, merge] of trained.entries()) {
      const counts = new Map<string, number>()
      for (const word of words)
        for (let j = 1; j < word.length; j++) {
          const key = `${word[j - 1]} ${word[j]}`
          counts.set(key, (counts.get(key) ?? 0) + 1)
        }
      const most = Math.max(...counts.values())
      const tied = [...counts].filter(([, count]) => count === most).map(([key]) => key.split(' ').map(Number))
      expect(merge).toEqual(tied.sort((a, b) => a[0] - b[0] || a[1] - b[1])[0])
      for (const word of words)
        for (let j = 0; j + 1 < word.length; j++)
          if (word[j] === merge[0] && word[j + 1] === merge[1]) word.splice(j, 2, 256 + i)
    }
    const tokens = new BytePairTokenizer(trained).encode(text)
    expect([...tokens]).toEqual(words.flat())
  })

  test('end where no pair occurs twice, and at 256 bytes', () => {
    expect(BytePairTokenizer.train('ab', 300).size).toBe(256)
    expect(BytePairTokenizer.train('', 300).size).toBe(256)
    const long = BytePairTokenizer.train('😀'.repeat(5000), 300)
    expect(Math.max(...long.encode('😀'.repeat(5000)))).toBe(264) // 64 of 4 bytes
  })

  test.each<[unknown, RegExp]>([
    [[[0, 256]], /merges\[0\] must be an integer from 0 to 255, got 256/],
    [[[0, 1, 2]], /merges\[0\] must have at most 2 entries, got 3/],
    [[[0]], /merges\[0\] must be two tokens/],
    [
      [
        [0, 1],
        [0, 1],
      ],
      /merges\[1\] must be a pair of its own, got \[0, 1\]/,
    ],
    [[0], /merges\[0\] must be an array, got 0/],
    [{ length: 2 }, /merges must be an array/],
    [Array.from({ length: 40 }, (_, i) => (i === 0 ? [0, 0] : [255 + i, 255 + i])), /at most 256 bytes, got 512/],
  ])('are not %j', (merges, message) => {
    expect(() => new BytePairTokenizer(merges as never)).toThrow(message)
  })

  test('of one character come out when it is complete', () => {
    const tokenizer = new BytePairTokenizer([])
    const decoder = tokenizer.decoder()
    expect(Array.from(tokenizer.encode('é😀'), (token) => decoder.write(token))).toEqual(['', 'é', '', '', '', '😀'])
    decoder.write(0xf0)
    expect(decoder.end()).toBe('\ufffd')
  })
})

test.each<[string, Tokenizer]>([
  ['characters', CharacterTokenizer.of(strange)],
  ['byte pairs', BytePairTokenizer.train(strange, 270)],
])('%s refuse what is no text', (_name, tokenizer) => {
  expect(() => tokenizer.encode(3 as never)).toThrow(/text must be a string, got 3/)
})

test.each<[readonly unknown[], RegExp]>([
  [[], /unique characters, at least one/],
  [['a', 'a'], /unique characters/],
  [['ab'], /single characters, got "ab"/],
  [['\ud800'], /single characters/],
  [[3], /single characters, got 3/],
])('%j is no vocabulary', (vocabulary, message) => {
  expect(() => new CharacterTokenizer(vocabulary as string[])).toThrow(message)
})
