/**
 * The layer of docs/semantics.md in plain loops and double precision: one token, one expert, one number at a time.
 * Nothing here is shared with the library. Arrays are flat and row-major.
 */

export interface Problem {
  B: number
  N: number
  D: number
  E: number
  K: number
  H: number
  C: number
  x: Float64Array // [B, N, D]
  router: Float64Array // [E, D]
  w1: Float64Array // [E, 2H, D]
  b1: Float64Array // [E, 2H]
  multBias: Float64Array // [E, H]
  w2: Float64Array // [E, D, H]
  b2: Float64Array // [E, D]
  thresholds: readonly number[] // [K], the first is not used
  uniforms: Float64Array // [K, B, N]
  gumbel: Float64Array | null // [B, N, E]
  noiseMult: number
  mask: Int32Array | null // [B, N]
  training: boolean
  eps: number
  balanceLossCoef: number
  routerZLossCoef: number
  assigned: boolean
  normalization: 'topk' | 'none' | 'kept'
  secondPolicy: 'random' | 'all' | 'none' | 'threshold'
  scoreFunction: 'softmax' | 'sigmoid' | 'softmaxAfterTopk' | 'sigmoidAfterTopk'
  expertBias: Float64Array | null // [E]
  routingGroups: number
  topGroups: number
  differentiableTopk: boolean
  straightThrough: boolean
  prioritized: boolean
  ntlb: boolean
  importance: Float64Array | null // [B, N], instead of a mask
  secondPlaceLoss: boolean
  sampling: Float64Array | null // [B, N, E], uniforms of the temperatures
  temperature: number | null // of sampled experts
  secondPlace: { uniforms: Float64Array; prob: number; temperature: number | null } | null // [B, N]
}

export interface Routing {
  expertIndex: Int32Array // [B, N, K], as the next four
  gate: Float64Array
  kept: Int32Array
  position: Int32Array
  weight: Float64Array
  balance: number
  z: number
  total: number
  logits: Float64Array // clean, [B, N, E]
  probs: Float64Array // [B, N, E]
  lse: Float64Array // [B, N]
  density: Float64Array // [B, E]
  secondDensity: Float64Array // [B, E]
  delta: Float64Array // [B, N]: what the chosen scores are divided by
  tokens: Int32Array // [B]: those of a sequence that are not masked
}

/** C = max(min(N, trunc(N · factor / E)), 4) */
export const capacityOf = (N: number, E: number, factor: number): number =>
  Math.max(Math.min(N, Math.trunc((N * factor) / E)), 4)

export function logSumExp(row: ArrayLike<number>): number {
  let largest = -Infinity
  for (let e = 0; e < row.length; e++) largest = Math.max(largest, row[e])
  let total = 0
  for (let e = 0; e < row.length; e++) total += Math.exp(row[e] - largest)
  return largest + Math.log(total)
}

const softmax = (row: Float64Array): Float64Array => {
  const lse = logSumExp(row)
  return row.map((l) => Math.exp(l - lse))
}

export interface Scored {
  logits: Float64Array // [E]
  probs: Float64Array
}

/** The importance of a token: 0 for padding. */
export const importanceOf = (p: Problem, t: number): number => p.importance?.[t] ?? p.mask?.[t] ?? 1

/** Logits of token t with Gumbel noise of these uniforms. */
const disturbed = (logits: Float64Array, uniforms: Float64Array, t: number, factor: number): Float64Array =>
  logits.map((l, e) => {
    const u = Math.max(uniforms[t * logits.length + e], 1e-20)
    return l - factor * Math.log(Math.max(-Math.log(u), 1e-20))
  })

/** Logits of token t without those that it must not use, if it uses its second place. */
function lowered(p: Problem, t: number, logits: Float64Array): Float64Array {
  const { secondPlace, sampling } = p
  if (!p.training || !secondPlace || secondPlace.uniforms[t] >= secondPlace.prob) return logits
  const [best] = falling(logits)
  const others = logits.map((l, e) => (e === best ? l - 1e9 : l))
  if (secondPlace.temperature === null) return others
  const [chosen] = falling(disturbed(others, sampling!, t, secondPlace.temperature))
  return others.map((l, e) => (e === chosen ? l : l - 1e9))
}

/** Logits of one token without noise, and its probabilities, with noise if the problem has it. */
export function probabilities(p: Problem, t: number): Scored {
  const own = new Float64Array(p.E)
  for (let e = 0; e < p.E; e++) for (let d = 0; d < p.D; d++) own[e] += p.x[t * p.D + d] * p.router[e * p.D + d]
  const logits = lowered(p, t, own)
  return { logits, probs: softmax(p.gumbel ? disturbed(logits, p.gumbel, t, p.noiseMult) : logits) }
}

