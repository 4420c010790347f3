import { readFileSync, writeFileSync } from 'node:fs'
import { expect, test } from 'vitest'
import { BytePairTokenizer } from '../../language-model/index.js'
import { at, cli, cliAlone, expectRefused, jsonLines, succeeded, tiny, weights } from '../support/cli.js'
import { sentences } from '../support/sentences.js'

/** `st-moe train --vocab-size`: byte pairs for tokens. */

const pairs = ['--vocab-size', '300']
const described = (run: string) => JSON.parse(readFileSync(at(`${run}/run.json`), 'utf8'))

test('the pairs are those of the training text; a resumed run keeps them, and continues bit for bit', async () => {
  const flags = [...tiny, ...pairs, '--steps', '500', '--evaluate-every', '100']
  await succeeded(['train', 'book.txt', '--out', 'whole', ...flags])
  const training = [...readFileSync(at('book.txt'), 'utf8')]
  const { merges } = BytePairTokenizer.train(training.slice(0, Math.floor(training.length * 0.9)).join(''), 300)
  expect(described('whole').text).toMatchObject({ merges })
  expect(described('whole').text).not.toHaveProperty('vocabulary')
  expect((await cliAlone(['train', 'book.txt', '--out', 'parts', ...flags], 'step 100 ')).code).toBe(130)
  expect(weights('parts').equals(weights('whole'))).toBe(false)
  await succeeded(['train', '--resume', '--out', 'parts'])
  expect(weights('parts').equals(weights('whole'))).toBe(true)
  expect(await succeeded(['generate', 'whole', '--prompt', 'Thé 😀 ', '--length', '20'])).toMatch(/^Thé 😀 ./)
})

test('losses are per character: before training that of even tokens, after it that of the same text with characters', async () => {
  const flags = [...tiny, '--json', '--batch', '8', '--steps', '300']
  const of = async (...more: string[]) => jsonLines(await succeeded(['train', 'book.txt', ...flags, ...more]))
  const [start, first, ...rest] = await of('--out', 'pairs', ...pairs)
  const [characters, , ...plain] = await of('--out', 'plain')
  expect(start.counts).toEqual(characters.counts)
  expect(start.training).toBe(characters.training)
  const charactersPerToken = start.charactersPerStep / characters.charactersPerStep
  expect(charactersPerToken).toBeGreaterThan(2)
  expect(Math.abs((first.loss * charactersPerToken) / Math.log(start.vocabulary) - 1)).toBeLessThan(0.2)
  const last = (events: { event: string; loss: number }[]) =>
    events.findLast(({ event }) => event === 'evaluation')!.loss
  expect(last(rest) / last(plain)).toBeGreaterThan(0.5)
  expect(last(rest) / last(plain)).toBeLessThan(1.5)
  const report = readFileSync(at('pairs/report.html'), 'utf8')
  expect(report).toContain(`<tr><th>vocabulary</th><td>${start.vocabulary} tokens</td></tr>`)
  expect(report).toContain('<tr><th>vocab-size</th><td>300</td></tr>')
})

test('any script; a text with too few tokens, and pairs that are none, are refused', async () => {
  writeFileSync(at('unicode.txt'), 'Ünïcödé 漢字 😀 text, ligne après ligne.\n'.repeat(60))
  await succeeded(['train', 'unicode.txt', '--steps', '2', ...tiny, ...pairs])
  writeFileSync(at('short.txt'), `${'a'.repeat(1000)}${sentences(3)}`)
  const short = await cli(['train', 'short.txt', '--steps', '2', ...tiny, ...pairs])
  expectRefused(short, 1, /short\.txt has \d+ tokens; a context of 16 needs more of them$/m)
  const few = await cli(['train', 'book.txt', '--vocab-size', '256'])
  expectRefused(few, 2, /--vocab-size must be a whole number from 257 to 65792, got '256'/)
  await succeeded(['train', 'book.txt', '--out', 'damaged', ...tiny, ...pairs, '--steps', '2'])
  const intact = JSON.stringify(described('damaged'))
  const changed = (edit: (run: ReturnType<typeof described>) => void): void => {
    const run = JSON.parse(intact)
    edit(run)
    writeFileSync(at('damaged/run.json'), JSON.stringify(run))
  }
  const refused = async (message: RegExp) =>
    expectRefused(await cli(['train', '--resume', '--out', 'damaged']), 1, message)
  changed(({ text }) => text.merges.unshift([999, 0]))
  await refused(/text\.merges must be unique pairs of earlier tokens, got \[Array, /)
  changed(({ text }) => delete text.merges)
  await refused(/text\.merges must be unique pairs of earlier tokens, got undefined/)
  changed(({ options }) => delete options['vocab-size'])
  await refused(/text must not have an entry "merges"/)
})
