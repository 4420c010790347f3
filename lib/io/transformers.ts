import { join } from 'node:path'
import { checkInteger, checkOptions, fail, listed, sameShape, showName, showShape } from '../check.js'
import type { ComputeDType, DType } from '../dtype.js'
import { MoeError, show } from '../errors.js'
import type { StateDict } from '../nn/module.js'
import { MoE, type MoEOptions } from '../nn/moe.js'
import { reshape } from '../ops/reshape.js'
import { concat, slice, transpose } from '../ops/strided.js'
import { noGrad, scope } from '../scope.js'
import type { Tensor } from '../tensor.js'
import { checkPath, type Routine, readAll, reading, runSync } from './files.js'
import { fromMxfp4 } from './mxfp4.js'
import { load } from './tensor-file.js'

/** Options of {@link loadTransformersMoE}. */
export interface TransformersOptions {
  /** The number of the layer in the model, from 0. */
  layer: number
  /** Of the parameters. Default 'f32'. */
  dtype?: 'f32' | 'f64'
  /** As in {@link MoEOptions}. Default: `dtype`. */
  computeDtype?: ComputeDType
}

// ---- config.json

/** Of a number in config.json, so that names of tensors that cannot be there are not made up without end. */
const largest = 2 ** 18

/** Reads numbers and switches of a config.json; what is missing or of another type is a FILE_FORMAT error. */
class Config {
  readonly #op: string
  readonly #path: string
  readonly #values: Record<string, unknown>

  constructor(op: string, path: string, text: string) {
    let values: unknown
    try {
      values = JSON.parse(text)
    } catch (error) {
      throw new MoeError('FILE_FORMAT', op, `${path} must hold JSON: ${(error as Error).message}`)
    }
    if (typeof values !== 'object' || values === null) fail('FILE_FORMAT', op, `${path} must hold an object`)
    this.#op = op
    this.#path = path
    this.#values = values as Record<string, unknown>
  }

  #get(names: readonly string[]): unknown {
    return names.map((name) => this.#values[name]).find((value) => value !== undefined && value !== null)
  }

  /** The first of several names that is there. */
  integer(names: readonly string[], otherwise?: number): number {
    const value = this.#get(names) ?? otherwise
    if (!Number.isInteger(value) || (value as number) < 1 || (value as number) > largest)
      fail(
        'FILE_FORMAT',
        this.#op,
        `${this.#path}: ${names.join(' or ')} must be an integer from 1 to ${largest}, got ${show(value)}`,
      )
    return value as number
  }

