import type { Draw } from './numbers.js'

/**
 * The mixture-of-experts blocks of transformers 5.24 in plain loops and double precision, on the tensors under their
 * names in its files. Nothing here is shared with the library.
 */

export interface Stored {
  shape: number[]
  data: Float64Array
}
export type Tensors = Record<string, Stored>
export type Config = Record<string, unknown>

type Row = number[]
const sigmoid = (x: number): number => 1 / (1 + Math.exp(-x))
const silu = (x: number): number => x * sigmoid(x)
const softmax = (row: Row): Row => {
  const exp = row.map(Math.exp)
  const total = exp.reduce((a, b) => a + b, 0)
  return exp.map((value) => value / total)
}
/** The K largest, the first on ties. */
const best = (row: Row, K: number): Row =>
  row
    .map((_, i) => i)
    .sort((i, j) => row[j] - row[i] || i - j)
    .slice(0, K)
const at = ({ shape, data }: Stored, ...index: Row): number =>
  data[index.reduce((offset, entry, d) => offset * shape[d] + entry, 0)]
/** W x of a matrix [out, in]. */
const times = (matrix: Stored, x: Row): Row =>
  Array.from({ length: matrix.shape[0] }, (_, i) => x.reduce((sum, value, j) => sum + at(matrix, i, j) * value, 0))

interface Sizes {
  D: number
  H: number
  E: number
  K: number
}

interface Family {
  config: (sizes: Sizes) => Config
  /** Shapes by name, after `model.layers.{N}.`. */
  shapes: (sizes: Sizes) => Record<string, number[]>
  /** One token. */
  block: (get: (name: string) => Stored, x: Row, sizes: Sizes) => Row
}

const add = (a: Row, b: Row): Row => a.map((value, i) => value + b[i])
const scale = (row: Row, factor: number): Row => row.map((value) => value * factor)

const projections = (prefix: string, D: number, H: number): Record<string, number[]> => ({
  [`${prefix}gate_proj.weight`]: [H, D],
  [`${prefix}up_proj.weight`]: [H, D],
  [`${prefix}down_proj.weight`]: [D, H],
})
const mlp = (gate: Stored, up: Stored, down: Stored, x: Row): Row => {
  const [g, u] = [times(gate, x), times(up, x)]
  return times(
    down,
    g.map((value, i) => silu(value) * u[i]),
  )
}
const projected = (get: (name: string) => Stored, prefix: string, x: Row): Row =>
  mlp(get(`${prefix}gate_proj.weight`), get(`${prefix}up_proj.weight`), get(`${prefix}down_proj.weight`), x)

const experts = (prefix: string, { D, H, E }: Sizes): Record<string, number[]> =>
  Object.assign({}, ...Array.from({ length: E }, (_, e) => projections(`${prefix}${e}.`, D, H)))

/** Σ of the chosen experts. */
const mixture = (chosen: Row, weights: Row, expert: (e: number) => Row): Row =>
  chosen.map((e, k) => scale(expert(e), weights[k])).reduce(add)

function softmaxTopk(normalize: boolean, shared: boolean): Pick<Family, 'shapes' | 'block'> {
  return {
    shapes: (sizes) => ({
      'mlp.gate.weight': [sizes.E, sizes.D],
      ...experts('mlp.experts.', sizes),
      ...(shared && {
        ...projections('mlp.shared_expert.', sizes.D, sizes.H + 3),
        'mlp.shared_expert_gate.weight': [1, sizes.D],
      }),
    }),
    block: (get, x, { K }) => {
      const scores = softmax(times(get('mlp.gate.weight'), x))
      const chosen = best(scores, K)
      const total = normalize ? chosen.reduce((sum, e) => sum + scores[e], 0) : 1
      const routed = mixture(
        chosen,
        chosen.map((e) => scores[e] / total),
        (e) => projected(get, `mlp.experts.${e}.`, x),
      )
      if (!shared) return routed
      const [gate] = times(get('mlp.shared_expert_gate.weight'), x)
      return add(routed, scale(projected(get, 'mlp.shared_expert.', x), sigmoid(gate)))
    },
  }
}

