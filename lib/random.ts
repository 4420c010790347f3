import { checkInteger, fail } from './check.js'
import { currentRecorder, refuseInCapture } from './context.js'
import { uncloneable } from './copies.js'
import { markCopy, show } from './errors.js'
import { type StepNumbers, stepKinds } from './recorder.js'

const maxSeed = Number.MAX_SAFE_INTEGER

/** A place in a stream of random numbers. */
export interface GeneratorState {
  /** The key of the stream. */
  seed: number
  /** How many draws have been made. */
  step: number
}

const asNumbers = uncloneable('a Generator belongs to its thread: send { seed, step } and call setState() there')
let setPlace: (generator: Generator, place: GeneratorState) => void

/**
 * A stream of random numbers: Philox 4×32-10 (Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3, SC11) keyed by
 * (seed, step, element). Each draw, of whatever size, takes one step, so a stream can be saved and continued as two
 * integers, and every backend draws the same bits.
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

  /** How many draws have been made. */
  get step(): number {
    return this.#step
  }

  /**
   * Continues from a saved state: that of another generator, or what {@link Generator.next} gave. Errors: OPTION.
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
    refuseInCapture(op, 'it sets a generator once')
    this.#step = step
    this.#seed = seed
  }

  /** What console.log shows. */
  [Symbol.for('nodejs.util.inspect.custom')](): string {
    return `Generator(seed ${this.#seed}, step ${this.#step})`
  }

  /** What {@link Generator.setState} takes. */
  toJSON(): GeneratorState {
    return { seed: this.#seed, step: this.#step }
  }

  /** Whether a value is a Generator and no look-alike. */
  static isGenerator(value: unknown): value is Generator {
    return typeof value === 'object' && value !== null && #seed in value
  }

  /**
   * Takes one step, and gives the state from before it. In a captured step each replay takes it, and the place of the
   * draw stands for the step.
   */
  next(): GeneratorState {
    const place = currentRecorder()?.add(
      () => this.#draw(),
      () => this.#save(),
    )
    return place === undefined ? this.#take() : { seed: this.#seed, step: place }
  }

  #draw(): StepNumbers {
    const { seed, step } = this.#take()
    return [stepKinds.draw, seed, step]
  }

  #save(): () => void {
    const seed = this.#seed
    const step = this.#step
    return () => {
      this.#seed = seed
      this.#step = step
    }
  }

  #take(): GeneratorState {
    const step = this.#step
    this.#step = step < maxSeed ? step + 1 : 0
    return { seed: this.#seed, step }
  }

  static {
    setPlace = (generator, { seed, step }) => {
      generator.#seed = seed
      generator.#step = step
    }
  }
}

/** Runs `fn`; if it throws, nothing has been drawn from `generator`. */
export function drawnOrNot<T>(generator: Generator, fn: () => T): T {
  const { seed, step } = generator
  try {
    return fn()
  } catch (error) {
    setPlace(generator, { seed, step })
    throw error
  }
}

/** The generator of this environment, which everything draws from that is given none: each worker has its own, with the same first seed. */
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

/** `fn` of one draw from `generator`, or from the environment's if none is given; if it throws, nothing has been drawn. */
export function withDraw<T>(op: string, generator: unknown, fn: (draw: GeneratorState) => T): T {
  const source = generator === undefined ? defaultGenerator : generator
  if (!Generator.isGenerator(source)) fail('OPTION', op, `generator must be a Generator, got ${show(generator)}`)
  return drawnOrNot(source, () => fn(source.next()))
}
