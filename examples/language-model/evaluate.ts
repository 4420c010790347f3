import { crossEntropy, Generator, noGrad, rand, scope, tensor } from 'st-moe'
import { cut } from './data.js'
import type { LanguageModel } from './model.js'

/**
 * Runs `fn` with the model in evaluation mode, nothing recorded, and leaves the random numbers of training as they
 * were: however often a run is evaluated, it learns the same.
 */
export function evaluating<T>(model: LanguageModel, generator: Generator, fn: () => T): T {
  const { seed, step } = generator
  model.eval()
  try {
    return noGrad(fn)
  } finally {
    model.train()
    generator.setState({ seed, step })
  }
}

/**
 * Mean loss in nats per character over the text, in sequences that follow each other; with `part` below 1 over that
 * part of them, evenly spread.
 */
export function heldOutLoss(model: LanguageModel, text: Int32Array, part = 1, batch = 32): number {
  const { context } = model
  const count = Math.floor((text.length - 1) / context)
  const used = Math.max(1, Math.round(count * part))
  const starts = Array.from({ length: used }, (_, i) => Math.floor((i * count) / used) * context)
  let total = 0
  for (let i = 0; i < used; i += batch) {
    const some = starts.slice(i, i + batch)
    const { input, target } = cut(text, some, context)
    const shape = [some.length, context]
    const loss = scope(() => crossEntropy(model.forward(tensor(input, shape)).logits, tensor(target, shape)).item())
    total += loss * some.length
  }
  return total / used
}

/**
 * Continues `prompt` by `length` characters, each drawn from the model's distribution, which a `temperature` below 1
 * sharpens.
 */
export function writeOn(
  model: LanguageModel,
  prompt: readonly number[],
  length: number,
  { seed, temperature = 0.7 }: { seed: number; temperature?: number },
): number[] {
  using drawn = rand([length], { generator: new Generator(seed) })
  const random = drawn.dataSync()
  const text = [...prompt]
  for (let i = 0; i < length; i++) {
    const seen = text.slice(-model.context)
    const probabilities = scope(() => {
      const { logits } = model.forward(tensor(Int32Array.from(seen), [1, seen.length]))
      return logits
        .slice(1, seen.length - 1)
        .div(temperature)
        .softmax()
        .dataSync()
    })
    text.push(draw(probabilities, random[i]))
  }
  return text.slice(prompt.length)
}

/** The first index at which the running sum of probabilities passes `u`. */
function draw(probabilities: ArrayLike<number>, u: number): number {
  let sum = 0
  for (let i = 0; i < probabilities.length; i++) {
    sum += probabilities[i]
    if (u < sum) return i
  }
  return probabilities.length - 1
}
