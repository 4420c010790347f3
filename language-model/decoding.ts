import {
  allOrNone,
  type CapturedStep,
  captureStep,
  defaultGenerator,
  keep,
  MoeError,
  noGrad,
  type ops,
  scope,
  type Tensor,
  tensor,
  zeros,
} from '../lib/index.js'
import type { LanguageModel } from './model.js'

/** Tokens of one forward. */
const maxForward = 4096
/** Of steps of so many texts. */
const maxCaptures = 4
/** Calls of a shape before its step is captured, which takes a while itself. */
const callsBeforeCapture = 2

/** A text that the model continues. */
export interface DecodedText {
  /** Where its keys and values are. */
  readonly slot: number
  /** The tokens that the model sees. */
  readonly window: readonly number[]
  /** How many of them the cache has. */
  cached: number
}

/** The model with the keys and values of so many texts; without any for 0. */
export class Decoding {
  readonly #model: LanguageModel
  readonly #caches: ops.AttentionCache[]
  readonly #steps: TokenSteps

  constructor(model: LanguageModel, slots: number) {
    this.#model = model
    const made = () => model.layers.map(({ attention }) => attention.cache(slots, model.context))
    this.#caches = slots > 0 ? allKept(made) : []
    this.#steps = new TokenSteps(model, this.#caches)
  }

