import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { appendFileSync, cpSync, existsSync, mkdirSync, readdirSync, symlinkSync, writeFileSync } from 'node:fs'
import { describe, expect, test } from 'vitest'
import { tensorBoard } from '../../cli/trainer/tensorboard.js'
import { runChild } from '../support/child.js'
import { at, bin, cli, expectRefused, folder, jsonLines, succeeded, tiny, weights } from '../support/cli.js'
import { long, some } from '../support/numbers.js'
import { printed } from '../support/program.js'
import { sentences } from '../support/sentences.js'

/** `st-moe train` on large texts and on folders of texts. */

const posix = process.platform !== 'win32'

/** The lines of some sentences. */
const lines = (from: number, to: number): string => sentences(200).split('\n').slice(from, to).join('\n').concat('\n')

describe('a folder', () => {
  const start = async (...args: string[]) => jsonLines(await succeeded(['train', ...args, '--json', ...tiny]))[0]
  const made = (name: string, files: Record<string, string>): string => {
    for (const [file, text] of Object.entries(files)) {
      mkdirSync(at(`${name}/${file}/..`), { recursive: true })
      writeFileSync(at(`${name}/${file}`), text)
    }
    return name
  }
  const parts = { 'b.txt': lines(60, 130), 'a/z.md': lines(0, 60), '.hidden': 'not text\0' }

  test('of one file is trained like the file', async () => {
    made('single', { 'book.txt': lines(0, 100) })
    await succeeded(['train', 'single', '--out', 'from-folder', '--steps', '20', ...tiny])
    await succeeded(['train', 'single/book.txt', '--out', 'from-file', '--steps', '20', ...tiny])
    expect(weights('from-folder').equals(weights('from-file'))).toBe(true)
  })

  test('is the text of all its files, and its name that of the run', async () => {
    made('texts', parts)
    const { text, training, heldOut } = await start('texts', '--steps', '1')
    const lengths = [parts['a/z.md'], parts['b.txt']].map(({ length }) => length)
    const cut = lengths.reduce((sum, length) => sum + Math.floor(length * 0.9), 0)
    expect({ text, training, heldOut }).toEqual({
      text: 'texts',
      training: cut,
      heldOut: lengths[0] + lengths[1] - cut,
    })
    expect(existsSync(at('runs/texts/run.json'))).toBe(true)
  })

  test.each([[[]], [['--vocab-size', '280']]])('is resumed with %j bit for bit, unless it changed', async (flags) => {
    const name = made(`resumed${flags.length}`, parts)
    const run = ['train', name, '--out', `${name}-run`, '--evaluate-every', '10', ...tiny, ...flags]
    await succeeded([...run, '--steps', '30'])
    cpSync(at(`${name}-run`), at(`${name}-parts`), { recursive: true })
    const more = ['train', '--resume', '--out', `${name}-parts`, '--steps', '40']
    await succeeded(more)
    await succeeded(['train', '--resume', '--out', `${name}-run`, '--steps', '40'])
    expect(weights(`${name}-parts`).equals(weights(`${name}-run`))).toBe(true)
    const refused = async () =>
      expectRefused(await cli(more), 1, new RegExp(`${name} is not the text that this run was trained on$`, 'm'))
    writeFileSync(at(`${name}/c.txt`), 'The end.\n')
    await refused()
    const moved = parts['b.txt'].slice(-1)
    writeFileSync(at(`${name}/c.txt`), moved)
    writeFileSync(at(`${name}/b.txt`), parts['b.txt'].slice(0, -1))
    await refused()
  })

  test('that holds the run folder is refused before anything is written', async () => {
    made('around', { 'a.txt': lines(0, 100) })
    for (const out of ['around', 'around/runs/x', './around/../around/y']) {
      const refused = await cli(['train', 'around', '--out', out, ...tiny])
      expectRefused(refused, 2, `the run folder ${out} is in the folder of the text: --out selects another`)
    }
    expect(readdirSync(at('around'))).toEqual(['a.txt'])
  })

  test('without texts, or with something else than texts, is refused, by name', async () => {
    mkdirSync(at('empty'))
    made('hidden', { '.text': lines(0, 100) })
    made('blank', { 'a.txt': '', b: '' })
    made('picture', { 'a.txt': lines(0, 100), 'b.png': 'PNG\0' })
    made('latin', { 'a.txt': lines(0, 100) })
    writeFileSync(at('latin/b'), Buffer.from([0xe9, 0x20]))
    const refused = async (name: string, message: RegExp) =>
      expectRefused(await cli(['train', name, '--out', 'none', ...tiny]), 1, message)
    await refused('empty', /empty is a folder without files: it must hold text files$/m)
    await refused('hidden', /hidden is a folder without files: it must hold text files$/m)
    await refused('blank', /blank is empty$/m)
    await refused('picture', /picture.b\.png is not a text file: it contains a zero byte$/m)
    await refused('latin', /latin.b is not valid UTF-8$/m)
    if (posix) {
      for (const name of ['piped', 'lost', 'round']) made(name, { 'a.txt': lines(0, 100) })
      spawnSync('mkfifo', [at('piped/b')])
      symlinkSync('nowhere', at('lost/b'))
      symlinkSync('.', at('round/b'))
      await refused('piped', /cannot read .*piped\/b: it is a pipe, not a regular file$/m)
      await refused('lost', /cannot read .*lost\/b: ENOENT: no such file or directory/)
      await refused('round', /cannot read .*round\/b: it is a directory, not a regular file$/m)
    }
    expect(existsSync(at('none'))).toBe(false)
  })
})

