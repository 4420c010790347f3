import { once } from 'node:events'
import { type ClientRequest, get, type IncomingMessage } from 'node:http'
import type { History } from '../../cli/trainer/history.js'
import { nothing, partOf } from '../../cli/ui/feed.js'
import { type Part, Received, type RunAbout } from '../../cli/ui/messages.js'

/** A page without a browser: follows the events of a server. */
export class PageReader {
  readonly received = new Received()
  /** Events by name, as they came. */
  readonly events: string[] = []
  readonly closed: Promise<unknown>
  readonly #request: ClientRequest
  #rest = ''

  private constructor(request: ClientRequest, response: IncomingMessage) {
    this.#request = request
    this.closed = new Promise((resolve) => response.once('close', resolve))
    response.setEncoding('utf8').on('data', (data) => this.#take(data))
    response.on('error', () => {})
  }

  static async open(url: string): Promise<PageReader> {
    const request = get(`${url}events`)
    const [response] = await once(request, 'response')
    return new PageReader(request, response)
  }

  close(): void {
    this.#request.destroy()
  }

  #take(data: string): void {
    const messages = (this.#rest + data).split('\n\n')
    this.#rest = messages.pop()!
    for (const message of messages) {
      const [, event, json] = /^event: (\w+)\ndata: (.*)$/.exec(message) ?? []
      if (event === undefined) continue
      this.events.push(event)
      if (event === 'runs') this.received.setRuns(JSON.parse(json))
      else this.received.addPart(JSON.parse(json))
    }
  }
}

/** The status and headers of one request, and its body. */
export async function ask(url: string, options: { method?: string; headers?: Record<string, string> } = {}) {
  const request = get(url, { agent: false, ...options })
  const [response] = (await once(request, 'response')) as [IncomingMessage]
  let body = ''
  for await (const data of response.setEncoding('utf8')) body += data
  return { status: response.statusCode, headers: response.headers, body }
}

/** A run of no folder. */
export const about: RunAbout = {
  name: 'runs/a',
  text: 'book.txt',
  steps: 1e6,
  charactersPerStep: 32,
  experts: 4,
  flags: { steps: '1000000' },
}
export const running = { state: 'running' } as const

/** What a page shows that opens now. */
export function fresh(history: History): Part {
  const received = new Received()
  received.setRuns([about])
  received.addPart(partOf(history, nothing, 0, running)[0])
  return received.runs[0].part!
}
