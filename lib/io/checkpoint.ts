import { checkInteger, checkOptions, fail } from '../check.js'
import { MoeError, show } from '../errors.js'
import { Module, type StateDict, stageState } from '../nn/module.js'
import { checkpointOf, isOptimizer, type Optimizer, type OptimizerOptions, stageOptimizer } from '../optim/optimizer.js'
import { defaultGenerator, Generator, type GeneratorState } from '../random.js'
import { scope } from '../scope.js'
import { writeAtomic } from './atomic.js'
import { checkPath, run } from './files.js'
import { fromJson, isPlain, toJson } from './json.js'
import { encode, load } from './tensor-file.js'

/** The objects that a checkpoint restores. */
export interface CheckpointTargets {
  /** Saved as its state dict. */
  model: Module
  /** One optimizer, or an object of several by names without dots. Saved as state dicts and options, such as `lr`. */
  optimizer?: Optimizer | Readonly<Record<string, Optimizer>>
  /** Its random state is restored; {@link defaultGenerator} is that of the environment. Default: none. */
  generator?: Generator
}

/** The progress of a run. */
export interface CheckpointProgress {
  /** Number of completed training steps. */
  step: number
  /**
   * Additional state, such as the position in the data: numbers, strings, booleans and null, and arrays and objects of
   * them. Values that JSON cannot represent are an error.
   */
  extra?: unknown
}

/** What {@link saveCheckpoint} writes. */
export interface Checkpoint extends CheckpointTargets, CheckpointProgress {
  /** The generator whose state is saved. Default: {@link defaultGenerator}. */
  generator?: Generator
}

const names = ['model', 'optimizer', 'generator'] as const
const aboutKey = 'st-moe.checkpoint'

type Named = [name: string | null, optimizer: Optimizer]

function checkTargets(
  op: string,
  { model, optimizer, generator }: Partial<CheckpointTargets>,
): { model: Module; optimizers: Named[]; generator: Generator | undefined } {
  if (!(model instanceof Module)) fail('OPTION', op, `model must be a Module, got ${show(model)}`)
  if (generator !== undefined && !Generator.isGenerator(generator))
    fail('OPTION', op, `generator must be a Generator, got ${show(generator)}`)
  return { model, optimizers: optimizer === undefined ? [] : namedOptimizers(op, optimizer), generator }
}

/** A single optimizer has the name null. */
function namedOptimizers(op: string, value: unknown): Named[] {
  if (isOptimizer(value)) return [[null, value]]
  if (typeof value !== 'object' || value === null || Array.isArray(value) || !isPlain(value))
    fail('OPTION', op, `optimizer must be an optimizer, or an object of optimizers by name, got ${show(value)}`)
  return Object.entries(value).map(([name, optimizer]) => {
    if (!isOptimizer(optimizer))
      fail('OPTION', op, `optimizer[${show(name)}] must be an optimizer, got ${show(optimizer)}`)
    if (name === '' || name.includes('.'))
      fail('OPTION', op, `optimizers must have names without dots, got ${show(name)}`)
    return [name, optimizer]
  })
}

const shown = (name: string | null): string => (name === null ? 'the optimizer' : `optimizer ${show(name)}`)

/** Names without dots, so that `optimizer.0.step` and `optimizer.0.0.step` are distinct. */
const prefixOf = (name: string | null): string => (name === null ? 'optimizer.' : `optimizer.${name}.`)

const prefixed = (prefix: string, state: StateDict): StateDict =>
  Object.fromEntries(Object.entries(state).map(([name, value]) => [prefix + name, value]))

const unprefixed = (prefix: string, state: StateDict): StateDict =>
  Object.fromEntries(
    Object.entries(state).flatMap(([name, value]) =>
      name.startsWith(prefix) ? [[name.slice(prefix.length), value]] : [],
    ),
  )

/**
 * Writes the model, optimizers with their options, the step, the random state and `extra` to one safetensors file,
 * atomically. A run that resumes from it continues bit for bit. Throws, and does not touch the previous file, if
 * {@link loadCheckpoint} could not read the new one.
 *
 * Errors: OPTION, DISPOSED, FILE_SYSTEM; NON_FINITE if the state of an optimizer is not finite.
 *
 * @example
 * ```ts
 * const model = new Linear(8, 8)
 * const optimizer = new AdamW(model.parameters())
 * await saveCheckpoint('run.safetensors', { model, optimizer, step: 100, extra: { position: 4096 } })
 * const { step, extra } = await loadCheckpoint('run.safetensors', { model, optimizer, generator: defaultGenerator })
 * console.log(step, extra) // → 100 { position: 4096 }
 * ```
 */
