import { defaultGenerator, Generator, type GeneratorState } from '../autograd/random.js'
import { scope } from '../autograd/scope.js'
import { checkpointOfLoader, type DataLoader, isDataLoader, stageLoader } from '../data/loader.js'
import { Module } from '../nn/module.js'
import { sharedOut } from '../nn/shared-out.js'
import { type StateDict, stageState, stateOf } from '../nn/state.js'
import { checkpointOfEMA, type EMA, isEMA, parametersOfEMA, stageEMA } from '../optim/ema.js'
import { checkpointOf, isOptimizer, type Optimizer, stageOptimizer } from '../optim/optimizer.js'
import { checkpointOfSchedule, isSchedule, type Schedule, stageSchedule } from '../optim/schedule.js'
import { checkInteger, checkOptions, checkPath, fail, isPlain } from '../runtime/check.js'
import { MoeError, show } from '../runtime/errors.js'
import { groupHandle, type ProcessGroup } from '../runtime/process-group.js'
import { writeTogether } from './atomic.js'
import { run, runSync } from './files.js'
import { GlobalNames, type StateOf } from './global-names.js'
import { fromJson, toJson } from './json.js'
import { checkContents, type FileContent } from './plain-files.js'
import { rankFilesIn, writeRanks } from './rank-files.js'
import { checkMetadata, type SafetensorsHeader, type SafetensorsOptions } from './safetensors.js'
import { contentsIn, encode, headerIn, load } from './tensor-file.js'

/** The objects that a checkpoint restores. */
export interface CheckpointTargets {
  /** Saved as its state dict. */
  model: Module
  /** One optimizer, or an object of several by names without dots. Saved as state dicts and options, such as `lr`. */
  optimizer?: Optimizer | Readonly<Record<string, Optimizer>>
  /** One schedule, or an object of several by names without dots. Saved with its options. */
  schedule?: Schedule | Readonly<Record<string, Schedule>>
  /** One average of parameters, or an object of several by names without dots. Saved with its decay. */
  ema?: EMA | Readonly<Record<string, EMA>>
  /** One loader, or an object of several by names without dots. Saved with its position. */
  // biome-ignore lint/suspicious/noExplicitAny: of any examples
  loader?: DataLoader<any, any> | Readonly<Record<string, DataLoader<any, any>>>
  /** Its random state is restored; {@link defaultGenerator} is that of the environment. Default: none. */
  generator?: Generator
}

/** The progress of a run. */
export interface CheckpointProgress {
  /** Number of completed training steps. */
  step: number
  /**
   * Additional state, such as the position in the data: numbers other than NaN, strings, booleans and null, and arrays and
   * objects of them. Any other value throws.
   */
  extra?: unknown
}

/** What {@link loadCheckpoint} and {@link checkpointProgress} return. */
export interface LoadedProgress extends CheckpointProgress {
  /** The strings that were saved with it; without any, missing. */
  metadata?: Readonly<Record<string, string>>
}

/** Options of {@link saveCheckpoint}. */
export interface SaveCheckpointOptions extends SafetensorsOptions {
  /** Files that belong to the checkpoint: none of all is replaced until the content of each is on disk. */
  beside?: readonly FileContent[]
}

/** What {@link saveCheckpoint} writes. */
export interface Checkpoint extends CheckpointTargets, CheckpointProgress {
  /** The generator whose state is saved. Default: {@link defaultGenerator}. */
  generator?: Generator
  /**
   * Its ranks save together, and all call it: `path` is a folder, in which each writes a file with a part of the tensors, and
   * rank 0 an index at the end. Step, options, the random state and `extra` are those of rank 0.
   */
  group?: ProcessGroup
}

const aboutKey = 'st-moe.checkpoint'

/** What a checkpoint keeps besides the model: tensors, and options as JSON. */
interface Kind<T> {
  is(value: unknown): value is T
  save(target: T, op: string): { state: StateDict; options: unknown }
  stage(target: T, op: string, what: string, state: StateDict, options: unknown): () => void
  /** The parameters that its state belongs to, if it does. */
  stateOf?(target: T): StateOf
  /** Options whose numbers are those of this process. */
  optionsHere?(target: T, options: unknown): unknown
}

