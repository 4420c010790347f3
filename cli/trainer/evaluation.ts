/** An evaluation of a run. Without imports, so that browsers take it. */
export interface Evaluation {
  /** Steps done. */
  step: number
  /** On held-out text, nats per character. */
  loss: number
  sample: string
}
