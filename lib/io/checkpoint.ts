import { checkInteger, checkOptions, fail } from '../check.js'
import { MoeError, show } from '../errors.js'
import { Module, type StateDict, stageState } from '../nn/module.js'
import { Optimizer, stageOptimizer } from '../optim/optimizer.js'
import { defaultGenerator, Generator } from '../random.js'
import { scope } from '../scope.js'
import { loadSafetensors, saveSafetensors } from './safetensors.js'

/** What a checkpoint is taken of, and restored into. */
export interface CheckpointTargets {
  /** Its state dict is kept. */
  model: Module
  /** Its state dict is kept too. */
  optimizer?: Optimizer
  /** Default: the environment's. */
  generator?: Generator
}

/** Where a run stands. */
export interface CheckpointProgress {
  /** Training steps done. */
  step: number
  /** Anything else to continue from, such as the position in the data; must survive JSON. */
  extra?: unknown
}

/** What {@link saveCheckpoint} writes. */
export interface Checkpoint extends CheckpointTargets, CheckpointProgress {}

const names = ['model', 'optimizer', 'generator'] as const

function checkTargets(
  op: string,
  targets: Partial<CheckpointTargets>,
): Required<Pick<CheckpointTargets, 'model' | 'generator'>> & CheckpointTargets {
  const { model, optimizer, generator = defaultGenerator } = targets
  if (!(model instanceof Module)) fail('OPTION', op, `model must be a Module, got ${show(model)}`)
  if (optimizer !== undefined && !(optimizer instanceof Optimizer))
    fail('OPTION', op, `optimizer must be an optimizer, got ${show(optimizer)}`)
  if (!Generator.isGenerator(generator)) fail('OPTION', op, `generator must be a Generator, got ${show(generator)}`)
  return { model, optimizer, generator }
}

const prefixed = (prefix: string, state: StateDict): StateDict =>
  Object.fromEntries(Object.entries(state).map(([name, value]) => [prefix + name, value]))

const unprefixed = (prefix: string, state: StateDict): StateDict =>
  Object.fromEntries(
    Object.entries(state).flatMap(([name, value]) =>
      name.startsWith(prefix) ? [[name.slice(prefix.length), value]] : [],
    ),
  )

/**
 * Writes model, optimizer, step, generator and data position to one safetensors file, which appears whole or not at
 * all. A run that is resumed from it continues bit for bit. Errors: OPTION, DISPOSED, and those of the file system.
 *
 * @example
 * ```ts
 * const model = new Linear(8, 8)
 * const optimizer = new AdamW(model.parameters())
 * await saveCheckpoint('run.safetensors', { model, optimizer, step: 100, extra: { position: 4096 } })
 * console.log(await loadCheckpoint('run.safetensors', { model, optimizer })) // → { step: 100, extra: { position: 4096 } }
 * ```
 */
export async function saveCheckpoint(path: string, checkpoint: Checkpoint): Promise<void> {
  const op = 'saveCheckpoint'
  const { step, extra, ...rest } = checkOptions<Checkpoint>(op, checkpoint, [...names, 'step', 'extra'])
  checkInteger(op, 'step', step, 0)
  const { model, optimizer, generator } = checkTargets(op, rest)
  const state = scope(() => ({
    ...prefixed('model.', model.stateDict()),
    ...prefixed('optimizer.', optimizer?.stateDict() ?? {}),
  }))
  const about = {
    step,
    extra,
    optimizer: optimizer !== undefined,
    generator: { seed: generator.seed, step: generator.step },
  }
  try {
    await saveSafetensors(path, state, { metadata: { 'st-moe.checkpoint': JSON.stringify(about) } })
  } finally {
    for (const tensor of Object.values(state)) tensor.dispose()
  }
}

/**
 * Restores what {@link saveCheckpoint} wrote into `targets`, all of it or nothing, and gives step and extra.
 *
 * Errors: FILE_FORMAT where the file is no checkpoint, STATE_DICT where its tensors do not fit, OPTION, and those of the
 * file system.
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
  const { model, optimizer, generator } = checkTargets(op, checkOptions<CheckpointTargets>(op, targets, names))
  const { tensors, metadata } = await loadSafetensors(path)
  try {
    const about = parse(op, path, metadata['st-moe.checkpoint'])
    if (optimizer && !about.optimizer) fail('STATE_DICT', op, `${path} holds no optimizer state`)
    scope(() => {
      const writes: (() => void)[] = [stageState(model, unprefixed('model.', tensors))]
      if (optimizer) writes.push(stageOptimizer(optimizer, unprefixed('optimizer.', tensors)))
      for (const write of writes) write() // all or nothing: these cannot fail
    })
    generator.setState(about.generator)
    return { step: about.step, extra: about.extra }
  } finally {
    for (const tensor of Object.values(tensors)) tensor.dispose()
  }
}

interface About {
  step: number
  extra: unknown
  optimizer: boolean
  generator: { seed: number; step: number }
}

function parse(op: string, path: string, text: string | undefined): About {
  try {
    const about = JSON.parse(text ?? '') as About
    new Generator().setState(about.generator)
    checkInteger(op, 'step', about.step, 0)
    return about
  } catch (cause) {
    throw new MoeError('FILE_FORMAT', op, `${path} is not a checkpoint`, { cause })
  }
}