const slice = (tensor: Stored, e: number): Stored => {
  const shape = tensor.shape.slice(1)
  const size = shape.reduce((a, b) => a * b, 1)
  return { shape, data: tensor.data.subarray(e * size, (e + 1) * size) }
}
const transposed = ({ shape: [rows, columns], data }: Stored): Stored => ({
  shape: [columns, rows],
  data: Float64Array.from({ length: data.length }, (_, i) => data[(i % rows) * columns + Math.floor(i / rows)]),
})
const rows = ({ shape: [, columns], data }: Stored, from: number, to: number): Stored => ({
  shape: [to - from, columns],
  data: data.subarray(from * columns, to * columns),
})
/** An expert with gate and up in one matrix, the gate first. */
const fused = (both: Stored, down: Stored, x: Row): Row => {
  const [rows2] = both.shape
  return mlp(rows(both, 0, rows2 / 2), rows(both, rows2 / 2, rows2), down, x)
}

const local = ({ D, H, E, K }: Sizes): Config => ({
  hidden_size: D,
  intermediate_size: H,
  num_local_experts: E,
  num_experts_per_tok: K,
})
const separate = ({ D, H, E, K }: Sizes): Config => ({
  hidden_size: D,
  moe_intermediate_size: H,
  num_experts: E,
  num_experts_per_tok: K,
})

