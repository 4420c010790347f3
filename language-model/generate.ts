import { setImmediate } from 'node:timers/promises'
import { types } from 'node:util'
import { Generator, rand, utils } from '../lib/index.js'
import { type DecodedText, Decoding } from './decoding.js'
import type { LanguageModel } from './model.js'
import { sample } from './sample.js'
import { TextStop } from './stop.js'
import type { TokenDecoder } from './tokenizer.js'

const { boolean, integer, number, unchecked } = utils

const generateOptions = {
  /** Tokens to generate, of each prompt. Default 400. */
  maxTokens: integer({ min: 1, default: 400 }),
  /** Below 1 likely tokens become likelier; 0 always chooses the likeliest. Default 1. */
  temperature: number({ min: 0, default: 1 }),
  /** Samples from the K likeliest tokens; 0: from all. Default 0. */
  topK: integer({ min: 0, default: 0 }),
  /** Samples from the fewest tokens whose probabilities have this sum (Holtzman et al., arXiv 1904.09751). Default 1. */
  topP: number({ min: 0, max: 1, default: 1 }),
  /** The same seed generates the same text. Default 0. */
  seed: integer({ min: 0, default: 0 }),
  /** Texts before which a text ends. */
  stop: unchecked<string | readonly string[]>({ default: [] }),
  /** Keys and values of earlier tokens are kept; the text is the same without, and later. Default true. */
  cache: boolean({ default: true }),
  /** Ends the generation with the reason of the signal. */
  signal: utils.abortSignal(),
}

/** Options of {@link LanguageModel.generate}. */
export interface GenerateOptions extends utils.OptionsOf<typeof generateOptions> {}

const readOptions = utils.reader(generateOptions)

const maxPrompts = 4096
/** Random numbers that are made at once. */
const block = 1024

/** Checks the arguments now. */
export function generated(
  op: string,
  model: LanguageModel,
  given: readonly string[],
  options: GenerateOptions | undefined,
): AsyncGenerator<string[], void, undefined> {
  const o = readOptions(op, options)
  const stops = typeof o.stop === 'string' ? [o.stop] : utils.copyArray(op, 'stop', o.stop, 1000)
  for (const stop of stops)
    if (typeof stop !== 'string' || stop === '')
      utils.fail('OPTION', op, `stop must hold texts, got ${utils.show(stop)}`)
  const prompts = utils.copyArray(op, 'prompts', given, maxPrompts)
  const texts = prompts.map((prompt, i) => {
    if (typeof prompt !== 'string' || prompt === '')
      utils.fail('OPTION', op, `a prompt must be a text that is not empty, got ${utils.show(prompt)}`)
    const tokens: unknown = model.tokenizer.encode(prompt)
    if (!types.isInt32Array(tokens) || tokens.length === 0)
      utils.fail(
        'OPTION',
        op,
        `tokenizer.encode must return an Int32Array of at least one token, got ${utils.show(tokens)}`,
      )
    return new Text(
      i,
      tokens.slice(-model.context),
      model.tokenizer.decoder(),
      new Generator(o.seed + i),
      new TextStop(stops as string[]),
    )
  })
  return pieces(model, texts, o)
}

async function* pieces(
  model: LanguageModel,
  texts: readonly Text[],
  o: ReturnType<typeof readOptions>,
): AsyncGenerator<string[], void, undefined> {
  using decoding = new Decoding(model, o.cache ? texts.length : 0)
  for (let left = o.maxTokens; left > 0; left--) {
    await setImmediate() // lets signals in
    if (o.signal?.aborted) throw o.signal.reason
    const live = texts.filter(({ ended }) => !ended)
    if (live.length === 0) return
    decoding.step(live, (text, logits) => text.add(sample(logits, text.uniform(), o), model.context, left === 1))
    yield texts.map((text) => text.take())
  }
}

/** One of the texts that are generated together. */
class Text implements DecodedText {
  readonly slot: number
  window: number[]
  cached = 0
  ended = false
  #piece = ''
  #uniforms: ArrayLike<number> = []
  #used = 0
  readonly #decoder: TokenDecoder
  readonly #generator: Generator
  readonly #stop: TextStop

  constructor(slot: number, window: Int32Array, decoder: TokenDecoder, generator: Generator, stop: TextStop) {
    this.slot = slot
    this.window = [...window]
    this.#decoder = decoder
    this.#generator = generator
    this.#stop = stop
  }

  /** The next number in [0, 1). */
  uniform(): number {
    if (this.#used === this.#uniforms.length) {
      using made = rand([block], { generator: this.#generator, dtype: 'f64', device: 'cpu' })
      this.#uniforms = made.dataSync()
      this.#used = 0
    }
    return this.#uniforms[this.#used++]
  }

  /** A full window begins again with its last half, whose positions are others. */
  add(token: number, context: number, last: boolean): void {
    if (this.window.length === context) {
      this.window = this.window.slice(-(context >> 1))
      this.cached = 0
    }
    this.window.push(token)
    const text = this.#decoder.write(token)
    this.#piece = this.#stop.write(last ? text + this.#decoder.end() : text, last)
    this.ended = this.#stop.found
  }

  /** What the text has become longer by. */
  take(): string {
    const piece = this.#piece
    this.#piece = ''
    return piece
  }
}
