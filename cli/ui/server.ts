import { randomBytes, timingSafeEqual } from 'node:crypto'
import { once } from 'node:events'
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http'
import type { AddressInfo, Socket } from 'node:net'
import { Failure } from '../errors.js'
import { readAssets } from './assets.js'
import { nothing, type Position, partOf, type ShownRun } from './feed.js'
import type { RunsMessage, Status } from './messages.js'

/** Milliseconds between two parts of a run that changes, and at most between its end and that of the server. */
const [interval, grace] = [250, 1000]
/** Pages that are open at once, and connections: those that have not shown the token, and all, for a burst of them. */
const [maxPages, maxStrangers, maxConnections] = [16, 64, 1024]
/** Milliseconds for the headers of a request and for its rest, before the token is shown, and between two requests. */
const limits = {
  headersTimeout: 5000,
  requestTimeout: 10_000,
  keepAliveTimeout: 5000,
  connectionsCheckingInterval: 1000,
}
const strangerTime = 5000

const address = '127.0.0.1'
/** Any other is a name that somebody else's page resolved to this machine (DNS rebinding). The port may be a tunnel's. */
const hosts = new Set([address, 'localhost', '[::1]'])

const headers = {
  'Content-Security-Policy':
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
  'Cross-Origin-Resource-Policy': 'same-origin',
  'Cross-Origin-Opener-Policy': 'same-origin',
  'Referrer-Policy': 'no-referrer',
  'X-Content-Type-Options': 'nosniff',
  'Cache-Control': 'no-store',
}

/** A run on the page, and whether it goes on. */
export interface PageRun extends ShownRun {
  status: Status
}

/** Serves a page about runs to this machine alone, at a secret URL. */
export class PageServer {
  readonly #server: Server
  readonly #token = randomBytes(24).toString('base64url')
  readonly #assets = readAssets()
  readonly #pages = new Set<Page>()
  /** Connections without a request that had the token, the oldest first. */
  readonly #strangers = new Set<Socket>()
  #runs: readonly PageRun[] = []
  #timer: NodeJS.Timeout | null = null

  private constructor() {
    this.#server = createServer(limits, (request, response) => this.#answer(request, response))
    this.#server.maxConnections = maxConnections
    this.#server.on('connection', (socket) => this.#meet(socket))
  }

  /** Connections that send nothing, or no token, keep nobody out: each has some seconds, and the oldest give way. */
  #meet(socket: Socket): void {
    const timer = setTimeout(() => this.#strangers.has(socket) && socket.destroy(), strangerTime).unref()
    this.#strangers.add(socket)
    socket.once('close', () => {
      clearTimeout(timer)
      this.#strangers.delete(socket)
    })
    if (this.#strangers.size <= maxStrangers) return
    const [oldest] = this.#strangers
    this.#strangers.delete(oldest)
    oldest.destroy()
  }

  /** Port 0 is a free one. `flag` names the port in an error. */
  static async open(port: number, flag: string): Promise<PageServer> {
    const page = new PageServer()
    page.#server.listen(port, address)
    try {
      await once(page.#server, 'listening')
    } catch (error) {
      const { code, message } = error as NodeJS.ErrnoException
      const why = code === 'EADDRINUSE' ? `port ${port} is in use` : message
      throw new Failure(`${flag} ${port}: ${why}; without ${flag} the page gets a free port`)
    }
    return page
  }

  get url(): string {
    return `http://${address}:${(this.#server.address() as AddressInfo).port}/${this.#token}/`
  }

  /** Shows these runs. Call {@link update} after changes. */
  show(runs: readonly PageRun[]): void {
    this.#runs = runs
    for (const page of this.#pages) page.restart()
    this.update()
  }

  /** Tells the open pages soon; many calls are one. */
  update(): void {
    this.#timer ??= setTimeout(() => this.#send(), interval).unref()
  }

  #send(): void {
    clearTimeout(this.#timer ?? undefined)
    this.#timer = null
    for (const page of this.#pages) page.send()
  }

  /** Sends the last changes, as far as pages take them within a second, and closes all connections. */
  async close(): Promise<void> {
    this.#send()
    const closed = once(this.#server, 'close')
    this.#server.close()
    for (const page of this.#pages) page.end()
    const timer = setTimeout(() => this.#server.closeAllConnections(), grace)
    await closed
    clearTimeout(timer)
  }

  #answer({ method, headers: { host = '' }, url = '', socket }: IncomingMessage, response: ServerResponse): void {
    const [, token, name] = /^\/([^/?]*)\/([^?]*)/.exec(url) ?? ['', '', '']
    const hostname = host.replace(/:\d+$/, '').toLowerCase()
    const asset = this.#assets.get(name)
    const refuse = (status: number, text: string): void => {
      response.writeHead(status, { ...headers, 'Content-Type': 'text/plain; charset=utf-8' }).end(`${text}\n`)
    }
    const hasToken = hosts.has(hostname) && isSame(token, this.#token)
    if (hasToken) this.#strangers.delete(socket)
    else response.setHeader('Connection', 'close')
    if (!hasToken) refuse(403, 'Open the URL that st-moe printed.')
    else if (method !== 'GET') refuse(405, 'Only GET is allowed.')
    else if (asset) response.writeHead(200, { ...headers, 'Content-Type': asset.type }).end(asset.body)
    else if (name !== 'events') refuse(404, 'There is no such page.')
    else if (this.#pages.size >= maxPages) refuse(503, `At most ${maxPages} pages can be open.`)
    else this.#addPage(response)
  }

  #addPage(response: ServerResponse): void {
    response
      .writeHead(200, { ...headers, 'Content-Type': 'text/event-stream', Connection: 'close' })
      .write('retry: 1000\n\n')
    const page = new Page(response, () => this.#runs)
    this.#pages.add(page)
    response.on('error', () => {}).once('close', () => this.#pages.delete(page))
    page.send()
  }
}

/** Compares in a time that does not depend on where they differ. */
function isSame(given: string, token: string): boolean {
  const [a, b] = [Buffer.from(given), Buffer.from(token)]
  return a.length === b.length && timingSafeEqual(a, b)
}

/** An open page: gets what is new when it has taken what it got, so that a slow one holds one round of messages. */
class Page {
  readonly #response: ServerResponse
  readonly #runs: () => readonly PageRun[]
  /** What it has of each run; null before it knows the runs. */
  #positions: Position[] | null = null
  #ended = false

  constructor(response: ServerResponse, runs: () => readonly PageRun[]) {
    this.#response = response
    this.#runs = runs
  }

  /** Sends everything again. */
  restart(): void {
    this.#positions = null
  }

  send(): void {
    if (this.#ended || this.#response.writableNeedDrain || this.#response.closed) return
    const runs = this.#runs()
    if (!this.#positions) {
      this.#write('runs', runs.map(({ about }) => about) satisfies RunsMessage)
      this.#positions = runs.map(() => nothing)
    }
    for (const [i, { history, status }] of runs.entries()) {
      const [part, position] = partOf(history, this.#positions[i], i, status)
      this.#write('part', part)
      this.#positions[i] = position
    }
    if (this.#response.writableNeedDrain) this.#response.once('drain', () => this.send())
  }

  /** Sends what is left, as soon as it can, and ends. */
  end(): void {
    const last = (): void => {
      this.send()
      this.#ended = true
      this.#response.end()
    }
    if (this.#response.writableNeedDrain) this.#response.prependOnceListener('drain', last)
    else last()
  }

  #write(event: string, message: unknown): void {
    this.#response.write(`event: ${event}\ndata: ${JSON.stringify(message)}\n\n`)
  }
}
