import { setImmediate } from 'node:timers/promises'
import { crossEntropy, type Generator, type LanguageModel, noGrad, scope, tensor } from '../../index.js'
import { cut } from './batches.js'

/**
 * Runs `fn` with the model in evaluation mode and restores the random state, so that evaluations do not change
 * training.
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

/**
 * Mean loss over the text in nats per token, on consecutive sequences; with `part` below 1 on that fraction of
 * them, evenly spread. Returns null if stopped.
 */
export async function heldOutLoss(
  model: LanguageModel,
  text: Int32Array,
  { part, stopped, batch = 32 }: { part: number; stopped: () => boolean; batch?: number },
): Promise<number | null> {
  const { context } = model
  const count = Math.floor((text.length - 1) / context)
  const used = Math.max(1, Math.round(count * part))
  const starts = Array.from({ length: used }, (_, i) => Math.floor((i * count) / used) * context)
  let total = 0
  for (let i = 0; i < used; i += batch) {
    const some = starts.slice(i, i + batch)
    const { input, target } = cut(text, some, context)
    const shape = [some.length, context]
    const loss = noGrad(() =>
      scope(() => crossEntropy(model.forward(tensor(input, shape)).logits, tensor(target, shape)).item()),
    )
    total += loss * some.length
    await setImmediate() // lets signals in
    if (stopped()) return null
  }
  return total / used
}
