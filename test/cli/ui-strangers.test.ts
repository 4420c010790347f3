import { once } from 'node:events'
import { Agent, get, type IncomingMessage } from 'node:http'
import { connect, type Socket } from 'node:net'
import { setTimeout } from 'node:timers/promises'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { emptyHistory } from '../../cli/trainer/history.js'
import { PageServer } from '../../cli/ui/server.js'
import { about, ask, PageReader, running } from '../support/page-reader.js'

/** What connections without the token can do to the page: take a few of its places, for a few seconds. */

let server: PageServer
let sockets: Socket[] = []

beforeEach(async () => {
  server = await PageServer.open(0, '--ui-port')
  server.show([{ about, history: emptyHistory(), status: running }])
})
afterEach(async () => {
  for (const socket of sockets) socket.destroy()
  sockets = []
  await server.close()
})

/** Connections that have sent this and no more. */
async function open(count: number, text: string): Promise<Socket[]> {
  const made = Array.from({ length: count }, () => connect(Number(new URL(server.url).port), '127.0.0.1'))
  sockets.push(...made)
  await Promise.all(
    made.map(async (socket) => {
      socket.on('error', () => {}).resume()
      await once(socket, 'connect')
      socket.write(text)
    }),
  )
  return made
}

/** Fails at once, and not by a time limit, if the page was closed. */
async function expectOpen(reader: PageReader): Promise<void> {
  const nothing = setTimeout(0, 'open')
  expect(await Promise.race([reader.closed.then(() => 'closed'), nothing])).toBe('open')
  const before = reader.events.length
  server.show([{ about, history: emptyHistory(), status: running }])
  await expect.poll(() => reader.events.length).toBeGreaterThan(before)
}

const half = 'GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Half: '
const closed = (list: readonly Socket[]) => list.filter((socket) => socket.closed).length

test.each([
  ['nothing', ''],
  ['half a request', half],
])('400 connections that send %s keep nobody out, and close no page', async (_, text) => {
  const reader = await PageReader.open(server.url)
  const start = performance.now()
  const strangers: Socket[] = []
  for (const count of [140, 260]) {
    strangers.push(...(await open(count, text)))
    for (let i = 0; i < 5; i++) expect((await ask(server.url)).status).toBe(200)
  }
  await expect.poll(() => closed(strangers)).toBeGreaterThanOrEqual(400 - 64)
  expect(performance.now() - start).toBeLessThan(4500) // before the time of the first is over
  await expectOpen(reader)
  const late = await PageReader.open(server.url)
  await expect.poll(() => late.events).toContain('part')
  reader.close()
  late.close()
})

test('a connection without the token is closed after some seconds, whatever it sends', async () => {
  const start = performance.now()
  const quiet = await open(3, '')
  const slow = await open(3, half)
  const [busy] = await open(1, half)
  const reader = await PageReader.open(server.url)
  while (!busy.closed && performance.now() - start < 30_000) {
    await setTimeout(100)
    if (busy.writable) busy.write('x')
  }
  expect(performance.now() - start).toBeGreaterThan(4000)
  await expect.poll(() => closed([...quiet, ...slow, busy])).toBe(7)
  expect(performance.now() - start).toBeLessThan(30_000)
  await expectOpen(reader) // as long as it wants
  reader.close()
})

test('a wrong token closes the connection, and a right one keeps it for some seconds', async () => {
  const { pathname, host } = new URL(server.url)
  const request = (path: string) => `GET ${path} HTTP/1.1\r\nHost: ${host}\r\n\r\n`
  const [refused] = await open(1, request('/wrong/'))
  let answer = ''
  refused.setEncoding('utf8').on('data', (data) => {
    answer += data
  })
  await once(refused, 'close')
  expect(answer).toMatch(/^HTTP\/1\.1 403 .*\r\nConnection: close\r\n/s)
  const agent = new Agent({ keepAlive: true, maxSockets: 1 })
  const ports: (number | undefined)[] = []
  for (let i = 0; i < 3; i++) {
    const [response] = (await once(get(server.url, { agent }), 'response')) as [IncomingMessage]
    ports.push(response.socket.localPort)
    response.resume()
    await once(response, 'end')
  }
  expect(new Set(ports).size).toBe(1)
  agent.destroy()
  const [kept] = await open(1, request(pathname))
  await open(140, half)
  await setTimeout(500)
  expect(kept.closed).toBe(false)
  kept.write(half) // a second request that never ends
  const start = performance.now()
  await expect.poll(() => kept.closed).toBe(true)
  expect(performance.now() - start).toBeLessThan(30_000)
})
