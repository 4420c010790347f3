/** What a run remembers for its report; travels in the checkpoint as JSON. */
export interface History {
  /** Training loss of each step, nats per character. */
  loss: number[]
  /** Share of characters that no expert had room for, mean over the layers, of each step. */
  dropped: number[]
  /** [step][layer][expert]: share of the characters whose first choice it is. */
  load: number[][][]
  evaluations: Evaluation[]
  /** Spent in training, evaluations left out. */
  seconds: number
}

export interface Evaluation {
  /** Steps done. */
  step: number
  /** On held-out text, nats per character. */
  loss: number
  sample: string
}

export const emptyHistory = (): History => ({ loss: [], dropped: [], load: [], evaluations: [], seconds: 0 })

/** Whether a value read from a file is the history of so many steps. */
export function isHistory(value: unknown, steps: number): value is History {
  const { loss, dropped, load, evaluations, seconds } = (value ?? {}) as Partial<History>
  const isWhole = (list: unknown): boolean => Array.isArray(list) && list.length === steps
  return [loss, dropped, load].every(isWhole) && Array.isArray(evaluations) && typeof seconds === 'number'
}

export const mean = (values: readonly number[]): number => values.reduce((a, b) => a + b, 0) / values.length