export async function saveCheckpoint(path: string, checkpoint: Checkpoint): Promise<void> {
  const op = 'saveCheckpoint'
  const { step, extra, ...rest } = checkOptions<Checkpoint>(op, checkpoint, [...names, 'step', 'extra'])
  checkInteger(op, 'step', step, 0)
  const { model, optimizers, generator = defaultGenerator } = checkTargets(op, rest)
  const file = checkPath(op, path)
  const { state, saved } = scope(() => {
    const parts = optimizers.map(([name, optimizer]) => ({ name, ...checkpointOf(optimizer, op) }))
    const states = parts.map(({ name, state }) => prefixed(prefixOf(name), state))
    return {
      state: Object.assign(prefixed('model.', model.stateDict()), ...states) as StateDict,
      saved: parts.map(({ name, options }) => ({ name, options })),
    }
  })
  try {
    const { seed, step: position } = generator
    const about: About = { step: step as number, extra, optimizers: saved, generator: { seed, step: position } }
    const metadata = { [aboutKey]: toJson(op, about, 'extra') }
    await writeAtomic(file, encode(op, state, metadata), op)
  } finally {
    for (const tensor of Object.values(state)) tensor.dispose()
  }
}

/**
 * Restores the targets from a file of {@link saveCheckpoint}, all or none, and returns `step` and `extra`. Optimizers
 * get their saved options: to use another `lr`, set it after the load. The random state is restored only if `generator`
 * is given.
 *
 * Errors: FILE_FORMAT if the file is not a checkpoint, STATE_DICT if it does not match the targets, OPTION,
 * FILE_SYSTEM.
 *
 * @example
 * ```ts
 * const model = new Linear(8, 8)
 * await saveCheckpoint('run.safetensors', { model, step: 100 })
 * const resumed = new Linear(8, 8)
 * const { step } = await loadCheckpoint('run.safetensors', { model: resumed })
 * console.log(step, resumed.weight.sub(model.weight).abs().sum().item()) // → 100 0
 * ```
 */
export async function loadCheckpoint(path: string, targets: CheckpointTargets): Promise<CheckpointProgress> {
  const op = 'loadCheckpoint'
  const { model, optimizers, generator } = checkTargets(op, checkOptions<CheckpointTargets>(op, targets, names))
  const { tensors, metadata } = await run(load(op, path))
  try {
    const about = parse(op, path, metadata)
    scope(() => {
      const stage = ([name, optimizer]: Named): (() => void) => {
        const options = savedOptions(op, path, about, name)
        const state = unprefixed(prefixOf(name), tensors)
        return stageOptimizer(optimizer, op, `${path}: the state of ${shown(name)}`, state, options)
      }
      const ofOptimizers = optimizers.map(stage)
      const ofModel = stageState(model, op, `${path}: the state of the model`, unprefixed('model.', tensors))
      for (const write of [ofModel, ...ofOptimizers]) write() // these cannot fail
    })
    generator?.setState(about.generator)
    return { step: about.step, extra: about.extra }
  } finally {
    for (const tensor of Object.values(tensors)) tensor.dispose()
  }
}

/** The metadata of a checkpoint. */
interface About {
  step: number
  extra: unknown
  /** Earlier versions have no options, and only a boolean `optimizer`. */
  optimizers: { name: string | null; options?: OptimizerOptions }[]
  generator: GeneratorState
}

function parse(op: string, path: string, metadata: Record<string, string>): About {
  try {
    const { optimizer, ...about } = fromJson(metadata[aboutKey] ?? '') as About & { optimizer?: boolean }
    const { step, generator, optimizers = optimizer === true ? [{ name: null }] : [] } = about
    new Generator().setState(generator)
    checkInteger(op, 'step', step, 0)
    if (!Array.isArray(optimizers) || !optimizers.every(isSaved)) throw new Error('optimizers must be a list')
    return { ...about, optimizers }
  } catch (cause) {
    throw new MoeError('FILE_FORMAT', op, `${path} is not a checkpoint`, { cause })
  }
}

const isSaved = (value: unknown): boolean => {
  const { name } = (value ?? {}) as { name?: unknown }
  return name === null || typeof name === 'string'
}

function savedOptions(op: string, path: string, { optimizers }: About, name: string | null): unknown {
  const saved = optimizers.find((optimizer) => optimizer.name === name)
  if (saved) return saved.options
  const held = optimizers.slice(0, 10).map((optimizer) => shown(optimizer.name))
  if (held.length === 0) fail('STATE_DICT', op, `${path} holds no optimizer state`)
  return fail('STATE_DICT', op, `${path} holds no state of ${shown(name)}, but of ${held.join(', ')}`)
}
