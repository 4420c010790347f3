import type { Report } from '../trainer/progress.js'
import { visible } from '../visible.js'
import type { ShownRun } from './feed.js'
import { type PageRun, PageServer } from './server.js'

/** The page of a run that trains. */
export class LivePage {
  readonly #server: PageServer
  #run: PageRun | null = null

  private constructor(server: PageServer) {
    this.#server = server
  }

  /** Port 0 is a free one. */
  static async open(port: number): Promise<LivePage> {
    return new LivePage(await PageServer.open(port, '--ui-port'))
  }

  get url(): string {
    return this.#server.url
  }

  /** Shows a run. Its history goes on changing: {@link report} says when. */
  show(run: ShownRun): void {
    this.#run = { ...run, status: { state: 'running' } }
    this.#server.show([this.#run])
  }

  readonly report: Report = (event) => {
    if (event.event === 'end') this.#end({ state: event.step < event.steps ? 'stopped' : 'finished' })
    this.#server.update()
  }

  /** Closes the page when `train` ends, and says on it how that was. */
  async during<T>(train: () => Promise<T>): Promise<T> {
    try {
      return await train()
    } catch (error) {
      this.#end({ state: 'failed', reason: visible((error as Error).message) })
      throw error
    } finally {
      await this.#server.close()
    }
  }

  #end(status: PageRun['status']): void {
    if (this.#run) this.#run.status = status
  }
}
