import type { Decision } from '../autograd/recorder.js'
import { hasHostMemory } from '../runtime/device.js'
import type { Tensor } from '../tensor/tensor.js'

/** The step count of a parameter. */
interface Counted {
  step: number
}

/** A replay that the device takes or skips: by the norm of the gradients, and the counts that have taken it as taken. */
interface OpenReplay {
  readonly norm: Tensor
  readonly states: readonly Counted[]
}

/**
 * The steps that an optimizer has skipped. A replay counts as taken until its decision is read: after the replay if its
 * device shares memory with the host, else before whatever needs the counts, because it waits.
 */
export class Skips {
  count = 0
  #open: OpenReplay | null = null

  /** Reads the decision of the latest replay, if nobody has. */
  settle(): void {
    const open = this.#open
    if (!open) return
    if (!Number.isFinite(open.norm.item())) {
      this.count++
      for (const state of open.states) state.step--
    }
    this.#open = null
  }

  /** The decision of each replay of a captured step about the states, by a norm that lives as long as the step. */
  decision(norm: Tensor, states: readonly Counted[]): Decision {
    return {
      settle: () => this.settle(),
      replayed: () => {
        this.#open = { norm, states }
        if (hasHostMemory(norm.device)) this.settle()
      },
      dispose: () => {
        if (this.#open?.norm === norm) this.settle()
        norm.dispose()
      },
    }
  }
}
