import type { MoEOptions } from '../nn/moe-options.js'
import { fail } from '../runtime/check.js'
import { show } from '../runtime/errors.js'

/** What config.json of transformers says, and how each family of models stores its mixture-of-experts layers. */

// ---- config.json

/** Of a number in config.json, so that names of tensors that cannot be there are not made up without end. */
const largest = 2 ** 18

/** Reads numbers and switches of a config.json; what is missing or of another type is a FILE_FORMAT error. */
export class Config {
  readonly #op: string
  readonly #path: string
  readonly #values: Record<string, unknown>

  constructor(op: string, path: string, values: unknown) {
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

export interface Sizes {
  D: number
  H: number
  E: number
}

/** How the experts of a family are stored, after its prefix. Matrices are [out, in] unless said otherwise. */
export type Layout =
  /** A matrix for each expert: `{experts}.{i}.{name}.weight`. */
  | { kind: 'each'; experts: string; gate: string; up: string; down: string }
  /** One tensor of all, gates and ups in one: [E, in, out] if `transposed`; even rows are gates if `interleaved`. */
  | { kind: 'fused'; gateUp: string; down: string; transposed: boolean; interleaved: boolean; biases: boolean }

export interface Family {
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
export const families: Readonly<Record<string, Family>> = {
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
