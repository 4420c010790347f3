import { once } from 'node:events'
import { get, type IncomingMessage } from 'node:http'
import { connect } from 'node:net'
import { networkInterfaces } from 'node:os'
import { setTimeout } from 'node:timers/promises'
import { afterEach, describe, expect, test } from 'vitest'
import { emptyHistory, type History, recordEvaluation, recordStep, round } from '../../cli/trainer/history.js'
import { nothing, type Position, partOf } from '../../cli/ui/feed.js'
import { Received } from '../../cli/ui/messages.js'
import { PageServer } from '../../cli/ui/server.js'
import { about, ask, fresh, PageReader, running } from '../support/page-reader.js'

/** The server of the page of runs, and what it tells a page; cli-ui.test.ts has the commands that start it. */

/** Steps of a run with other numbers each. */
function grow(history: History, steps: number): void {
  for (let i = 0; i < steps; i++) {
    const x = Math.sin(history.steps)
    const load = [0, 1].map((layer) => [0.1 + layer / 20, 0.2, 0.3 + x / 20, 0.4 - layer / 20 - x / 20])
    recordStep(history, { loss: 3 + x, dropped: 0.5 + x / 3, learningRate: 1e-3 * (2 + x), stepSeconds: 0.01, load })
  }
}

const evaluate = (history: History): void =>
  recordEvaluation(history, { step: history.steps, loss: 2 + Math.cos(history.steps), sample: `at ${history.steps}` })

/** Of so many experts that a page is told megabytes. */
function large(): History {
  const history = emptyHistory()
  const load = Array.from({ length: 24 }, () => Array<number>(1024).fill(0.00012345))
  for (let step = 0; step < 16; step++)
    recordStep(history, { loss: 1, dropped: 0, learningRate: 1, stepSeconds: 1, load })
  return history
}

describe('what a page is told', () => {
  test('in parts of any size is all that one that opens late is told', () => {
    const history = emptyHistory()
    const received = new Received()
    received.setRuns([about])
    let position: Position = nothing
    for (const steps of [0, 1, 1, 3, 0, 100, 1, 27, 300, 1, 4000, 2, 5, 9000, 3, 77]) {
      grow(history, steps)
      if (steps % 2 === 1) evaluate(history)
      const [part, next] = partOf(history, position, 0, running)
      received.addPart(part)
      position = next
      expect(received.runs[0].part).toEqual(fresh(history))
    }
    expect(history.stride).toBe(4)
  })

  test('is the history itself, and what was there before is not sent again', () => {
    const history = emptyHistory()
    grow(history, 100)
    evaluate(history)
    const [all, position] = partOf(history, nothing, 0, running)
    const { loss, dropped, learningRate, stepSeconds } = history
    expect(all.entries.list).toEqual(loss.map((_, i) => [loss[i], dropped[i], learningRate![i], stepSeconds![i]]))
    expect(all.columns.list).toEqual(history.load)
    expect(all.evaluations.list).toEqual(history.evaluations)
    const [none] = partOf(history, position, 0, running)
    for (const { from, list } of [none.entries, none.columns]) expect({ from, list }).toEqual({ from: 100, list: [] })
    expect(none.evaluations.list).toEqual([])
    grow(history, 2)
    expect(partOf(history, position, 0, running)[0].entries).toMatchObject({ from: 100, list: { length: 2 } })
  })

  test('columns of the expert load are means, and few', () => {
    const history = emptyHistory()
    grow(history, 1000)
    const { columnStride, columns } = fresh(history)
    expect(columnStride).toBe(8)
    expect(columns.list).toHaveLength(125)
    const third = history.load.slice(16, 24).map((load) => load[1][2])
    expect(columns.list[2][1][2]).toBe(round(third.reduce((a, b) => a + b) / 8))
  })

  test('of evaluations is right when half of a full history of them is left out', () => {
    const history = emptyHistory()
    const received = new Received()
    received.setRuns([about])
    let position: Position = nothing
    for (let i = 0; i < 1030; i++) {
      grow(history, 1)
      evaluate(history)
      const [part, next] = partOf(history, position, 0, running)
      received.addPart(part)
      position = next
    }
    expect(received.runs[0].part!.evaluations.list).toEqual(history.evaluations)
    expect(history.evaluations.length).toBeLessThan(600)
  })

  test('is a limited number of bytes, however many experts there are', () => {
    const { length } = JSON.stringify(fresh(large()))
    expect(length).toBeGreaterThan(1e6)
    expect(length).toBeLessThan(3e6)
  })

  test('a history without times and rates, of an older run, has none of them', () => {
    const { learningRate, stepSeconds, ...history } = emptyHistory()
    grow(history, 3)
    expect(fresh(history).entries.list.map((entry) => entry.length)).toEqual([2, 2, 2])
  })
})