const kinds = {
  optimizer: {
    is: isOptimizer,
    save: checkpointOf,
    stage: stageOptimizer,
    stateOf: ({ parameters }) => ({ parameters: parameters.map((each, i) => [`${i}`, each]), hasKinds: true }),
    optionsHere: (optimizer, options) => countedHere(optimizer.groups, options),
  } satisfies Kind<Optimizer>,
  schedule: { is: isSchedule, save: checkpointOfSchedule, stage: stageSchedule } satisfies Kind<Schedule>,
  ema: {
    is: isEMA,
    save: checkpointOfEMA,
    stage: stageEMA,
    stateOf: (ema) => ({ parameters: parametersOfEMA(ema), hasKinds: false }),
  } satisfies Kind<EMA>,
  loader: { is: isDataLoader, save: checkpointOfLoader, stage: stageLoader } satisfies Kind<
    DataLoader<unknown, unknown>
  >,
}
type KindName = keyof typeof kinds

/** With the numbers of parameters that groups have here: ranks that share out experts have others. */
const countedHere = (groups: readonly { params: readonly unknown[] }[], options: unknown): unknown =>
  Array.isArray(options)
    ? options.map((each, i) => ({ ...each, parameters: groups[i]?.params.length ?? each?.parameters }))
    : options

const kindNames = Object.keys(kinds) as KindName[]
const names = ['model', ...kindNames, 'generator'] as const

/** One of the targets of a kind. A single one has the name null. */
interface Named {
  kind: KindName
  name: string | null
  target: unknown
}

const kindOf = ({ kind }: Named): Kind<unknown> => kinds[kind] as Kind<unknown>

function checkTargets(
  op: string,
  targets: Partial<CheckpointTargets>,
): { model: Module; kept: Named[]; generator: Generator | undefined } {
  const { model, generator } = targets
  if (!(model instanceof Module)) fail('OPTION', op, `model must be a Module, got ${show(model)}`)
  if (generator !== undefined && !Generator.isGenerator(generator))
    fail('OPTION', op, `generator must be a Generator, got ${show(generator)}`)
  return { model, kept: kindNames.flatMap((kind) => namedTargets(op, kind, targets[kind])), generator }
}

const article = (kind: KindName): string => (/^[aeio]/.test(kind) ? `an ${kind}` : `a ${kind}`)

function namedTargets(op: string, kind: KindName, value: unknown): Named[] {
  const { is } = kinds[kind]
  if (value === undefined) return []
  if (is(value)) return [{ kind, name: null, target: value }]
  if (typeof value !== 'object' || value === null || Array.isArray(value) || !isPlain(value))
    fail('OPTION', op, `${kind} must be ${article(kind)}, or an object of ${kind}s by name, got ${show(value)}`)
  return Object.entries(value).map(([name, target]) => {
    if (!is(target)) fail('OPTION', op, `${kind}[${show(name)}] must be ${article(kind)}, got ${show(target)}`)
    if (name === '' || name.includes('.'))
      fail('OPTION', op, `${kind}s must have names without dots, got ${show(name)}`)
    return { kind, name, target }
  })
}

const shown = ({ kind, name }: Pick<Named, 'kind' | 'name'>): string =>
  name === null ? `the ${kind}` : `${kind} ${show(name)}`

const modelPrefix = 'model.'

/** Names without dots, so that `optimizer.0.step` and `optimizer.0.0.step` are distinct. */
const prefixOf = ({ kind, name }: Named): string => (name === null ? `${kind}.` : `${kind}.${name}.`)

const prefixed = (prefix: string, state: StateDict): StateDict =>
  Object.fromEntries(Object.entries(state).map(([name, value]) => [prefix + name, value]))

const unprefixed = (prefix: string, state: StateDict): StateDict =>
  Object.fromEntries(
    Object.entries(state).flatMap(([name, value]) =>
      name.startsWith(prefix) ? [[name.slice(prefix.length), value]] : [],
    ),
  )

