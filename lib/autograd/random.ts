import { checkInteger, fail } from '../runtime/check.js'
import { markCopy, show } from '../runtime/errors.js'
import { type ReplayRow, replayRow } from '../runtime/native-ops.js'
import { uncloneable } from '../tensor/copies.js'
import { currentRecorder, refuseInCapture } from './context.js'

const maxSeed = Number.MAX_SAFE_INTEGER

/** A position in a stream of random numbers. */
export interface GeneratorState {
  /** The key of the stream. */
  seed: number
  /** The number of sampled tensors. */
  step: number
}

const asNumbers = uncloneable('a Generator belongs to its thread: send { seed, step } and call setState() there')
/** Where samples come from instead of `advance`, which takes one from a generator. */
type Sampling = (advance: () => GeneratorState) => GeneratorState
let sampling: Sampling | null = null
let restore: (generator: Generator, state: GeneratorState) => void

/**
 * A stream of random numbers: Philox 4×32-10 (Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3, SC11) keyed
 * by (seed, step, element). Sampling a tensor of any size advances one step, so the state is two integers, and every
 * backend samples the same bits.
 *
 * @example
 * ```ts
 * const generator = new Generator(7)
 * const x = randn([4, 4], { generator })
 * console.log(generator.seed, generator.step) // → 7 1
 * ```
 */
export class Generator {
  static {
    markCopy(Generator)
  }

  #seed: number
  #step: number
  /** @internal */
  protected readonly uncloneable = asNumbers

  /** `seed` and `step` are integers from 0 to 2^53 − 1, else OPTION. */
  constructor(seed = 0, step = 0) {
    this.#seed = checkInteger('Generator', 'seed', seed, 0, maxSeed)
    this.#step = checkInteger('Generator', 'step', step, 0, maxSeed)
  }

  /** The key of the stream. */
  get seed(): number {
    return this.#seed
  }

  /** The number of sampled tensors. */
  get step(): number {
    return this.#step
  }

  /**
   * Continues from a saved state: of another generator, or from {@link Generator.next}. Errors: OPTION.
   *
   * @example
   * ```ts
   * const a = new Generator(7)
   * randn([4], { generator: a })
   * const b = new Generator()
   * b.setState(a)
   * console.log(b.seed, b.step) // → 7 1
   * ```
   */
  setState(state: GeneratorState): void {
    const op = 'Generator.setState'
    if (typeof state !== 'object' || state === null)
      fail('OPTION', op, `state must be { seed, step }, got ${show(state)}`)
    const seed = checkInteger(op, 'seed', state.seed, 0, maxSeed)
    const step = checkInteger(op, 'step', state.step, 0, maxSeed)
    refuseInCapture(op, 'it sets the generator only once')
    this.#step = step
    this.#seed = seed
  }

  /** The output of console.log. */
  [Symbol.for('nodejs.util.inspect.custom')](): string {
    return `Generator(seed ${this.#seed}, step ${this.#step})`
  }

  /** The argument of {@link Generator.setState}. */
  toJSON(): GeneratorState {
    return { seed: this.#seed, step: this.#step }
  }

  /** Whether a value is a Generator of this copy of the package. */
  static isGenerator(value: unknown): value is Generator {
    return typeof value === 'object' && value !== null && #seed in value
  }

  /**
   * Advances one step and returns the previous state. In a captured step each replay advances, and `step` is the index
   * of this call in the step.
   */
  next(): GeneratorState {
    return sampling === null ? this.#next() : sampling(() => this.#next())
  }

  #next(): GeneratorState {
    const index = currentRecorder()?.add(
      'sample',
      () => this.#sample(),
      () => this.#save(),
    )
    return index === undefined ? this.#advance() : { seed: this.#seed, step: index }
  }

  #sample(): ReplayRow {
    return replayRow.sample(this.#advance())
  }

  #save(): () => void {
    const seed = this.#seed
    const step = this.#step
    return () => {
      this.#seed = seed
      this.#step = step
    }
  }

  #advance(): GeneratorState {
    const step = this.#step
    this.#step = step < maxSeed ? step + 1 : 0
    return { seed: this.#seed, step }
  }

  static {
    restore = (generator, { seed, step }) => {
      generator.#seed = seed
      generator.#step = step
    }
  }
}

/** Calls `fn`, and returns its value and the samples that it took from any generator. */
export function loggingSamples<T>(fn: () => T): { value: T; samples: readonly GeneratorState[] } {
  const samples: GeneratorState[] = []
  const around = sampling
  const value = samplingBy((advance) => {
    const sample = around === null ? advance() : around(advance)
    samples.push(sample)
    return sample
  }, fn)
  return { value, samples }
}

/** Calls `fn`, which takes these samples again; no generator advances. Errors: UNSUPPORTED unless it takes as many. */
export function repeatingSamples<T>(op: string, samples: readonly GeneratorState[], fn: () => T): T {
  const refuse = (how: string): never =>
    fail('UNSUPPORTED', op, `the block samples ${how} random numbers the second time`)
  let at = 0
  const value = samplingBy(() => samples[at++] ?? refuse('more'), fn)
  if (at < samples.length) refuse('fewer')
  return value
}

function samplingBy<T>(how: Sampling, fn: () => T): T {
  const before = sampling
  sampling = how
  try {
    return fn()
  } finally {
    sampling = before
  }
}

/** The sequences of a process: the part `part` of `parts` equal ones of a batch. */
export interface BatchPart {
  readonly part: number
  readonly parts: number
}

let batchPart: BatchPart | null = null

/** That of the running {@link inBatchPart}. */
export const currentBatchPart = (): BatchPart | null => batchPart

/** Calls `fn`, in which routing samples what it would for the whole batch, and uses its part. */
export function inBatchPart<T>(part: BatchPart, fn: () => T): T {
  const before = batchPart
  batchPart = part
  try {
    return fn()
  } finally {
    batchPart = before
  }
}

/** Runs `fn`; if it throws, restores the state of `generator`. */
export function restoringOnError<T>(generator: Generator, fn: () => T): T {
  const { seed, step } = generator
  try {
    return fn()
  } catch (error) {
    restore(generator, { seed, step })
    throw error
  }
}

/** The default generator of this environment. Each worker has its own, with the same initial seed. */
export const defaultGenerator = new Generator()

/**
 * Seeds this environment (main thread or worker): initial parameters, `rand`, `randn`, dropout, and the random numbers
 * of routing. `seed` is an integer from 0 to 2^53 − 1, else OPTION.
 *
 * @example
 * ```ts
 * const generator = manualSeed(42)
 * const layer = new Linear(8, 8) // the same parameters in every run
 * console.log(generator.seed) // → 42
 * ```
 */
export function manualSeed(seed: number): Generator {
  defaultGenerator.setState({ seed: checkInteger('manualSeed', 'seed', seed, 0, maxSeed), step: 0 })
  return defaultGenerator
}

/**
 * Calls `fn` with the next state of `generator`, by default the environment's; if it throws, the generator does not
 * advance.
 */
export function withSample<T>(op: string, generator: unknown, fn: (state: GeneratorState) => T): T {
  const source = generator === undefined ? defaultGenerator : generator
  if (!Generator.isGenerator(source)) fail('OPTION', op, `generator must be a Generator, got ${show(generator)}`)
  return restoringOnError(source, () => fn(source.next()))
}