/** The expert that a token samples. */
export const sampled = (p: Problem, t: number, { logits }: Scored): Float64Array =>
  disturbed(logits, p.sampling!, t, p.temperature!)

const iterations = 20
const temperature = 0.1

/** Coordinate descent for a soft top-k, and its gradient. */
export function softTopk(s: Float64Array, K: number): { c: Float64Array; back: (dc: Float64Array) => Float64Array } {
  const logK = Math.log(Math.min((K * 9) / 8, s.length))
  let b = s.map((v) => -v)
  let a = 0
  const steps: { a: number; p: Float64Array }[] = []
  for (let i = 0; i < iterations; i++) {
    const scaled = s.map((v, e) => (v + b[e]) / temperature)
    a = temperature * (logK - logSumExp(scaled))
    steps.push({ a, p: softmax(scaled) })
    b = s.map((v) => -Math.max(v + a, 0))
  }
  const c = s.map((v, e) => Math.exp((v + a + b[e]) / temperature))
  const back = (dc: Float64Array) => {
    const ds = dc.map((v, e) => (v * c[e]) / temperature)
    let db = Float64Array.from(ds)
    let da = ds.reduce((total, v) => total + v, 0)
    for (const { a, p } of steps.toReversed()) {
      for (const [e, v] of db.entries()) {
        if (s[e] + a <= 0) continue
        ds[e] -= v
        da -= v
      }
      db = p.map((v) => -da * v)
      for (const [e, v] of db.entries()) ds[e] += v
      da = 0
    }
    return ds.map((v, e) => v - db[e])
  }
  return { c, back }
}

export const sigmoid = (x: number): number => 1 / (1 + Math.exp(-x))

/** What the experts of a token are chosen by. */
export function keys(p: Problem, { logits, probs }: Scored): { own: Float64Array; groups: number[] } {
  const after = p.scoreFunction.endsWith('AfterTopk')
  const plain = after ? logits : p.scoreFunction === 'sigmoid' ? logits.map(sigmoid) : probs
  const own = plain.map((key, e) => key + (p.expertBias?.[e] ?? 0))
  const size = p.E / p.routingGroups
  const groups = Array.from({ length: p.routingGroups }, (_, g) => {
    const best = own
      .slice(g * size, (g + 1) * size)
      .sort()
      .reverse()
    return best[0] + (best[1] ?? 0)
  })
  return { own, groups }
}

/** Indices by falling value, the lowest first on ties. */
const falling = (list: ArrayLike<number>): number[] =>
  Array.from(list, (_, i) => i).sort((i, j) => list[j] - list[i] || i - j)

/** What becomes the gates: the probabilities, their soft top-k, or scores of the logits of these experts. */
function scores(p: Problem, { logits, probs }: Scored, experts: readonly number[]): Float64Array {
  if (p.differentiableTopk) return softTopk(probs, p.K).c
  if (p.scoreFunction === 'softmax') return probs
  if (p.scoreFunction !== 'softmaxAfterTopk') return logits.map(sigmoid)
  const lse = logSumExp(experts.map((e) => logits[e]))
  return logits.map((l) => Math.exp(l - lse))
}

/**
 * The K chosen experts of a token, the best first, the lowest index first on ties; and their gates. A token of importance
 * below 1 has one expert, as its second choice.
 */
export function choose(p: Problem, t: number, scored: Scored): { experts: number[]; gates: number[]; delta: number } {
  const { own, groups } = keys(p, scored)
  const allowed = falling(groups).slice(0, p.topGroups)
  const order = falling(own).filter((e) => allowed.includes(Math.floor((e * p.routingGroups) / p.E)))
  if (p.temperature !== null) {
    const [first] = falling(sampled(p, t, scored))
    order.splice(order.indexOf(first), 1)
    order.unshift(first)
  }
  const partial = isPartial(p, t)
  if (partial && p.K > 1) order.splice(0, 2, order[1], order[0])
  const experts = order.slice(0, p.K)
  const all = scores(p, scored, experts)
  const score = experts.map((e, k) => (partial && k !== 1 ? 0 : all[e]))
  const delta = score.reduce((total, v) => total + v, 0)
  return { experts, gates: score.map((v) => v / Math.max(delta, p.eps)), delta }
}