/**
 * Writes the model, optimizers and schedules with their options, the step, the random state and `extra` to one safetensors file,
 * atomically. A run that resumes from it continues bit for bit. Throws, and does not touch the previous file, if
 * {@link loadCheckpoint} could not read the new one. `options` adds strings, and files that belong to it.
 *
 * Errors: OPTION, DISPOSED, FILE_SYSTEM; NON_FINITE if the state of an optimizer is not finite; with a `group` also those of
 * collectives, and UNSUPPORTED for a state that cannot be divided by experts. An error of one rank is one of all, and names it.
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
export async function saveCheckpoint(
  path: string,
  checkpoint: Checkpoint,
  options?: SaveCheckpointOptions,
): Promise<void> {
  const op = 'saveCheckpoint'
  const { metadata, beside = [] } = checkOptions<SaveCheckpointOptions>(op, options, ['metadata', 'beside'])
  const files = checkContents(op, 'beside', beside)
  const own = checkMetadata(op, metadata)
  const { group, ...content } = checkOptions<Checkpoint>(op, checkpoint, [...names, 'step', 'extra', 'group'])
  checkPath(op, path)
  if (group !== undefined) {
    groupHandle(op, group)
    await writeRanks(op, { folder: path, group, files }, () => collect(op, content, own, true))
    return
  }
  if (content.model instanceof Module && sharedOut(content.model).length > 0)
    fail('OPTION', op, 'ranks share out the experts of the model: with group all of them save together')
  await scope(async () => {
    const { state, metadata } = collect(op, content, own, false)
    await writeTogether([...files, { path, parts: encode(op, state, metadata).parts }], op)
  })
}

/** What a checkpoint holds, with copies of the tensors in the surrounding scope, under names of this process or global ones. */
function collect(
  op: string,
  { step, extra, ...rest }: Partial<Checkpoint>,
  metadata: Record<string, string>,
  isGlobal: boolean,
): { state: StateDict; metadata: Record<string, string> } {
  checkInteger(op, 'step', step, 0)
  const { model, kept, generator = defaultGenerator } = checkTargets(op, rest)
  const globalNames = isGlobal ? new GlobalNames(op, model) : null
  const parts = kept.map((named) => ({ named, ...kindOf(named).save(named.target, op) }))
  const states = parts.map(({ named, state }) => {
    const of = kindOf(named).stateOf?.(named.target)
    return prefixed(prefixOf(named), globalNames && of ? globalNames.toGlobal(of, state) : state)
  })
  const of = (kind: KindName) =>
    parts.flatMap(({ named, options }) => (named.kind === kind ? [{ name: named.name, options }] : []))
  const saved = Object.fromEntries(kindNames.map((kind) => [listOf(kind), of(kind)])) as Saved
  const { seed, step: position } = generator
  const about: About = { step: step as number, extra, ...saved, generator: { seed, step: position } }
  const state: StateDict = Object.assign(prefixed(modelPrefix, stateOf(op, model)), ...states)
  return { state, metadata: { ...metadata, [aboutKey]: toJson(op, about, 'extra') } }
}

/**
 * Restores the targets from a file of {@link saveCheckpoint}, all or none, and returns `step`, `extra` and the metadata. Optimizers
 * get their saved options: to use another `lr`, set it after the load. The random state is restored only if `generator`
 * is given. A folder that ranks have saved loads in any number of processes, and a file in ranks: each takes what it holds.
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
export async function loadCheckpoint(path: string, targets: CheckpointTargets): Promise<LoadedProgress> {
  const op = 'loadCheckpoint'
  const { model, kept, generator } = checkTargets(op, checkOptions<CheckpointTargets>(op, targets, names))
  const wanted: { prefix: string; of?: StateOf }[] = [
    { prefix: modelPrefix },
    ...kept.map((named) => ({ prefix: prefixOf(named), of: kindOf(named).stateOf?.(named.target) })),
  ]
  const globalNames = new GlobalNames(op, model)
  const isWanted = (name: string): boolean =>
    wanted.some(({ prefix, of }) => name.startsWith(prefix) && globalNames.isHere(name.slice(prefix.length), of))
  const ofRanks = await run(rankFilesIn(op, checkPath(op, path)))
  const { tensors, metadata } = await run(ofRanks?.load(isWanted) ?? load(op, path, isWanted))
  try {
    const about = parse(op, path, metadata)
    scope(() => {
      const stage = (named: Named): (() => void) => {
        const { stateOf, optionsHere, stage } = kindOf(named)
        const saved = savedOptions(op, path, about, named)
        const options = ofRanks && optionsHere ? optionsHere(named.target, saved) : saved
        const state = unprefixed(prefixOf(named), tensors)
        const of = stateOf?.(named.target)
        const own = of ? (ofRanks ? globalNames.toLocal(of, state) : globalNames.ownSlices(of, state)) : state
        return stage(named.target, op, `${path}: the state of ${shown(named)}`, own, options)
      }
      const ofKept = kept.map(stage)
      const ofModel = stageState(model, op, `${path}: the state of the model`, unprefixed(modelPrefix, tensors))
      for (const write of [ofModel, ...ofKept]) write() // these cannot fail
    })
    generator?.setState(about.generator)
    return progressOf(about, metadata)
  } finally {
    for (const tensor of Object.values(tensors)) tensor.dispose()
  }
}

/**
 * What {@link loadCheckpoint} returns, without reading or restoring a tensor. Errors: FILE_FORMAT, FILE_SYSTEM, OPTION.
 *
 * @example
 * ```ts
 * await saveCheckpoint('run.safetensors', { model: new Linear(8, 8), step: 100 }, { metadata: { text: 'book.txt' } })
 * const { step, metadata } = await checkpointProgress('run.safetensors')
 * console.log(step, metadata?.text) // → 100 book.txt
 * ```
 */
