import { fail } from '../runtime/check.js'
import type { ReplayRow } from '../runtime/native-ops.js'
import type { Tensor } from '../tensor/tensor.js'
import { onFailure, refuseInAsync } from './context.js'

interface Entry {
  readonly kind: 'sample' | 'update'
  /** Advances the count, and returns the numbers of this replay. */
  advance: () => ReplayRow
  /** Saves the count; the returned function restores it. */
  save: () => () => void
}

/** What the device decides in each replay, such as whether it skips the update. */
export interface Decision {
  /** Reads the decision of the latest replay; a replay begins with it. */
  settle(): void
  /** The device has been given a replay. */
  replayed(): void
  /** Ends with the step. */
  dispose(): void
}

/** The gradient of a leaf before the captured step, and whether the step cleared it before it added to it. */
interface GradNote {
  readonly before: Tensor | null
  readonly cleared: boolean
}

/** The host side of a captured step: random numbers, counts of optimizers, gradients of leaves. */
export class Recorder {
  readonly #entries: Entry[] = []
  readonly #grads = new Map<Tensor, GradNote>()
  readonly #decisions: Decision[] = []
  readonly #stepped = new Map<object, boolean>()

  /** Returns the index of a sample or update in the step, which replaces its step count during capture. */
  add(kind: Entry['kind'], advance: () => ReplayRow, save: () => () => void): number {
    return this.#entries.push({ kind, advance, save })
  }

  /** Of a step that ends with {@link Recorder.dispose}. */
  decide(decision: Decision): void {
    this.#decisions.push(decision)
  }

  /** The numbers of a replay are given before it runs, so no count of an optimizer may depend on a decision inside. */
  noteStep(op: string, optimizer: object, decides: boolean): void {
    const before = this.#stepped.get(optimizer)
    if (before !== undefined && (before || decides))
      fail('UNSUPPORTED', op, "with onNonFinite: 'skip' a captured step has one step of an optimizer, got a second")
    this.#stepped.set(optimizer, decides)
  }

  /**
   * Calls `run` with the numbers of the next replay; if it fails, restores all counts. If an asynchronous call fails
   * later, it restores those of its updates; the call itself restores the default generator.
   */
  replay(op: string, run: (numbers: Float64Array) => void): void {
    if (this.#decisions.length > 0)
      refuseInAsync(op, "with onNonFinite: 'skip' it waits for values, which an asynchronous call cannot do")
    for (const decision of this.#decisions) decision.settle()
    const undo = this.#entries.map(({ kind, save }) => ({ kind, restore: save() }))
    try {
      run(Float64Array.from(this.#entries.flatMap(({ advance }) => advance())))
    } catch (error) {
      for (const { restore } of undo) restore()
      throw error
    }
    onFailure(() => {
      for (const { kind, restore } of undo) if (kind === 'update') restore()
    })
    for (const decision of this.#decisions) decision.replayed()
  }

  dispose(): void {
    for (const decision of this.#decisions) decision.dispose()
  }

  /** Called before `leaf.grad` is set or added to. */
  noteGrad(leaf: Tensor, before: Tensor | null, cleared: boolean): void {
    if (!this.#grads.has(leaf)) this.#grads.set(leaf, { before, cleared })
  }

  /** Whether an exception would restore this gradient. */
  mayReturn(leaf: Tensor, grad: Tensor | null): boolean {
    return grad !== null && this.#grads.get(leaf)?.before === grad
  }

  /** A replay repeats the captured work, which must not depend on a gradient that only the first step finds. */
  checkGrads(op: string): void {
    for (const [leaf, { before, cleared }] of this.#grads) {
      if (cleared || leaf.grad === before) continue
      const when =
        before === null ? 'has none before the step and one after it' : 'has one before the step and none after it'
      fail('UNSUPPORTED', op, `the gradient of a parameter ${when}: call zeroGrad() at the start of the step`)
    }
  }

  /** Ends a successful capture: frees the gradients that it replaced. */
  settle(): void {
    for (const [leaf, { before }] of this.#grads) if (before !== leaf.grad) before?.dispose()
  }

  /** Ends a failed capture: restores the gradient of every leaf with `put`. */
  undo(put: (leaf: Tensor, grad: Tensor | null) => void): void {
    this.dispose()
    for (const [leaf, { before }] of this.#grads) {
      const after = leaf.grad
      if (after === before) continue
      put(leaf, before)
      after?.dispose()
    }
  }
}