describe('a text that takes more than a second', () => {
  const large = (): string => {
    if (!existsSync(at('large.txt'))) {
      const part = (i: number) => Array.from({ length: 30_000 }, (_, j) => `${(i * j * 7919) % 65_521} word`).join(' ')
      const parts = Array.from({ length: 40 }, (_, i) => part(i))
      for (let copies = 0; copies < 5; copies++) for (const text of parts) appendFileSync(at('large.txt'), text)
    }
    return 'large.txt'
  }

  test.skipIf(!posix).each<[NodeJS.Signals, string[], string, RegExp]>([
    ['SIGINT', ['--json'], '}\n', /^\{"event":"prepare","stage":"[a-z -]+","done":\d+,"total":\d+\}\n$/],
    ['SIGTERM', ['--vocab-size', '2000'], ' %\n', /^[a-z ]+: \d+ %\n$/],
  ])('prints how far it is; %s ends it at once', async (signal, flags, sign, printedBefore) => {
    const args = [bin, 'train', large(), '--out', 'slow', ...tiny, ...flags]
    const child = spawn(process.execPath, args, { cwd: folder, stdio: ['ignore', 'pipe', 'inherit'] })
    const ended = once(child, 'close')
    let out = ''
    child.stdout.on('data', (data) => {
      out += data
    })
    await printed(child, sign)
    child.kill(signal)
    expect(await ended).toEqual([null, signal])
    expect(out).toMatch(printedBefore)
    expect(existsSync(at('slow'))).toBe(false)
  })
})

test('what is told before a run is no event for TensorBoard: a resumed run replaces the steps after its own', () => {
  const report = tensorBoard(at('board'))
  report({ event: 'prepare', stage: 'reading', done: 1, total: 2 })
  expect(existsSync(at('board'))).toBe(false)
  report({ event: 'resume', step: 2 })
  report({ event: 'end', step: 2, steps: 2, out: '', text: '' })
  expect(readdirSync(at('board'))).toHaveLength(1)
})

/** The letters of a large vocabulary, most of them rare. */
const many = 'etaoinshrdlu'.repeat(40) + String.fromCharCode(...Array.from({ length: 400 }, (_, i) => 0x3b1 + i))

const large: [megabytes: number, alphabet: string, type: string, most: number, vocabSize?: number][] = [
  [long ? 100 : 20, 'etaoinshrdlu', 'Uint8Array', 3],
  [long ? 100 : 8, many, 'Uint16Array', 6, 1024],
  [100, many, 'Uint16Array', 3],
]
test.each(some(large, 2))(
  '%i MB of text take a few times their size, %#',
  async (megabytes, alphabet, type, most, vocabSize) => {
    const args = [folder, String(megabytes), alphabet, ...(vocabSize ? [String(vocabSize)] : [])]
    const { code, stdout, stderr } = await runChild('large-text.mjs', args)
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' })
    const found = JSON.parse(stdout)
    expect(found.type).toBe(type)
    expect(found.tokens).toBeGreaterThan(1e6)
    expect(found.rise).toBeLessThan(long ? most : most + 20 / megabytes) // of a small text, the heap's own share counts
  },
)