/** Whether the importance of a token is between 0 and 1. */
export const isPartial = (p: Problem, t: number): boolean => importanceOf(p, t) > 0 && importanceOf(p, t) < 1

/** Probability with which expert k of a token is used, not yet limited to 1. */
export function chance(p: Problem, k: number, gate: number): number {
  if (k === 0 || p.ntlb || p.secondPolicy === 'all') return 1
  if (p.secondPolicy === 'none') return 0
  if (p.secondPolicy === 'threshold') return gate > p.thresholds[k] ? 1 : 0
  return gate / Math.max(p.thresholds[k], p.eps)
}

export function route(p: Problem): Routing {
  const T = p.B * p.N
  const r: Routing = {
    expertIndex: new Int32Array(T * p.K),
    gate: new Float64Array(T * p.K),
    kept: new Int32Array(T * p.K),
    position: new Int32Array(T * p.K).fill(-1),
    weight: new Float64Array(T * p.K),
    balance: 0,
    z: 0,
    total: 0,
    logits: new Float64Array(T * p.E),
    probs: new Float64Array(T * p.E),
    lse: new Float64Array(T),
    density: new Float64Array(p.B * p.E),
    secondDensity: new Float64Array(p.B * p.E),
    delta: new Float64Array(T),
    tokens: new Int32Array(p.B),
  }
  for (let t = 0; t < T; t++) {
    const scored = probabilities(p, t)
    const { logits, probs } = scored
    const { experts, gates, delta } = choose(p, t, scored)
    r.logits.set(logits, t * p.E)
    r.probs.set(probs, t * p.E)
    r.lse[t] = logSumExp(logits)
    r.delta[t] = delta
    r.expertIndex.set(experts, t * p.K)
    if (importanceOf(p, t) === 0) continue
    r.gate.set(gates, t * p.K)
    r.tokens[Math.floor(t / p.N)]++
  }
  if (p.importance) r.tokens.fill(p.N)
  for (let b = 0; b < p.B; b++) assignSlots(p, r, b)
  for (let t = 0; t < T; t++) weigh(p, r, t)
  if (p.training) losses(p, r)
  return r
}

/** What slots are given by: the largest score of the chosen experts, a sigmoid or a probability over all experts. */
export function priorities(p: Problem, r: Routing, b: number): Float64Array {
  return Float64Array.from({ length: p.N }, (_, n) => {
    const t = b * p.N + n
    const experts = Array.from(r.expertIndex.subarray(t * p.K, (t + 1) * p.K), (e) => t * p.E + e)
    return Math.max(...experts.map((i) => (p.scoreFunction.startsWith('sigmoid') ? sigmoid(r.logits[i]) : r.probs[i])))
  })
}

function assignSlots(p: Problem, r: Routing, b: number): void {
  const used = new Int32Array(p.E)
  const served = new Set<number>()
  const order = p.prioritized ? falling(priorities(p, r, b)) : Array.from({ length: p.N }, (_, n) => n)
  for (let k = 0; k < p.K; k++) {
    for (const n of order) {
      const t = b * p.N + n
      const i = t * p.K + k
      const e = r.expertIndex[i]
      if (importanceOf(p, t) === 0) continue
      if (k === 1) r.secondDensity[b * p.E + e] += 1 / r.tokens[b]
      if (isPartial(p, t) && (k !== 1 || p.ntlb)) continue
      if (k > 0 && !(p.uniforms[k * p.B * p.N + t] < chance(p, k, r.gate[i]))) continue
      const kept = used[e] < p.C && !(p.ntlb && served.has(t))
      if (p.ntlb) r.density[b * p.E + e] += 1 / r.tokens[b] / p.K
      else if (k === 0 && (kept || p.assigned)) r.density[b * p.E + e] += 1 / r.tokens[b]
      if (!kept) continue
      served.add(t)
      r.kept[i] = 1
      r.position[i] = used[e]++
    }
  }
}

/** The combine weights of a token: scores divided by a sum, if kept. */
function weigh(p: Problem, r: Routing, t: number): void {
  const choices = Array.from({ length: p.K }, (_, k) => t * p.K + k)
  const row = (list: Float64Array) => list.subarray(t * p.E, (t + 1) * p.E)
  const experts = choices.map((i) => r.expertIndex[i])
  const score = scores(p, { logits: row(r.logits), probs: row(r.probs) }, experts)
  const scoreOf = (i: number) => score[r.expertIndex[i]]
  if (p.normalization === 'none') r.delta[t] = 1
  if (p.normalization === 'kept' || isPartial(p, t))
    r.delta[t] = p.normalization === 'none' ? 1 : choices.reduce((total, i) => total + (r.kept[i] ? scoreOf(i) : 0), 0)
  for (const i of choices) r.weight[i] = r.kept[i] ? scoreOf(i) / Math.max(r.delta[t], p.eps) : 0
}

