import {
  counts,
  expert,
  gelu,
  geluGradient,
  importanceOf,
  isPartial,
  logSumExp,
  others,
  type Problem,
  type Routing,
  sigmoid,
  softTopk,
} from './reference.js'

export type Gradients = Record<'x' | 'router' | 'w1' | 'b1' | 'multBias' | 'w2' | 'b2', Float64Array>

/** Gradients of Σ y · dy + dtotal · total in plain loops, by the formulas of docs/semantics.md, "Gradient". */
export function gradients(p: Problem, r: Routing, dy: Float64Array, dtotal: number): Gradients {
  const zeros = (like: Float64Array) => new Float64Array(like.length)
  const grads: Gradients = {
    x: zeros(p.x),
    router: zeros(p.router),
    w1: zeros(p.w1),
    b1: zeros(p.b1),
    multBias: zeros(p.multBias),
    w2: zeros(p.w2),
    b2: zeros(p.b2),
  }
  const dweight = new Float64Array(r.kept.length)
  for (let i = 0; i < r.kept.length; i++) if (r.kept[i]) dweight[i] = expertGradient(p, r, grads, dy, i)
  for (let t = 0; t < p.B * p.N; t++) if (importanceOf(p, t) > 0) routerGradient(p, r, grads, dweight, dtotal, t)
  return grads
}

/** Adds the contribution of one dispatched assignment; returns the gradient of its weight. */
function expertGradient(p: Problem, r: Routing, grads: Gradients, dy: Float64Array, i: number): number {
  const { D, H } = p
  const [t, e, w] = [Math.floor(i / p.K), r.expertIndex[i], r.weight[i]]
  const { a, h, y } = expert(p, e, t)
  const g = dy.subarray(t * D, (t + 1) * D)
  let dw = 0
  for (let d = 0; d < D; d++) {
    dw += y[d] * g[d]
    grads.b2[e * D + d] += w * g[d]
  }
  const da = new Float64Array(2 * H)
  for (let j = 0; j < H; j++) {
    let dh = 0
    for (let d = 0; d < D; d++) {
      dh += w * g[d] * p.w2[(e * D + d) * H + j]
      grads.w2[(e * D + d) * H + j] += w * g[d] * h[j]
    }
    const mu = p.multBias[e * H + j]
    grads.multBias[e * H + j] += dh * gelu(a[H + j]) * a[j]
    da[j] = dh * gelu(a[H + j]) * mu
    da[H + j] = dh * a[j] * mu * geluGradient(a[H + j])
  }
  for (let j = 0; j < 2 * H; j++) {
    grads.b1[e * 2 * H + j] += da[j]
    for (let d = 0; d < D; d++) {
      const at = (e * 2 * H + j) * D + d
      grads.w1[at] += da[j] * p.x[t * D + d]
      grads.x[t * D + d] += da[j] * p.w1[at]
      if (p.straightThrough) dw += p.x[t * D + d] * da[j] * p.w1[at]
    }
  }
  return dw
}

/** The gradient of the logits of a token, if its scores are no probabilities over all experts. */
function throughLogits(p: Problem, experts: Int32Array, logits: Float64Array, dscore: Float64Array) {
  if (p.scoreFunction === 'softmax') return null
  const dl = new Float64Array(p.E)
  if (p.scoreFunction === 'softmaxAfterTopk') {
    const lse = logSumExp(Array.from(experts, (e) => logits[e]))
    const score = logits.map((l) => Math.exp(l - lse))
    const inner = experts.reduce((sum, e) => sum + score[e] * dscore[e], 0)
    for (const e of experts) dl[e] = score[e] * (dscore[e] - inner)
  } else for (const e of experts) dl[e] = dscore[e] * sigmoid(logits[e]) * sigmoid(-logits[e])
  return dl
}

/** Adds the gradient of Σ_e scale · f2 · s / total, over the experts besides the first choice. */
function secondPlaceGradient(p: Problem, r: Routing, t: number, scale: number, ds: Float64Array): void {
  const { s, total } = others(p, r, t)
  const f2 = r.secondDensity.subarray(Math.floor(t / p.N) * p.E)
  const mean = s.reduce((sum, v, e) => sum + (scale * f2[e] * v) / total, 0)
  const first = isPartial(p, t) ? -1 : r.expertIndex[t * p.K]
  for (let e = 0; e < p.E; e++) if (e !== first) ds[e] += (scale * f2[e] - mean) / total
}

/** Adds what one token's logits contribute to the router weight and the input. */
function routerGradient(p: Problem, r: Routing, grads: Gradients, dweight: Float64Array, dtotal: number, t: number) {
  const { D, E, K } = p
  const [first, b] = [t * K, Math.floor(t / p.N)]
  const s = r.probs.subarray(t * E, (t + 1) * E)
  const dscore = new Float64Array(E)
  let mean = 0
  for (let i = first; p.normalization !== 'none' && i < first + K; i++) mean += dweight[i] * r.weight[i]
  for (let i = first; i < first + K; i++) {
    if (!r.kept[i] && (p.normalization === 'kept' || isPartial(p, t))) continue
    dscore[r.expertIndex[i]] += r.delta[t] > p.eps ? (dweight[i] - mean) / r.delta[t] : dweight[i] / p.eps
  }
  const logits = r.logits.subarray(t * E, (t + 1) * E)
  const direct = throughLogits(p, r.expertIndex.subarray(first, first + K), logits, dscore)
  if (direct) dscore.fill(0)
  const ds = p.differentiableTopk ? softTopk(s, K).back(dscore) : dscore
  const { whole, sequences } = counts(p, r)
  const inLosses = importanceOf(p, t) === 1
  const balance = p.training ? (dtotal * p.balanceLossCoef * E) / (r.tokens[b] * sequences) : 0
  for (let e = 0; inLosses && e < E; e++) ds[e] += balance * r.density[b * E + e]
  if (p.secondPlaceLoss) secondPlaceGradient(p, r, t, balance / 2, ds)
  let inner = 0
  for (let e = 0; e < E; e++) inner += s[e] * ds[e]
  const z = p.training && inLosses ? (dtotal * p.routerZLossCoef * 2 * r.lse[t]) / whole : 0
  for (let e = 0; e < E; e++) {
    const dl = s[e] * (ds[e] - inner) + z * Math.exp(logits[e] - r.lse[t]) + (direct?.[e] ?? 0)
    for (let d = 0; d < D; d++) {
      grads.router[e * D + d] += dl * p.x[t * D + d]
      grads.x[t * D + d] += dl * p.router[e * D + d]
    }
  }
}