export const families: Record<string, Family> = {
  mixtral: {
    config: (sizes) => ({ ...local(sizes), hidden_act: 'silu' }),
    shapes: ({ D, H, E }) => ({
      'block_sparse_moe.gate.weight': [E, D],
      ...Object.assign(
        {},
        ...Array.from({ length: E }, (_, e) => ({
          [`block_sparse_moe.experts.${e}.w1.weight`]: [H, D],
          [`block_sparse_moe.experts.${e}.w2.weight`]: [D, H],
          [`block_sparse_moe.experts.${e}.w3.weight`]: [H, D],
        })),
      ),
    }),
    block: (get, x, { K }) => {
      const scores = softmax(times(get('block_sparse_moe.gate.weight'), x))
      const chosen = best(scores, K)
      const total = chosen.reduce((sum, e) => sum + scores[e], 0)
      const matrix = (e: number, n: number) => get(`block_sparse_moe.experts.${e}.w${n}.weight`)
      return mixture(
        chosen,
        chosen.map((e) => scores[e] / total),
        (e) => mlp(matrix(e, 1), matrix(e, 3), matrix(e, 2), x),
      )
    },
  },
  olmoe: {
    config: ({ D, H, E, K }) => ({ hidden_size: D, intermediate_size: H, num_experts: E, num_experts_per_tok: K }),
    ...softmaxTopk(false, false),
  },
  qwen3_moe: {
    config: (sizes) => ({ ...separate(sizes), intermediate_size: 99, norm_topk_prob: true }),
    ...softmaxTopk(true, false),
  },
  qwen2_moe: {
    config: (sizes) => ({
      ...separate(sizes),
      shared_expert_intermediate_size: sizes.H + 3,
      norm_topk_prob: false,
    }),
    ...softmaxTopk(false, true),
  },
  deepseek_v3: {
    config: ({ D, H, E, K }) => ({
      hidden_size: D,
      moe_intermediate_size: H,
      n_routed_experts: E,
      n_shared_experts: 2,
      num_experts_per_tok: K,
      n_group: E / 2,
      topk_group: 2,
      routed_scaling_factor: 2.5,
      norm_topk_prob: true,
    }),
    shapes: (sizes) => ({
      'mlp.gate.weight': [sizes.E, sizes.D],
      'mlp.gate.e_score_correction_bias': [sizes.E],
      ...experts('mlp.experts.', sizes),
      ...projections('mlp.shared_experts.', sizes.D, 2 * sizes.H),
    }),
    block: (get, x, { E, K }) => {
      const scores = times(get('mlp.gate.weight'), x).map(sigmoid)
      const biased = scores.map((score, e) => score + at(get('mlp.gate.e_score_correction_bias'), e))
      const groups = best(
        Array.from({ length: E / 2 }, (_, g) => biased[2 * g] + biased[2 * g + 1]),
        2,
      )
      const allowed = biased.map((score, e) => (groups.includes(Math.floor(e / 2)) ? score : -Infinity))
      const chosen = best(allowed, K)
      const total = chosen.reduce((sum, e) => sum + scores[e], 0) + 1e-20
      const routed = mixture(
        chosen,
        chosen.map((e) => (2.5 * scores[e]) / total),
        (e) => projected(get, `mlp.experts.${e}.`, x),
      )
      return add(routed, projected(get, 'mlp.shared_experts.', x))
    },
  },
  gpt_oss: {
    config: (sizes) => ({ ...local(sizes), swiglu_limit: 1.5 }),
    shapes: ({ D, H, E }) => ({
      'mlp.router.weight': [E, D],
      'mlp.router.bias': [E],
      'mlp.experts.gate_up_proj': [E, D, 2 * H],
      'mlp.experts.gate_up_proj_bias': [E, 2 * H],
      'mlp.experts.down_proj': [E, H, D],
      'mlp.experts.down_proj_bias': [E, D],
    }),
    block: (get, x, { K }) => {
      const bias = get('mlp.router.bias')
      const logits = times(get('mlp.router.weight'), x).map((l, e) => l + at(bias, e))
      const chosen = best(logits, K)
      return mixture(chosen, softmax(chosen.map((e) => logits[e])), (e) => {
        const [up, down] = ['mlp.experts.gate_up_proj', 'mlp.experts.down_proj']
        const both = times(transposed(slice(get(up), e)), x).map((v, i) => v + at(get(`${up}_bias`), e, i))
        const gates = both.filter((_, i) => i % 2 === 0).map((gate) => Math.min(gate, 1.5))
        const values = both.filter((_, i) => i % 2 === 1).map((value) => Math.max(-1.5, Math.min(1.5, value)))
        const hidden = gates.map((gate, i) => gate * sigmoid(1.702 * gate) * (values[i] + 1))
        return times(transposed(slice(get(down), e)), hidden).map((v, i) => v + at(get(`${down}_bias`), e, i))
      })
    },
  },
  llama4_text: {
    config: local,
    shapes: ({ D, H, E }) => ({
      'feed_forward.router.weight': [E, D],
      'feed_forward.experts.gate_up_proj': [E, D, 2 * H],
      'feed_forward.experts.down_proj': [E, H, D],
      ...projections('feed_forward.shared_expert.', D, H),
    }),
    block: (get, x, { K }) => {
      const logits = times(get('feed_forward.router.weight'), x)
      const chosen = best(logits, K)
      const expert = (e: number) => {
        const both = transposed(slice(get('feed_forward.experts.gate_up_proj'), e))
        const down = transposed(slice(get('feed_forward.experts.down_proj'), e))
        return fused(both, down, scale(x, sigmoid(logits[e])))
      }
      return add(
        mixture(
          chosen,
          chosen.map(() => 1),
          expert,
        ),
        projected(get, 'feed_forward.shared_expert.', x),
      )
    },
  },
  granitemoe: {
    config: local,
    shapes: ({ D, H, E }) => ({
      'block_sparse_moe.router.layer.weight': [E, D],
      'block_sparse_moe.input_linear.weight': [E, 2 * H, D],
      'block_sparse_moe.output_linear.weight': [E, D, H],
    }),
    block: (get, x, { K }) => {
      const logits = times(get('block_sparse_moe.router.layer.weight'), x)
      const chosen = best(logits, K)
      return mixture(chosen, softmax(chosen.map((e) => logits[e])), (e) => {
        const both = slice(get('block_sparse_moe.input_linear.weight'), e)
        return fused(both, slice(get('block_sparse_moe.output_linear.weight'), e), x)
      })
    },
  },
}

export interface Model {
  config: Config
  tensors: Tensors
  /** x [T, D] → [T, D]. */
  block: (x: readonly Row[]) => Row[]
}

/** A model of layer `layer` with random numbers, which are float32. */
export function drawModel(draw: Draw, type: string, sizes: Sizes, layer: number): Model {
  const family = families[type]
  const prefix = `model.layers.${layer}.`
  const tensors: Tensors = {}
  for (const [name, shape] of Object.entries(family.shapes(sizes))) {
    const size = shape.reduce((a, b) => a * b, 1)
    const factor = shape.length === 1 ? 0.5 : 1.5 / Math.sqrt(sizes.D)
    tensors[prefix + name] = { shape, data: draw.array(size, () => Math.fround(factor * draw.normal())) }
  }
  return {
    config: { model_type: type, ...family.config(sizes) },
    tensors,
    block: (x) => x.map((row) => family.block((name) => tensors[prefix + name], row, sizes)),
  }
}