export async function checkpointProgress(path: string): Promise<LoadedProgress> {
  const op = 'checkpointProgress'
  const { metadata } = (await run(rankFilesIn(op, checkPath(op, path)))) ?? (await run(headerIn(op, path)))
  return progressOf(parse(op, path, metadata), metadata)
}

/**
 * The tensors and the metadata of a checkpoint, a file or a folder of ranks, without reading a tensor. Checks that each
 * header accounts for its whole file. Errors: FILE_FORMAT, FILE_SYSTEM, OPTION.
 *
 * @example
 * ```ts
 * await saveCheckpoint('run.safetensors', { model: new Linear(8, 4), step: 100 })
 * const { tensors } = checkpointHeaderSync('run.safetensors')
 * console.log(tensors['model.weight']) // → { dtype: 'F32', shape: [ 4, 8 ], bytes: 128 }
 * ```
 */
export function checkpointHeaderSync(path: string): SafetensorsHeader {
  const op = 'checkpointHeader'
  const ofRanks = runSync(rankFilesIn(op, checkPath(op, path)))
  return runSync(ofRanks?.contents() ?? contentsIn(op, path))
}

function progressOf({ step, extra }: About, { [aboutKey]: _, ...metadata }: Record<string, string>): LoadedProgress {
  return { step, extra, ...(Object.keys(metadata).length > 0 && { metadata }) }
}

/** The targets of each kind. */
type Saved = Record<`${KindName}s`, { name: string | null; options?: unknown }[]>

const listOf = (kind: KindName): `${KindName}s` => `${kind}s`

/** The metadata of a checkpoint. */
interface About extends Saved {
  step: number
  extra: unknown
  generator: GeneratorState
}

/** Earlier versions have optimizers alone, without options, or only a boolean `optimizer`. */
function parse(op: string, path: string, metadata: Record<string, string>): About {
  try {
    const { optimizer, ...about } = fromJson(metadata[aboutKey] ?? '') as About & { optimizer?: boolean }
    const { step, generator, optimizers = optimizer === true ? [{ name: null }] : [] } = about
    new Generator().setState(generator)
    checkInteger(op, 'step', step, 0)
    const lists = kindNames.map((kind) => [
      listOf(kind),
      kind === 'optimizer' ? optimizers : (about[listOf(kind)] ?? []),
    ])
    for (const [name, list] of lists)
      if (!Array.isArray(list) || !list.every(isSaved)) throw new Error(`${name} must be a list`)
    return { ...about, ...Object.fromEntries(lists) }
  } catch (cause) {
    throw new MoeError('FILE_FORMAT', op, `${path} is not a checkpoint`, { cause })
  }
}

const isSaved = (value: unknown): boolean => {
  const { name } = (value ?? {}) as { name?: unknown }
  return name === null || typeof name === 'string'
}

function savedOptions(op: string, path: string, about: About, { kind, name }: Named): unknown {
  const all = about[listOf(kind)]
  const saved = all.find((entry) => entry.name === name)
  if (saved) return saved.options
  const held = all.slice(0, 10).map((entry) => shown({ kind, name: entry.name }))
  if (held.length === 0) fail('STATE_DICT', op, `${path} holds no ${kind} state`)
  return fail('STATE_DICT', op, `${path} holds no state of ${shown({ kind, name })}, but of ${held.join(', ')}`)
}