  /** Calls `use` with the logits after each text. Those with as many new tokens share a forward. */
  step<T extends DecodedText>(texts: readonly T[], use: (text: T, logits: Float32Array) => void): void {
    const V = this.#model.tokenizer.size
    const groups = new Map<number, T[]>()
    for (const text of texts) {
      const count = text.window.length - text.cached
      groups.set(count, [...(groups.get(count) ?? []), text])
    }
    for (const [count, group] of groups) {
      const rows = Math.max(1, Math.floor(maxForward / count))
      for (let first = 0; first < group.length; first += rows) {
        const some = group.slice(first, first + rows)
        const logits = this.#logits(some, count)
        for (const [i, text] of some.entries()) {
          if (this.#caches.length > 0) text.cached += count
          use(text, logits.subarray(i * V, (i + 1) * V))
        }
      }
    }
  }

  #logits(texts: readonly DecodedText[], count: number): Float32Array {
    const captured = count === 1 ? this.#steps.run(texts) : null
    return captured ?? undisturbed(this.#model, () => this.#forward(texts, count).dataSync() as Float32Array)
  }

  #forward(texts: readonly DecodedText[], count: number): Tensor {
    const { device } = this.#model.head.weight
    const inputs = inputsOf(texts)
    const placed = (values: Int32Array, shape: readonly number[]) => tensor(values, shape, { device })
    const tokens = placed(inputs.tokens, [texts.length, count])
    if (this.#caches.length === 0) return this.#model.predict(tokens)
    const position = placed(inputs.position, [texts.length])
    const slot = placed(inputs.slot, [texts.length])
    return this.#model.predict(tokens, this.#caches, { position, slot })
  }

  [Symbol.dispose](): void {
    this.#steps[Symbol.dispose]()
    for (const { keys, values } of this.#caches) for (const tensor of [keys, values]) tensor.dispose()
  }
}

const inputNames = ['tokens', 'position', 'slot'] as const
type InputName = (typeof inputNames)[number]

/** The tokens that the cache does not have, and where they go. */
function inputsOf(texts: readonly DecodedText[]): Record<InputName, Int32Array> {
  return {
    tokens: Int32Array.from(texts.flatMap(({ window, cached }) => window.slice(cached))),
    position: Int32Array.from(texts, ({ cached }) => cached),
    slot: Int32Array.from(texts, ({ slot }) => slot),
  }
}

/** A captured step of one token each of so many texts. */
interface TokenStep {
  readonly inputs: Record<InputName, Tensor<'i32'>>
  readonly step: CapturedStep<Tensor>
}

/**
 * The captured steps of one token, by their number of texts. What a forward decides in JavaScript is that of the capture;
 * a model of which a module has hooks, or a forward of its own, is not captured.
 */
class TokenSteps {
  readonly #model: LanguageModel
  readonly #caches: readonly ops.AttentionCache[]
  /** The one used last at the end. */
  readonly #captured = new Map<number, TokenStep>()
  readonly #calls = new Map<number, number>()
  #capturable: boolean

  constructor(model: LanguageModel, caches: readonly ops.AttentionCache[]) {
    this.#model = model
    this.#caches = caches
    this.#capturable = caches.length > 0
  }

  /** The logits after each text, or null where they have to be computed. */
  run(texts: readonly DecodedText[]): Float32Array | null {
    const found = this.#find(texts.length)
    if (!found) return null
    const values = inputsOf(texts)
    for (const name of inputNames) found.inputs[name].copyFrom(values[name])
    try {
      return withRandomState(() => found.step.replay().dataSync() as Float32Array)
    } catch (error) {
      if (!(error instanceof MoeError) || error.code !== 'DISPOSED') throw error
      this.#captured.delete(texts.length)
      free(found) // a parameter is elsewhere now, in another format, or disposed
      return null
    }
  }

  #find(count: number): TokenStep | null {
    const known = this.#captured.get(count)
    if (known) {
      this.#captured.delete(count)
      this.#captured.set(count, known)
      return known
    }
    const calls = (this.#calls.get(count) ?? 0) + 1
    this.#calls.set(count, calls)
    if (calls <= callsBeforeCapture || !this.#capturable) return null
    const made = this.#capture(count)
    if (made) this.#captured.set(count, made)
    for (const [first, step] of this.#captured) {
      if (this.#captured.size <= maxCaptures) break
      this.#captured.delete(first)
      free(step)
    }
    return made
  }

  #capture(count: number): TokenStep | null {
    const model = this.#model
    for (const module of model.modules()) if (Object.hasOwn(module, 'forward')) this.#capturable = false
    if (!this.#capturable) return null
    const { device } = model.head.weight
    try {
      return allOrNone(() => {
        const input = (shape: readonly number[]) => keep(zeros(shape, { dtype: 'i32', device }))
        const inputs = { tokens: input([count, 1]), position: input([count]), slot: input([count]) }
        const { tokens, ...place } = inputs
        const predict = () => model.predict(tokens, this.#caches, place)
        return { inputs, step: undisturbed(model, () => captureStep(predict, { device })) }
      })
    } catch (error) {
      if (!(error instanceof MoeError) || (error.code !== 'UNSUPPORTED' && error.code !== 'OUT_OF_MEMORY')) throw error
      this.#capturable = false
      return null
    }
  }

  [Symbol.dispose](): void {
    for (const step of this.#captured.values()) free(step)
  }
}

function free({ inputs, step }: TokenStep): void {
  step.dispose()
  for (const name of inputNames) inputs[name].dispose()
}

/** Caches that live until disposed; if there is no memory for all, none. */
function allKept(make: () => ops.AttentionCache[]): ops.AttentionCache[] {
  return allOrNone(() => {
    const caches = make()
    for (const { keys, values } of caches) for (const tensor of [keys, values]) keep(tensor)
    return caches
  })
}

/** In evaluation mode, without a tape, and with the random state as before. */
function undisturbed<T>(model: LanguageModel, fn: () => T): T {
  const modes = Array.from(model.modules(), (module) => ({ module, training: module.training }))
  model.eval()
  try {
    return withRandomState(() => noGrad(() => scope(fn)))
  } finally {
    for (const { module, training } of modes) if (module.training !== training) module.train(training) // outer ones first
  }
}

/** The random numbers of others do not advance. */
function withRandomState<T>(fn: () => T): T {
  const { seed, step } = defaultGenerator
  try {
    return fn()
  } finally {
    defaultGenerator.setState({ seed, step })
  }
}
