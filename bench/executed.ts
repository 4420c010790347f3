/** What was executed: all instructions, vector multiply-adds, and those that read or write memory. */
export interface Counts {
  all: number
  fma: number
  memory: number
}

const none = (): Counts => ({ all: 0, fma: 0, memory: 0 })

/** What an instruction of each kind matches, as QEMU prints it. */
export type Kinds = Record<'fma' | 'memory', RegExp>

/**
 * Adds up a log of `qemu-… -d in_asm,exec,nochain`: it lists the instructions of a block when the block is translated,
 * and its address whenever the block runs.
 */
export class ExecutedCounter {
  readonly total = none()
  readonly #kinds: Kinds
  readonly #blocks = new Map<string, Counts>()
  #translated: Counts | undefined

  constructor(kinds: Kinds) {
    this.#kinds = kinds
  }

  /** One line of the log. Throws if a block runs that was not listed. */
  add(line: string): void {
    if (line.startsWith('Trace')) this.#run(line)
    if (line.startsWith('IN:')) this.#translated = undefined
    const [, address, instruction] = /^0x([0-9a-f]+): {2}(?:[0-9a-f]{2,8} )+ *([a-z].*)$/.exec(line) ?? []
    if (!instruction) return
    if (!this.#translated) {
      this.#translated = none()
      this.#blocks.set(address.padStart(16, '0'), this.#translated)
    }
    this.#translated.all++
    for (const kind of ['fma', 'memory'] as const) if (this.#kinds[kind].test(instruction)) this.#translated[kind]++
  }

  #run(line: string): void {
    const block = this.#blocks.get(line.split('/', 2)[1])
    if (!block) throw new Error(`QEMU ran a block that it has not listed: ${line}`)
    this.total.all += block.all
    this.total.fma += block.fma
    this.total.memory += block.memory
  }
}
