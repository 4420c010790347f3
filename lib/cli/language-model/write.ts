import { setImmediate } from 'node:timers/promises'
import { type Device, Generator, noGrad, rand, scope, setDefaultDevice, setNumThreads, tensor } from '../../index.js'
import { checkHolds, restore } from './checkpoint.js'
import { layerConflict } from './layer-options.js'
import { LanguageModel } from './model.js'
import { modelOptions } from './options.js'
import { notThisVersion, type SavedRun } from './saved-run.js'

/** The model of a run, in evaluation mode. */
export async function loadModel(
  folder: string,
  { options, text }: SavedRun,
  { device, threads }: { device: string; threads: number | null },
): Promise<LanguageModel> {
  const sizes = modelOptions(options, [...text.vocabulary].length)
  const conflict = layerConflict(sizes)
  if (conflict) throw notThisVersion(folder, conflict)
  setDefaultDevice(device as Device)
  if (threads !== null) setNumThreads(threads)
  checkHolds(folder, sizes)
  const model = new LanguageModel(sizes)
  try {
    await restore(folder, { model })
  } catch (error) {
    model.dispose()
    throw error
  }
  return model.eval()
}

export interface WriteOptions {
  seed: number
  /** Below 1 likely characters become likelier; 0 always selects the likeliest. */
  temperature: number
  /** Samples from the K likeliest characters; 0: from all. */
  topK: number
}

/** Continues `prompt` by `length` characters, each sampled from the model's distribution. */
export async function* writeOn(
  model: LanguageModel,
  prompt: readonly number[],
  length: number,
  { seed, temperature, topK }: WriteOptions,
): AsyncGenerator<number> {
  using uniforms = rand([length], { generator: new Generator(seed), dtype: 'f64', device: 'cpu' })
  const u = uniforms.dataSync()
  let seen = prompt.slice(-model.context)
  for (let i = 0; i < length; i++) {
    const logits = noGrad(() => scope(() => lastLogits(model, seen)))
    const next = sample(logits, u[i], temperature, topK)
    yield next
    seen = [...seen, next].slice(-model.context)
    await setImmediate() // lets signals in
  }
}

function lastLogits(model: LanguageModel, seen: readonly number[]): ArrayLike<number> {
  const { logits } = model.forward(tensor(Int32Array.from(seen), [1, seen.length]))
  return logits.slice(1, seen.length - 1).dataSync()
}

/** Inverse transform sampling, from the likeliest character down. */
function sample(logits: ArrayLike<number>, u: number, temperature: number, topK: number): number {
  const order = Array.from(logits, (_, i) => i).sort((a, b) => logits[b] - logits[a] || a - b)
  if (temperature === 0) return order[0]
  const among = topK > 0 ? order.slice(0, topK) : order
  const weights = among.map((i) => Math.exp((logits[i] - logits[among[0]]) / temperature))
  let left = u * weights.reduce((a, b) => a + b)
  for (const [rank, i] of among.entries()) {
    left -= weights[rank]
    if (left < 0) return i
  }
  return among.at(-1)!
}