  number(name: string, otherwise: number): number {
    const value = this.#get([name]) ?? otherwise
    if (typeof value !== 'number' || !Number.isFinite(value))
      fail('FILE_FORMAT', this.#op, `${this.#path}: ${name} must be a number, got ${show(value)}`)
    return value
  }

  boolean(name: string, otherwise: boolean): boolean {
    const value = this.#get([name]) ?? otherwise
    if (typeof value !== 'boolean')
      fail('FILE_FORMAT', this.#op, `${this.#path}: ${name} must be true or false, got ${show(value)}`)
    return value
  }

  text(name: string, otherwise = ''): string {
    const value = this.#get([name]) ?? otherwise
    if (typeof value !== 'string')
      fail('FILE_FORMAT', this.#op, `${this.#path}: ${name} must be a string, got ${show(value)}`)
    return value
  }
}

// ---- families

interface Sizes {
  D: number
  H: number
  E: number
}

/** How the experts of a family are stored, after its prefix. Matrices are [out, in] unless said otherwise. */
type Layout =
  /** A matrix for each expert: `{experts}.{i}.{name}.weight`. */
  | { kind: 'each'; experts: string; gate: string; up: string; down: string }
  /** One tensor of all, gates and ups in one: [E, in, out] if `transposed`; even rows are gates if `interleaved`. */
  | { kind: 'fused'; gateUp: string; down: string; transposed: boolean; interleaved: boolean; biases: boolean }

interface Family {
  /** After `model.layers.{N}.`. */
  prefix: string
  router: string
  routerBias?: string
  expertBias?: string
  layout: Layout
  shared?: { prefix: string; gate?: string }
  hidden: readonly string[]
  /** The width of the shared experts. */
  sharedHidden?: (config: Config, H: number) => number
  options: (config: Config) => Partial<MoEOptions>
}

const projections = { kind: 'each', experts: 'experts', gate: 'gate_proj', up: 'up_proj', down: 'down_proj' } as const
const normalized = (config: Config, otherwise: boolean): Partial<MoEOptions> => ({
  gateNormalization: config.boolean('norm_topk_prob', otherwise) ? 'topk' : 'none',
})

const qwen3: Family = {
  prefix: 'mlp.',
  router: 'gate.weight',
  layout: projections,
  hidden: ['moe_intermediate_size'],
  options: (config) => normalized(config, false),
}

/** By `model_type` of config.json. */
const families: Readonly<Record<string, Family>> = {
  mixtral: {
    prefix: 'block_sparse_moe.',
    router: 'gate.weight',
    layout: { kind: 'each', experts: 'experts', gate: 'w1', up: 'w3', down: 'w2' },
    hidden: ['intermediate_size'],
    options: () => ({}),
  },
  olmoe: { ...qwen3, hidden: ['intermediate_size'] },
  qwen3_moe: qwen3,
  qwen2_moe: {
    ...qwen3,
    shared: { prefix: 'shared_expert.', gate: 'shared_expert_gate.weight' },
    sharedHidden: (config) => config.integer(['shared_expert_intermediate_size']),
  },
  deepseek_v3: {
    ...qwen3,
    expertBias: 'gate.e_score_correction_bias',
    shared: { prefix: 'shared_experts.' },
    sharedHidden: (config, H) => H * config.integer(['n_shared_experts'], 1),
    options: (config) => ({
      ...normalized(config, true),
      scoreFunction: 'sigmoid',
      expertBias: true,
      routingGroups: config.integer(['n_group'], 1),
      topGroups: config.integer(['topk_group'], 1),
      routedScalingFactor: config.number('routed_scaling_factor', 1),
    }),
  },
  gpt_oss: {
    prefix: 'mlp.',
    router: 'router.weight',
    routerBias: 'router.bias',
    layout: {
      kind: 'fused',
      gateUp: 'experts.gate_up_proj',
      down: 'experts.down_proj',
      transposed: true,
      interleaved: true,
      biases: true,
    },
    hidden: ['intermediate_size'],
    options: (config) => ({
      scoreFunction: 'softmaxAfterTopk',
      routerBias: true,
      expertBiases: 'linear',
      swigluLimit: config.number('swiglu_limit', 7),
      swigluAlpha: config.number('swiglu_alpha', 1.702),
    }),
  },
  llama4_text: {
    prefix: 'feed_forward.',
    router: 'router.weight',
    layout: {
      kind: 'fused',
      gateUp: 'experts.gate_up_proj',
      down: 'experts.down_proj',
      transposed: true,
      interleaved: false,
      biases: false,
    },
    shared: { prefix: 'shared_expert.' },
    sharedHidden: (_, H) => H,
    hidden: ['intermediate_size'],
    options: () => ({ scoreFunction: 'sigmoidAfterTopk', scaleInput: true }),
  },
  granitemoe: {
    prefix: 'block_sparse_moe.',
    router: 'router.layer.weight',
    layout: {
      kind: 'fused',
      gateUp: 'input_linear.weight',
      down: 'output_linear.weight',
      transposed: false,
      interleaved: false,
      biases: false,
    },
    hidden: ['intermediate_size'],
    options: () => ({ scoreFunction: 'softmaxAfterTopk' }),
  },
}

// ---- tensors

/** Names and shapes of what a layer needs. */
type Wanted = Map<string, readonly number[]>

/** Tensors by name, whose shapes are right. Converts them to a dtype. */
class Stored {
  readonly #tensors: ReadonlyMap<string, Tensor>
  readonly #dtype: DType

  constructor(tensors: ReadonlyMap<string, Tensor>, dtype: DType) {
    this.#tensors = tensors
    this.#dtype = dtype
  }

  get(name: string): Tensor {
    return this.#tensors.get(name)!.to(this.#dtype)
  }

  /** What expert e has of a tensor [E, …]. */
  of(e: number, name: string): Tensor {
    const part = (full: string): Tensor | undefined => {
      const tensor = this.#tensors.get(full)
      return tensor && reshape(slice(tensor, 0, e, e + 1), tensor.shape.slice(1))
    }
    const own = part(name) ?? fromMxfp4(part(`${name}_blocks`)!, part(`${name}_scales`)!)
    return own.to(this.#dtype)
  }
}

/** The state of expert e, whose W1 has values (up) first, then gates. */
function expertOf(stored: Stored, at: string, layout: Layout, e: number): StateDict {
  if (layout.kind === 'each') {
    const matrix = (name: string) => stored.get(`${at}${layout.experts}.${e}.${name}.weight`)
    return {
      'net.0.weight': concat([matrix(layout.up), matrix(layout.gate)]),
      'net.2.weight': matrix(layout.down),
    }
  }
  const { gateUp, down, transposed, interleaved, biases } = layout
  const matrix = (name: string) => (transposed ? transpose(stored.of(e, at + name)) : stored.of(e, at + name))
  const upFirst = (both: Tensor) => {
    const [rows, ...rest] = both.shape // [2H, …]
    const [axis, pairs] = interleaved ? [1, [rows / 2, 2, ...rest]] : [0, [2, rows / 2, ...rest]]
    const part = (i: number) => reshape(slice(reshape(both, pairs), axis, i, i + 1), [rows / 2, ...rest])
    return concat([part(1), part(0)])
  }
  return {
    'net.0.weight': upFirst(matrix(gateUp)),
    'net.2.weight': matrix(down),
    ...(biases && {
      'net.0.bias': upFirst(stored.of(e, `${at}${gateUp}_bias`)),
      'net.2.bias': stored.of(e, `${at}${down}_bias`),
    }),
  }
}

function wantedOf(at: string, { layout, ...family }: Family, { D, H, E }: Sizes, sharedHidden: number): Wanted {
  const wanted: Wanted = new Map([[at + family.router, [E, D]]])
  if (family.routerBias) wanted.set(at + family.routerBias, [E])
  if (family.expertBias) wanted.set(at + family.expertBias, [E])
  if (layout.kind === 'each') {
    for (let e = 0; e < E; e++) {
      const name = `${at}${layout.experts}.${e}.`
      wanted.set(`${name}${layout.gate}.weight`, [H, D]).set(`${name}${layout.up}.weight`, [H, D])
      wanted.set(`${name}${layout.down}.weight`, [D, H])
    }
  } else {
    const shape = (rows: number, columns: number) => (layout.transposed ? [E, columns, rows] : [E, rows, columns])
    wanted.set(at + layout.gateUp, shape(2 * H, D)).set(at + layout.down, shape(D, H))
    if (layout.biases) wanted.set(`${at}${layout.gateUp}_bias`, [E, 2 * H]).set(`${at}${layout.down}_bias`, [E, D])
  }
  if (family.shared) {
    const name = at + family.shared.prefix
    wanted.set(`${name}gate_proj.weight`, [sharedHidden, D]).set(`${name}up_proj.weight`, [sharedHidden, D])
    wanted.set(`${name}down_proj.weight`, [D, sharedHidden])
    if (family.shared.gate) wanted.set(at + family.shared.gate, [1, D])
  }
  return wanted
}

// ---- files

const maxText = 2 ** 26

function* textOf(op: string, path: string): Routine<string> {
  return yield* reading(op, path, function* (file, size) {
    if (size > maxText) fail('FILE_FORMAT', op, `${path} must have at most ${maxText} bytes, it has ${size}`)
    const bytes = Buffer.alloc(size)
    if (!(yield* readAll(file, bytes, 0))) fail('FILE_FORMAT', op, `${path}: the file ended while it was read`)
    return bytes.toString()
  })
}

const isMissing = (error: unknown): boolean =>
  (error as { cause?: { code?: unknown } } | null)?.cause?.code === 'ENOENT'

/** The files that hold some names: one, or those of an index. */
function filesWith(op: string, folder: string, wanted: Wanted): string[] {
  const path = join(folder, 'model.safetensors.index.json')
  let text: string
  try {
    text = runSync(textOf(op, path))
  } catch (error) {
    if (isMissing(error)) return [join(folder, 'model.safetensors')]
    throw error
  }
  let map: unknown
  try {
    map = (JSON.parse(text) as { weight_map?: unknown } | null)?.weight_map
  } catch (error) {
    throw new MoeError('FILE_FORMAT', op, `${path} must hold JSON: ${(error as Error).message}`)
  }
  if (typeof map !== 'object' || map === null) fail('FILE_FORMAT', op, `${path}: weight_map must be an object`)
  const files = new Set<string>()
  for (const [name, file] of Object.entries(map)) {
    if (!isWanted(wanted, name)) continue
    if (typeof file !== 'string' || !/^[\w.-]+$/.test(file))
      fail(
        'FILE_FORMAT',
        op,
        `${path}: the file of ${showName(name)} must be a name without a folder, got ${show(file)}`,
      )
    files.add(join(folder, file))
  }
  return [...files]
}

const packed = /_(?:blocks|scales)$/
const isWanted = (wanted: Wanted, name: string): boolean => wanted.has(name) || wanted.has(name.replace(packed, ''))

function read(op: string, folder: string, wanted: Wanted, dtype: DType): Stored {
  const found = new Map<string, Tensor>()
  for (const file of filesWith(op, folder, wanted)) {
    const { tensors } = runSync(load(op, file, (name) => isWanted(wanted, name)))
    for (const [name, tensor] of Object.entries(tensors)) found.set(name, tensor)
  }
  const problems: string[] = []
  const check = (name: string, shape: readonly number[]) => {
    const got = found.get(name)
    if (!got) problems.push(`missing: ${showName(name)}`)
    else if (!sameShape(got.shape, shape))
      problems.push(`${showName(name)} must be ${showShape(shape)}, got ${showShape(got.shape)}`)
  }
  for (const [name, shape] of wanted) {
    if (found.has(name) || !(found.has(`${name}_blocks`) || found.has(`${name}_scales`))) {
      check(name, shape)
      continue
    }
    const [E, columns, rows] = shape
    check(`${name}_blocks`, [E, rows, Math.ceil(columns / 32), 16])
    check(`${name}_scales`, [E, rows, Math.ceil(columns / 32)])
  }
  if (problems.length > 0) fail('STATE_DICT', op, `${folder} does not fit:${listed(problems)}`)
  return new Stored(found, dtype)
}

/**
 * The mixture-of-experts layer of a Hugging Face model in `folder`, as transformers saves it: config.json and
 * model.safetensors, or several files with an index, of which only what the layer needs is read. Its outputs equal those
 * of the layer in transformers, shared experts included. Model types: mixtral, olmoe, qwen2_moe, qwen3_moe, deepseek_v3,
 * gpt_oss (mxfp4 too), llama4_text, granitemoe. The layer is on the CPU and in evaluation mode; it never drops a token.
 *
 * Errors: OPTION; UNSUPPORTED for other models; STATE_DICT, which lists missing and misshapen tensors; FILE_FORMAT,
 * FILE_SYSTEM, OUT_OF_MEMORY.
 *
 * @example
 * ```ts
 * try {
 *   const moe = loadTransformersMoE('Qwen3-30B-A3B', { layer: 12, computeDtype: 'bf16' })
 *   console.log(moe.numExperts)
 * } catch (error) {
 *   console.log((error as MoeError).code) // → FILE_SYSTEM
 * }
 * ```
 */
export function loadTransformersMoE(folder: string, options: TransformersOptions): MoE {
  const op = 'loadTransformersMoE'
  checkPath(op, folder)
  const o = checkOptions<TransformersOptions>(op, options, ['layer', 'dtype', 'computeDtype'])
  const layer = checkInteger(op, 'layer', o.layer, 0)
  const path = join(folder, 'config.json')
  const config = new Config(op, path, runSync(textOf(op, path)))
  const type = config.text('model_type')
  const family = Object.hasOwn(families, type) ? families[type] : null
  if (!family)
    fail(
      'UNSUPPORTED',
      op,
      `model_type must be one of ${Object.keys(families).join(', ')}, got ${show(type)} in ${path}`,
    )
  const activation = config.text('hidden_act', 'silu')
  if (activation !== 'silu') fail('UNSUPPORTED', op, `hidden_act must be "silu", got ${show(activation)} in ${path}`)
  const sizes = {
    D: config.integer(['hidden_size']),
    H: config.integer(family.hidden),
    E: config.integer(['num_local_experts', 'num_experts', 'n_routed_experts']),
  }
  const sharedHidden = family.sharedHidden?.(config, sizes.H)
  const made: MoEOptions = {
    dim: sizes.D,
    numExperts: sizes.E,
    gatingTopN: config.integer(['num_experts_per_tok']),
    expertHiddenDim: sizes.H,
    activation: 'swiglu',
    expertBiases: false,
    dropless: true,
    secondPolicyTrain: 'all',
    secondPolicyEval: 'all',
    straightThroughDispatchTensor: false,
    ...(sharedHidden !== undefined && {
      sharedExperts: 1,
      sharedHiddenDim: sharedHidden,
      sharedExpertGate: family.shared?.gate !== undefined,
    }),
    ...family.options(config),
    device: 'cpu',
    ...(o.dtype !== undefined && { dtype: o.dtype }),
    ...(o.computeDtype !== undefined && { computeDtype: o.computeDtype }),
  }
  const at = `model.layers.${layer}.${family.prefix}`
  return noGrad(() =>
    scope(() => {
      const stored = read(op, folder, wantedOf(at, family, sizes, sharedHidden ?? 0), o.dtype ?? 'f32')
      const moe = new MoE(made)
      fill(moe, stored, at, family, sizes)
      return moe.eval()
    }),
  )
}

function fill({ gate, experts, sharedExperts }: MoE, stored: Stored, at: string, family: Family, sizes: Sizes): void {
  const put = (to: unknown, name: string) => void (to as Tensor).copyFrom(stored.get(at + name))
  put(gate.toGates.weight, family.router)
  if (family.routerBias) put(gate.toGates.bias, family.routerBias)
  if (family.expertBias && 'expertBias' in gate) put(gate.expertBias, family.expertBias)
  for (let e = 0; e < sizes.E; e++)
    scope(() => {
      const state = Object.entries(expertOf(stored, at, family.layout, e))
      experts.loadStateDict(Object.fromEntries(state.map(([name, value]) => [`experts.${e}.${name}`, value])), {
        strict: false,
      })
    })
  if (!sharedExperts || !family.shared) return
  const { prefix, gate: sharedGate } = family.shared
  const projection = (name: string) => stored.get(`${at}${prefix}${name}_proj.weight`)
  const { w1, w2 } = sharedExperts.experts
  w1.copyFrom(reshape(concat([projection('up'), projection('gate')]), w1.shape))
  w2.copyFrom(reshape(projection('down'), w2.shape))
  if (sharedGate) put(sharedExperts.gate?.weight, sharedGate)
}