describe('the server', () => {
  let open: PageServer[] = []
  afterEach(async () => {
    await Promise.all(open.map((server) => server.close()))
    open = []
  })
  async function serve(history = emptyHistory()) {
    const server = await PageServer.open(0, '--ui-port')
    open.push(server)
    const run = { about, history, status: { state: 'running' as 'running' | 'finished' } }
    server.show([run])
    return { server, run, history }
  }

  test('answers only requests with its token', async () => {
    const { server } = await serve()
    const { origin, pathname } = new URL(server.url)
    expect(pathname).toMatch(/^\/[\w-]{32}\/$/)
    expect((await ask(server.url)).status).toBe(200)
    const token = pathname.slice(1, -1)
    const wrong = token.slice(0, -1) + (token.endsWith('A') ? 'B' : 'A')
    for (const path of [
      '/',
      '/events',
      `/${wrong}/`,
      `/${wrong}/events`,
      `/${token.slice(0, -1)}/`,
      `/${token}`,
      '//',
      `/${token}é/`,
    ]) {
      const { status, body } = await ask(origin + path.replace('é', '%C3%A9'))
      expect({ path, status, body }).toEqual({ path, status: 403, body: 'Open the URL that st-moe printed.\n' })
    }
    const { url } = (await serve()).server
    expect(url.slice(-34)).not.toBe(server.url.slice(-34))
  })

  test.each<[string, number]>([
    ['127.0.0.1:1', 200],
    ['localhost:8080', 200],
    ['LOCALHOST', 200],
    ['[::1]:80', 200],
    ['evil.example', 403],
    ['evil.example:80', 403],
    ['127.0.0.1.evil.example', 403],
    ['localhost.', 403],
  ])('Host %s: %i', async (host, expected) => {
    const { server } = await serve()
    for (const name of ['', 'main.js'])
      expect((await ask(server.url + name, { headers: { host } })).status).toBe(expected)
  })

  test('is reached from this machine alone', async () => {
    const { server } = await serve()
    const { port, hostname } = new URL(server.url)
    expect(hostname).toBe('127.0.0.1')
    const others = Object.values(networkInterfaces()).flatMap((all) =>
      all!.filter(({ internal, family }) => !internal && family === 'IPv4'),
    )
    for (const { address } of others) {
      const socket = connect(Number(port), address)
      const [error] = await once(socket, 'error')
      expect(error.code).toBe('ECONNREFUSED')
    }
  })

  test('serves its files with a policy that allows nothing else, and nothing else', async () => {
    const { server } = await serve()
    const page = await ask(server.url)
    const policy = String(page.headers['content-security-policy'])
    expect(policy).toContain("default-src 'none'")
    expect(policy).not.toMatch(/unsafe|\*|data:|https?:/)
    expect(page.body).not.toMatch(/https?:|<script>|style=| on\w+=/)
    const names = [...page.body.matchAll(/(?:src|href)="([^"]+)"/g)].map(([, name]) => name)
    expect(names.length).toBeGreaterThan(4)
    const imported = new Set<string>()
    for (const name of names) {
      const { status, headers, body } = await ask(server.url + name)
      expect({ name, status }).toEqual({ name, status: 200 })
      expect(headers['x-content-type-options']).toBe('nosniff')
      for (const [, path] of body.matchAll(/^import .* from '(.*)';$/gm))
        imported.add(new URL(path, `http://x/${name}`).pathname.slice(1))
    }
    expect([...imported].filter((name) => !names.includes(name))).toEqual([]) // all are loaded at once
    for (const name of ['../package.json', '../cli.js', 'index.html/', 'main.ts', '%2e%2e/x', 'events/x'])
      expect((await ask(server.url + name)).status).toBeGreaterThanOrEqual(403)
    expect((await ask(server.url, { method: 'POST' })).status).toBe(405)
  })

  test('tells open pages what is new, and a late one everything', async () => {
    const { server, history } = await serve()
    const first = await PageReader.open(server.url)
    for (const steps of [1, 40, 59]) {
      grow(history, steps)
      server.update()
      await expect.poll(() => first.received.runs[0]?.part?.steps).toBe(history.steps)
    }
    const late = await PageReader.open(server.url)
    await expect.poll(() => late.received.runs[0]?.part).toEqual(fresh(history))
    expect(first.received.runs).toEqual(late.received.runs)
    expect(first.events.length).toBeLessThan(8) // many updates are one message
    first.close()
    late.close()
  })

  test('a page that does not read gets the latest when it does, and nothing waits for it', async () => {
    const { server, run, history } = await serve(large())
    const request = get(`${server.url}events`)
    const [slow] = (await once(request, 'response')) as [IncomingMessage]
    slow.pause()
    const quick = await PageReader.open(server.url)
    const rounds = 12
    for (let i = 1; i <= rounds; i++) {
      history.seconds = i
      server.show([run]) // megabytes each time
      await expect.poll(() => quick.received.runs[0]?.part?.seconds).toBe(i)
    }
    let received = ''
    slow.setEncoding('utf8').on('data', (data) => {
      received += data
    })
    slow.resume()
    await expect.poll(() => received).toContain(`"seconds":${rounds},`)
    expect(received.split('event: part').length - 1).toBeLessThan(rounds - 2)
    quick.close()
  })

  test('at its end it tells pages so and does not wait for one that does not read', async () => {
    const { server, run } = await serve(large())
    const request = get(`${server.url}events`)
    const [slow] = (await once(request, 'response')) as [IncomingMessage]
    slow.pause().on('error', () => {})
    const quick = await PageReader.open(server.url)
    for (let i = 0; i < 8; i++) {
      server.show([run])
      await setTimeout(300)
    }
    run.status = { state: 'finished' }
    await server.close()
    open = []
    await quick.closed
    expect(quick.received.runs[0].part!.status).toEqual({ state: 'finished' })
  })

  test('refuses more pages than a few, and forgets closed ones', async () => {
    const { server } = await serve()
    const readers = await Promise.all(Array.from({ length: 16 }, () => PageReader.open(server.url)))
    expect((await ask(`${server.url}events`)).status).toBe(503)
    for (const reader of readers) reader.close()
    await expect
      .poll(async () => {
        const reader = await PageReader.open(server.url)
        await setTimeout(50)
        reader.close()
        return reader.events.length
      })
      .toBeGreaterThan(0)
  })

  test('its port in use is an error that says so', async () => {
    const { server } = await serve()
    const port = Number(new URL(server.url).port)
    await expect(PageServer.open(port, '--ui-port')).rejects.toThrow(
      `--ui-port ${port}: port ${port} is in use; without --ui-port the page gets a free port`,
    )
  })
})
