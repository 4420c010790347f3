import { fail } from './check.js'
import type { Tensor } from './tensor.js'

/** What a replay tells the device about one draw or one update: kind, seed, step, lr, beta1, beta2, eps, weightDecay. */
export type StepNumbers = readonly [kind: number, seed: number, step: number, ...rest: number[]]
export const stepKinds = { draw: 0, adamw: 1, sgd: 2 } as const
const width = 8

interface Entry {
  /** Counts on, and gives the numbers of this replay. */
  advance: () => StepNumbers
  /** Remembers the count; the function that it returns puts it back. */
  save: () => () => void
}

/** The gradient of a leaf before the captured step, and whether the step cleared it before it added to it. */
interface GradNote {
  readonly before: Tensor | null
  readonly cleared: boolean
}

/** What a step that is being captured does outside of the device: draws, counts of optimizers, gradients of leaves. */
export class Recorder {
  readonly #entries: Entry[] = []
  readonly #grads = new Map<Tensor, GradNote>()

  /** The place of a draw or an update, which stands for its step while the step is captured. */
  add(advance: () => StepNumbers, save: () => () => void): number {
    return this.#entries.push({ advance, save })
  }

  /** The numbers of the next replay, which `run` gets; when that fails, all counts are as before. */
  replay(run: (numbers: Float64Array) => void): void {
    const undo = this.#entries.map(({ save }) => save())
    try {
      const numbers = new Float64Array(width * this.#entries.length)
      for (const [i, { advance }] of this.#entries.entries()) numbers.set(advance(), width * i)
      run(numbers)
    } catch (error) {
      for (const restore of undo) restore()
      throw error
    }
  }

  /** `leaf.grad` is about to be set, or added to. */
  noteGrad(leaf: Tensor, before: Tensor | null, cleared: boolean): void {
    if (!this.#grads.has(leaf)) this.#grads.set(leaf, { before, cleared })
  }

  /** Whether a gradient is one that an exception would bring back. */
  mayReturn(leaf: Tensor, grad: Tensor | null): boolean {
    return grad !== null && this.#grads.get(leaf)?.before === grad
  }

  /** A replay does what the recorded step did: that must not hang on a gradient that only the first step finds. */
  checkGrads(op: string): void {
    for (const [leaf, { before, cleared }] of this.#grads) {
      if (cleared || leaf.grad === before) continue
      const when =
        before === null ? 'has none before the step and one after it' : 'has one before the step and none after it'
      fail('UNSUPPORTED', op, `the gradient of a parameter ${when}: call zeroGrad() at the start of the step`)
    }
  }

  /** The step stands: frees the gradients that it replaced. */
  settle(): void {
    for (const [leaf, { before }] of this.#grads) if (before !== leaf.grad) before?.dispose()
  }

  /** The step is given up: every leaf has its gradient back. `put` sets one. */
  undo(put: (leaf: Tensor, grad: Tensor | null) => void): void {
    for (const [leaf, { before }] of this.#grads) {
      const after = leaf.grad
      if (after === before) continue
      put(leaf, before)
      after?.dispose()
    }
  }
}