/** What the losses are means over. */
export function counts(p: Problem, r: Routing): { whole: number; sequences: number } {
  const whole = Array.from({ length: p.B * p.N }, (_, t) => importanceOf(p, t)).filter((i) => i === 1).length
  return { whole, sequences: r.tokens.filter((n) => n > 0).length }
}

/** Probabilities of a token without its first choice, and their sum + 1e-9. */
export function others(p: Problem, r: Routing, t: number): { s: Float64Array; total: number } {
  const first = isPartial(p, t) ? -1 : r.expertIndex[t * p.K]
  const s = r.probs.slice(t * p.E, (t + 1) * p.E).map((v, e) => (e === first ? 0 : v))
  return { s, total: s.reduce((sum, v) => sum + v, 1e-9) }
}

function losses(p: Problem, r: Routing): void {
  const { whole, sequences } = counts(p, r)
  for (let t = 0; t < p.B * p.N; t++) {
    const importance = importanceOf(p, t)
    const b = Math.floor(t / p.N)
    const scale = p.E / (r.tokens[b] * sequences)
    const { s, total } = others(p, r, t)
    for (let e = 0; e < p.E && importance > 0; e++) {
      const [f, f2] = [r.density[b * p.E + e], r.secondDensity[b * p.E + e]]
      if (importance === 1) r.balance += scale * f * r.probs[t * p.E + e]
      if (p.secondPlaceLoss) r.balance += (0.5 * scale * f2 * s[e]) / total
    }
    if (importance === 1) r.z += r.lse[t] ** 2 / whole
  }
  r.total = p.balanceLossCoef * r.balance + p.routerZLossCoef * r.z
}

const sqrt2 = Math.sqrt(2)
const cdf = (z: number): number => 0.5 * erfc(-z / sqrt2)
export const gelu = (z: number): number => z * cdf(z)
export const geluGradient = (z: number): number => cdf(z) + (z * Math.exp((-z * z) / 2)) / Math.sqrt(2 * Math.PI)

/** Complementary error function: a Taylor series near 0, a continued fraction (Lentz) away from it. */
export function erfc(x: number): number {
  if (x < 0) return 2 - erfc(-x)
  if (x < 2) {
    let term = x
    let total = x
    for (let n = 1; Math.abs(term) > 1e-18 * Math.abs(total); n++) {
      term *= (-x * x) / n
      total += term / (2 * n + 1)
    }
    return 1 - (2 / Math.sqrt(Math.PI)) * total
  }
  let fraction = 0
  for (let n = 120; n > 0; n--) fraction = n / 2 / (x + fraction)
  return Math.exp(-x * x) / Math.sqrt(Math.PI) / (x + fraction)
}

/** Pre-activations [2H], hidden values [H] and output [D] of expert e at token t. */
export function expert(p: Problem, e: number, t: number): { a: Float64Array; h: Float64Array; y: Float64Array } {
  const { D, H } = p
  const a = new Float64Array(2 * H)
  for (let j = 0; j < 2 * H; j++) {
    a[j] = p.b1[e * 2 * H + j]
    for (let d = 0; d < D; d++) a[j] += p.x[t * D + d] * p.w1[(e * 2 * H + j) * D + d]
  }
  const h = new Float64Array(H)
  for (let j = 0; j < H; j++) h[j] = gelu(a[H + j]) * a[j] * p.multBias[e * H + j]
  const y = new Float64Array(D)
  for (let d = 0; d < D; d++) {
    y[d] = p.b2[e * D + d]
    for (let j = 0; j < H; j++) y[d] += h[j] * p.w2[(e * D + d) * H + j]
  }
  return { a, h, y }
}

/** Σ_k weight · expert(x) for each token, [B, N, D]. */
export function outputs(p: Problem, r: Routing): Float64Array {
  const y = new Float64Array(p.B * p.N * p.D)
  for (let i = 0; i < r.kept.length; i++) {
    if (!r.kept[i]) continue
    const t = Math.floor(i / p.K)
    const row = expert(p, r.expertIndex[i], t).y
    for (let d = 0; d < p.D; d++) y[t * p.D + d] += r.weight[i] * row[d]
  }
  return y
}
