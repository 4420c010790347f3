import { join } from 'node:path'
import { noGrad, scope } from '../autograd/scope.js'
import { Experts } from '../nn/experts.js'
import { MoE } from '../nn/moe.js'
import type { MoEOptions } from '../nn/moe-options.js'
import type { StateDict } from '../nn/state.js'
import { reshape } from '../ops/reshape.js'
import { concat } from '../ops/strided.js'
import {
  checkInteger,
  checkOptions,
  checkPath,
  fail,
  listed,
  sameShape,
  showName,
  showShape,
} from '../runtime/check.js'
import type { ComputeDType } from '../runtime/dtype.js'
import { show } from '../runtime/errors.js'
import type { Tensor } from '../tensor/tensor.js'
import { writeTogetherSync } from './atomic.js'
import { runSync } from './files.js'
import { readJson } from './json.js'
import { encode, headerIn, keepsType, load } from './tensor-file.js'
import { Config, type Family, families, type Sizes } from './transformers-families.js'
import { type Contents, checkLayer, contentsOf } from './transformers-folder.js'
import { countOf, expertOf, Stored, storedExperts, type Wanted, wantedOf } from './transformers-tensors.js'

/** Options of {@link loadTransformersMoE}. */
export interface TransformersOptions {
  /** The number of the layer in the model, from 0. */
  layer: number
  /** Of the parameters. Default 'f32'. */
  dtype?: 'f32' | 'f64'
  /** As in {@link MoEOptions}. Default: `dtype`. */
  computeDtype?: ComputeDType
}

interface Shaped {
  shape: readonly number[]
}

const packed = /_(?:blocks|scales)$/
const isWanted = (wanted: Wanted, name: string): boolean => wanted.has(name) || wanted.has(name.replace(packed, ''))

/** The tensors that a layer needs, which belong to the scope. */
function read(op: string, folder: string, wanted: Wanted, contents: Contents): Map<string, Tensor> {
  const found = new Map<string, Tensor>()
  for (const file of contents.filesWith((name) => isWanted(wanted, name))) {
    const { tensors } = runSync(load(op, file, (name) => isWanted(wanted, name)))
    for (const [name, tensor] of Object.entries(tensors)) found.set(name, tensor)
  }
  checkFound(op, folder, wanted, found)
  return found
}

function checkFound(op: string, folder: string, wanted: Wanted, found: ReadonlyMap<string, Shaped>): void {
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
}

interface Model {
  family: Family
  sizes: Sizes
  /** What its names begin with. */
  at: string
  wanted: Wanted
  made: MoEOptions
  contents: Contents
}

/** What config.json says of a layer that the files may have. */
function modelOf(op: string, folder: string, number: unknown): Model {
  checkPath(op, folder)
  const layer = checkInteger(op, 'layer', number, 0)
  const path = join(folder, 'config.json')
  const config = new Config(op, path, readJson(op, path))
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
  const at = `model.layers.${layer}.${family.prefix}`
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
    device: 'cpu',
    ...(sharedHidden !== undefined && {
      sharedExperts: 1,
      sharedHiddenDim: sharedHidden,
      sharedExpertGate: family.shared?.gate !== undefined,
    }),
    ...family.options(config),
  }
  const contents = contentsOf(op, folder)
  checkLayer(op, folder, contents.names, layer, family.prefix + family.router, countOf(family, sizes))
  return { family, sizes, at, wanted: wantedOf(at, family, sizes, sharedHidden ?? 0), made, contents }
}

/**
 * The mixture-of-experts layer of a Hugging Face model in `folder`, as transformers saves it: config.json and
 * model.safetensors, or several files with an index, of which only what the layer needs is read. Its outputs equal those
 * of the layer in transformers, shared experts included. Model types: mixtral, olmoe, qwen2_moe, qwen3_moe, deepseek_v3,
 * gpt_oss (mxfp4 too), llama4_text, granitemoe. The layer is on the CPU and in evaluation mode; it never drops a token.
 *
 * Errors: OPTION; UNSUPPORTED for other models; STATE_DICT, which lists missing and misshapen tensors, or the layers that
 * have experts if this has none; FILE_FORMAT, FILE_SYSTEM, OUT_OF_MEMORY.
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
  const o = checkOptions<TransformersOptions>(op, options, ['layer', 'dtype', 'computeDtype'])
  const { family, sizes, at, wanted, made, contents } = modelOf(op, folder, o.layer)
  return noGrad(() =>
    scope(() => {
      const stored = new Stored(read(op, folder, wanted, contents), o.dtype ?? 'f32')
      const moe = new MoE({
        ...made,
        ...(o.dtype !== undefined && { dtype: o.dtype }),
        ...(o.computeDtype !== undefined && { computeDtype: o.computeDtype }),
      })
      try {
        fill(moe, stored, at, family, sizes)
      } catch (error) {
        moe.dispose()
        throw error
      }
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

/** What {@link saveTransformersMoE} needs to know. */
export interface SaveTransformersOptions {
  /** The number of the layer in the model, from 0. */
  layer: number
}

