import { type ChildProcessWithoutNullStreams, spawn } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import { referencePython } from '../test/support/python.js'

const script = fileURLToPath(new URL('peers/server.py', import.meta.url))

/** A Python process with PyTorch that does one thing after another: peers/server.py. */
export class Peer {
  readonly #folder = mkdtempSync(join(tmpdir(), 'st-moe-bench-'))
  readonly #process: ChildProcessWithoutNullStreams
  readonly #lines: AsyncIterator<string>
  #stderr = ''

  /** Starts one; installs PyTorch and st-moe-pytorch in build/parity-venv the first time. */
  constructor() {
    const found = referencePython()
    if ('reason' in found)
      throw new Error(`there is no PyTorch to compare with (--no-peers does without): ${found.reason}`)
    this.#process = spawn(found.python, ['-W', 'ignore', script])
    this.#process.stderr.on('data', (text) => {
      this.#stderr = (this.#stderr + text).slice(-2000)
    })
    this.#process.stdin.on('error', () => {}) // it has ended: reading says so
    this.#lines = createInterface(this.#process.stdout)[Symbol.asyncIterator]()
  }

  async ask<T = unknown>(request: { do: string } & Record<string, unknown>): Promise<T> {
    this.#process.stdin.write(`${JSON.stringify(request)}\n`)
    const { value, done } = await this.#lines.next()
    if (done) throw new Error(`the PyTorch process ended: ${this.#stderr}`)
    const answer = JSON.parse(value)
    if (answer.error !== undefined) throw new Error(`${request.do}: ${answer.error}`)
    return ('value' in answer ? answer.value : answer) as T
  }

  /** Milliseconds of one run. */
  time(name: string, kind: string): Promise<number> {
    return this.ask({ do: 'time', name, kind })
  }

  /** How many threads it uses from now on. Returns the version of PyTorch. */
  async threads(count: number): Promise<string> {
    return (await this.ask<{ torch: string }>({ do: 'threads', count })).torch
  }

  /** Path of a file for what is exchanged, until `end`. */
  file(name: string): string {
    return join(this.#folder, `${name}.safetensors`)
  }

  end(): void {
    this.#process.stdin.end()
    rmSync(this.#folder, { recursive: true, force: true })
  }
}
