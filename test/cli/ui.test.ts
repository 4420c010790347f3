import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { cpSync, existsSync, readdirSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { describe, expect, test } from 'vitest'
import type { Part } from '../../cli/ui/messages.js'
import { savedRun } from '../../cli/ui/saved.js'
import { editCheckpoint } from '../support/checkpoint-file.js'
import { at, bin, cli, expectRefused, folder, jsonLines, succeeded, tiny } from '../support/cli.js'
import { ask, fresh, PageReader } from '../support/page-reader.js'

/** `st-moe train --ui` and `st-moe show`, without a browser; cli-ui-browser.test.ts looks at their page. */

/** A program that prints a URL, and a page that follows it. */
async function followed(args: readonly string[]) {
  const child = spawn(process.execPath, [bin, ...args], { cwd: folder, stdio: ['ignore', 'pipe', 'pipe'] })
  let [said, warned] = ['', '']
  const url = new Promise<string>((resolve, reject) => {
    const look = () => {
      const [found] = /http:\/\/127\.0\.0\.1:\d+\/[\w-]+\//.exec(said + warned) ?? []
      if (found) resolve(found)
    }
    child.stdout.on('data', (data) => {
      said += data
      look()
    })
    child.stderr.on('data', (data) => {
      warned += data
      look()
    })
    child.once('close', () => reject(new Error(`it ended: ${said}${warned}`)))
  })
  const closed = once(child, 'close')
  const end = async (signal?: NodeJS.Signals) => {
    if (signal) child.kill(signal)
    const [code] = await closed
    return { code, said, warned }
  }
  return { url: await url, reader: await PageReader.open(await url), end }
}

describe('train --ui', () => {
  /** What a page must show of the run in a folder. */
  async function expected(out: string): Promise<Part> {
    const { history, status } = await savedRun(at(out))
    return { ...fresh(history), status }
  }

  test('a page shows the history of the run, after 100 steps and when it is resumed', async () => {
    const sizes = [...tiny, '--evaluate-every', '40', '--ui']
    const first = await followed(['train', 'book.txt', '--out', 'watched', '--steps', '100', ...sizes])
    const { code, said, warned } = await first.end()
    expect({ code, warned }).toEqual({ code: 0, warned: `this run in a browser: ${first.url}\n` })
    expect(said).toContain('step 100 of 100')
    const [shown] = first.reader.received.runs
    expect(shown.about).toMatchObject({ name: 'watched', text: 'book.txt', steps: 100, charactersPerStep: 32 })
    expect(shown.part).toEqual(await expected('watched'))
    expect(shown.part).toMatchObject({ steps: 100, entries: { list: { length: 100 } }, status: { state: 'finished' } })
    expect(shown.part!.evaluations.list.map(({ step }) => step)).toEqual([0, 40, 80, 100])
    expect(Object.keys(shown.part!.baselines)).toEqual(['unigram', 'bigram', 'trigram', '4-gram'])
    const { port } = new URL(first.url) // is free again
    const resumed = await followed([
      'train',
      '--resume',
      '--out',
      'watched',
      '--steps',
      '150',
      '--ui-port',
      port,
      '--json',
    ])
    const ended = await resumed.end()
    expect(ended.code).toBe(0)
    expect(ended.warned).toBe('')
    expect(jsonLines(ended.said).find(({ event }) => event === 'ui')).toEqual({ event: 'ui', url: resumed.url })
    expect(resumed.url).toContain(`:${port}/`)
    expect(resumed.reader.received.runs[0].part).toEqual(await expected('watched'))
    expect(resumed.reader.received.runs[0].part!.entries.list).toHaveLength(150)
    // The part before is the same; learning rates too.
    expect(resumed.reader.received.runs[0].part!.entries.list.slice(0, 100)).toEqual(shown.part!.entries.list)
  })

  test.each<[NodeJS.Signals, number]>([
    ['SIGINT', 130],
    ['SIGTERM', 143],
  ])('%s: the page says that it stopped, and the server is gone', async (signal, code) => {
    const { url, reader, end } = await followed([
      'train',
      'book.txt',
      '--out',
      signal,
      '--steps',
      '1000000',
      '--ui',
      ...tiny,
    ])
    await expect.poll(() => reader.received.runs[0]?.part?.steps ?? 0).toBeGreaterThan(0)
    expect((await end(signal)).code).toBe(code)
    await reader.closed
    expect(reader.received.runs[0].part!.status).toEqual({ state: 'stopped' })
    await expect(ask(url)).rejects.toThrow('ECONNREFUSED')
  })

  test('a run that fails says why', async () => {
    const { reader, end } = await followed(['train', 'book.txt', '--out', 'failing', '--lr', '1e30', '--ui', ...tiny])
    const { code, warned } = await end()
    expect(code).toBe(1)
    expect(warned).toMatch(/^this run in a browser: \S+\nst-moe train: step \d+: .*\n$/)
    await reader.closed
    expect(reader.received.runs[0].part!.status).toEqual({
      state: 'failed',
      reason: expect.stringMatching(/^step \d+: .*a lower --lr may help/),
    })
  })

  test('a port that is in use is an error before anything is written', async () => {
    const server = createServer().listen(0, '127.0.0.1')
    await once(server, 'listening')
    const { port } = server.address() as AddressInfo
    const args = ['train', 'book.txt', '--out', 'unwritten', '--ui-port', String(port), ...tiny]
    expectRefused(await cli(args), 1, `st-moe train: --ui-port ${port}: port ${port} is in use; without --ui-port`)
    expectRefused(
      await cli(['show', 'run', '--port', String(port)]),
      1,
      `st-moe show: --port ${port}: port ${port} is in use`,
    )
    expect(existsSync(at('unwritten'))).toBe(false)
    server.close()
  })
})

describe('show', () => {
  test('opens runs until Ctrl-C, as their checkpoints are', async () => {
    cpSync(at('run'), at('other'), { recursive: true })
    editCheckpoint(at('other/checkpoint.safetensors'), (about) =>
      about.replaceAll(/,"(learningRate|stepSeconds)":\[[^\]]*\]/g, ''),
    )
    const { reader, end, url } = await followed(['show', 'run', 'other', '--json'])
    await expect.poll(() => reader.received.runs.map(({ part }) => part?.steps)).toEqual([30, 30])
    const [run, other] = reader.received.runs
    expect(run.part!.parameters).toBe(
      jsonLines(await succeeded(['train', '--resume', '--out', 'run', '--json'])).find(({ event }) => event === 'start')
        .parameters,
    )
    expect(run.about.flags).toMatchObject({ steps: '30', experts: '4', router: 'topk' })
    expect(run.part!.status).toEqual({ state: 'finished' })
    expect(other.part!.entries.list).toEqual(run.part!.entries.list.map((entry) => entry.slice(0, 2)))
    expect(await end('SIGINT')).toMatchObject({ code: 130, said: `${JSON.stringify({ url })}\n`, warned: '' })
  })

  test('names and texts of a hostile folder come without control characters', async () => {
    const name = 'a\x1b]0;b\x07<img src=x onerror=alert(1)>\u202ec'
    cpSync(at('run'), at(name), { recursive: true })
    editCheckpoint(at(`${name}/checkpoint.safetensors`), (about) =>
      about
        .replaceAll(/"sample":"[^"]*"/g, '"sample":"</script>\\u001b[31m\\u202e"')
        .replaceAll(/"prompt":"[^"]*"/g, '"prompt":"\\u001b[2Jonce"'),
    )
    const { reader, end } = await followed(['show', name])
    await expect.poll(() => reader.received.runs[0]?.part?.steps).toBe(30)
    const [{ about, part }] = reader.received.runs
    expect(about.name).toBe('a\\x1b]0;b\\x07<img src=x onerror=alert(1)>\\u202ec')
    expect(part!.evaluations.list[0].sample).toBe('</script>\\x1b[31m\\u202e')
    expect(part!.prompt).toBe('\\x1b[2Jonce')
    await end('SIGINT')
  })

  test.each<[string[], 1 | 2, string]>([
    [['show'], 2, 'missing FOLDER'],
    [['show', ...Array(17).fill('run')], 2, 'at most 16 runs fit on a page, got 17'],
    [['show', 'run', 'nowhere'], 1, 'there is no run in nowhere'],
    [['show', 'run', '--port', '0'], 2, '--port must be a whole number from 1 to 65535'],
  ])('%j is refused', async (args, code, message) => expectRefused(await cli(args), code, message))

  test('a folder whose history is not that of its run is refused', async () => {
    cpSync(at('run'), at('wrong'), { recursive: true })
    editCheckpoint(at('wrong/checkpoint.safetensors'), (about) => about.replace('"stride":1', '"stride":2'))
    expectRefused(await cli(['show', 'wrong']), 1, 'does not contain the history of its run')
    writeFileSync(at('wrong/run.json'), '{}')
    expectRefused(await cli(['show', 'wrong']), 1, 'does not describe a run')
    expect(readdirSync(at('wrong'))).not.toContain('run.lock')
  })
})