/**
 * Writes a layer that {@link loadTransformersMoE} has made back over that of a model in `folder`: every file that holds a
 * tensor of the layer is replaced, atomically, with the other tensors and the dtypes that it has. Everything is checked
 * before the first file is written. No file outside of the folder changes: a link to one, as in the cache of Hugging
 * Face, becomes a file.
 *
 * Errors: OPTION; STATE_DICT if the layer is another than that of the model; UNSUPPORTED for mxfp4, and for files with
 * I64, U8 or BOOL tensors; FILE_FORMAT, FILE_SYSTEM, OUT_OF_MEMORY.
 *
 * @example
 * ```ts
 * try {
 *   saveTransformersMoE('Qwen3-30B-A3B', new MoE({ dim: 32, numExperts: 4 }), { layer: 12 })
 * } catch (error) {
 *   console.log((error as MoeError).code) // → FILE_SYSTEM
 * }
 * ```
 */
export function saveTransformersMoE(folder: string, moe: MoE, options: SaveTransformersOptions): void {
  const op = 'saveTransformersMoE'
  if (!(moe instanceof MoE)) fail('OPTION', op, `moe must be a MoE, got ${show(moe)}`)
  const { layer } = checkOptions<SaveTransformersOptions>(op, options, ['layer'])
  const { family, at, wanted, contents } = modelOf(op, folder, layer)
  noGrad(() =>
    scope(() => {
      const state = stateOf(moe, at, family)
      const problems = [...wanted].flatMap(([name, shape]) => {
        const got = state[name]
        if (got && sameShape(got.shape, shape)) return []
        return `${showName(name)} must be ${showShape(shape)}, got ${got ? showShape(got.shape) : 'none'}`
      })
      if (problems.length > 0) fail('STATE_DICT', op, `the layer does not fit ${folder}:${listed(problems)}`)
      const files = contents.filesWith((name) => isWanted(wanted, name))
      const entries = files.flatMap((file) => runSync(headerIn(op, file)).entries)
      checkFound(op, folder, wanted, new Map(entries.map((entry) => [entry.name, entry])))
      for (const { name, dtype } of entries) {
        if (packed.test(name) && isWanted(wanted, name))
          fail('UNSUPPORTED', op, `${folder} holds mxfp4 weights, which cannot be written`)
        if (!keepsType(dtype))
          fail('UNSUPPORTED', op, `${folder} holds integers (${showName(name)}, ${dtype}) that would become I32`)
      }
      for (const file of files) scope(() => replace(op, folder, file, state))
    }),
  )
}

function replace(op: string, folder: string, file: string, state: StateDict): void {
  const { tensors, metadata } = runSync(load(op, file))
  const replaced = Object.entries(tensors).map(([name, tensor]) => [
    name,
    Object.hasOwn(state, name) ? state[name].to(tensor.dtype) : tensor,
  ])
  const { parts } = encode(op, Object.fromEntries(replaced), metadata)
  writeTogetherSync([{ path: file, parts, folder }], op)
}

/** The tensors of a layer under their names, those that it has. */
function stateOf({ gate, experts, sharedExperts }: MoE, at: string, family: Family): StateDict {
  const state: Record<string, Tensor | null> = { [at + family.router]: gate.toGates.weight }
  if (family.routerBias) state[at + family.routerBias] = gate.toGates.bias
  if (family.expertBias && 'expertBias' in gate) state[at + family.expertBias] = gate.expertBias
  if (experts instanceof Experts) Object.assign(state, storedExperts(experts, at, family.layout))
  if (sharedExperts && family.shared) {
    const { prefix, gate: sharedGate } = family.shared
    const names = { kind: 'each', experts: 'shared', up: 'up_proj', gate: 'gate_proj', down: 'down_proj' } as const
    for (const [name, tensor] of Object.entries(storedExperts(sharedExperts.experts, '', names)))
      state[at + prefix + name.replace('shared.0.', '')] = tensor
    if (sharedGate) state[at + sharedGate] = sharedExperts.gate?.weight ?? null
  }
  return Object.fromEntries(Object.entries(state).filter(([, tensor]) => tensor !== null)) as StateDict
}
