import { setImmediate } from 'node:timers/promises'
import { crossEntropy, type Generator, noGrad, ops, type ProcessGroup, scope, tensor, utils } from '../lib/index.js'
import { sequencesAt } from './batches.js'
import type { LanguageModel } from './model.js'
import type { TokenArray } from './token-array.js'

/**
 * Runs `fn` with the model in evaluation mode and restores the random state, so that evaluations do not change
 * training. `generator` is the one of the training, as a rule {@link defaultGenerator}.
 *
 * @example
 * ```ts
 * const model = new LanguageModel({ tokenizer: CharacterTokenizer.of('abc'), context: 8, dim: 16, layers: 1 })
 * console.log(await evaluating(model, defaultGenerator, () => model.training), model.training) // → false true
 * ```
 */
export async function evaluating<T>(model: LanguageModel, generator: Generator, fn: () => T | Promise<T>): Promise<T> {
  const { seed, step } = generator
  model.eval()
  try {
    return await fn()
  } finally {
    model.train()
    generator.setState({ seed, step })
  }
}

/** A target that does not count. */
const ignored = -100

/** Over the ranks. */
const sumOf = (value: number, group: ProcessGroup | null): number =>
  group ? scope(() => ops.allReduce(tensor(Float64Array.of(value), [1], { device: 'cpu' }), group).item()) : value

/** Options of {@link heldOutLoss}. */
export interface HeldOutLossOptions {
  /** The fraction of the sequences to use, evenly spread. Default 1. */
  part?: number
  /** Sequences per forward. Default 32. */
  batch?: number
  /** Asked after each forward: whether to give up. All ranks of `group` answer the same. */
  stopped?: () => boolean
  /** Its ranks share out the sequences; all call it, and get the same loss. */
  group?: ProcessGroup | null
}

/**
 * Mean loss of the model over a text in nats per token, on consecutive sequences of its context. Returns null if
 * stopped. Errors: OPTION if the text has no more tokens than the context; those of collectives.
 *
 * @example
 * ```ts
 * const tokenizer = CharacterTokenizer.of('abc')
 * const model = new LanguageModel({ tokenizer, context: 8, dim: 16, layers: 1 }).eval()
 * const loss = await heldOutLoss(model, tokenizer.encode('abc'.repeat(100)))
 * console.log(loss! > 0) // → true
 * ```
 */
export async function heldOutLoss(
  model: LanguageModel,
  text: TokenArray,
  { part = 1, stopped = () => false, batch = 32, group = null }: HeldOutLossOptions = {},
): Promise<number | null> {
  const { context } = model
  if (text.length <= context)
    utils.fail('OPTION', 'heldOutLoss', `text must have more tokens than the context of ${context}, got ${text.length}`)
  const count = Math.floor((text.length - 1) / context)
  const used = Math.max(1, Math.round(count * part))
  const starts = Array.from({ length: used }, (_, i) => Math.floor((i * count) / used) * context)
  const { rank, size } = group ?? { rank: 0, size: 1 }
  let total = 0
  for (let i = 0; i < used; i += batch * size) {
    const some = starts.slice(i, i + batch * size)
    const each = Math.ceil(some.length / size)
    const own = some.slice(rank * each, (rank + 1) * each)
    const missing = Array<number>(each - own.length).fill(some[0]) // ranks that share out experts have as many sequences
    const { input, target } = sequencesAt(text, [...own, ...missing], context)
    const counted = target.fill(ignored, own.length * context)
    const shape = [each, context]
    const loss = noGrad(() =>
      scope(() => {
        const { logits } = model.forward(tensor(input, shape))
        return crossEntropy(logits, tensor(counted, shape), { ignoreIndex: ignored }).item()
      }),
    )
    total += loss * own.length
    await setImmediate() // lets signals in
    if (stopped()) return null
  }
  return sumOf(total, group) / used
}
