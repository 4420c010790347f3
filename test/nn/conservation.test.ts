import { expect, test } from 'vitest'
import { Generator, MoE, ops, randn, scope, tensor } from '../../lib/index.js'
import type { Float } from '../support/golden-case.js'
import { Draw, long, type Numbers, relativeError, runSeed, values } from '../support/numbers.js'

const seed = runSeed()
const rounds = long ? 10_000 : 1000

interface Routed {
  B: number
  N: number
  K: number
  E: number
  C: number
  index: Numbers
  kept: Numbers
  position: Numbers
  gate: Numbers
  weight: Numbers
  masked: (token: number) => boolean
}

/** Laws of one token's top-k experts: distinct, with descending gates that sum to 1, and weights if dispatched. */
function checkToken(r: Routed, t: number): void {
  const assignments = Array.from({ length: r.K }, (_, k) => t * r.K + k)
  if (new Set(assignments.map((i) => r.index[i])).size !== r.K) throw new Error(`token ${t} has an expert twice`)
  if (assignments.some((i) => r.index[i] < 0 || r.index[i] >= r.E)) throw new Error(`token ${t} has no such expert`)
  const total = assignments.reduce((sum, i) => sum + r.gate[i], 0)
  if (Math.abs(total - (r.masked(t) ? 0 : 1)) > 1e-6) throw new Error(`the gates of token ${t} sum to ${total}`)
  for (const i of assignments) {
    if (i > t * r.K && r.gate[i] > r.gate[i - 1]) throw new Error(`the gates of token ${t} rise`)
    if (r.kept[i] !== Number(r.position[i] >= 0))
      throw new Error(`assignment ${i}: kept ${r.kept[i]} at ${r.position[i]}`)
    if (r.weight[i] !== (r.kept[i] ? r.gate[i] : 0)) throw new Error(`assignment ${i}: weight ${r.weight[i]}`)
    if (r.kept[i] && r.masked(t)) throw new Error(`masked token ${t} has a slot`)
  }
}

/**
 * Laws of one sequence: slots are 0, 1, 2 … by rank and token, at most C; a top-1 assignment is dropped only if full.
 */
function checkSlots(r: Routed, b: number): void {
  const used = new Int32Array(r.E)
  for (let k = 0; k < r.K; k++) {
    for (let t = b * r.N; t < (b + 1) * r.N; t++) {
      const i = t * r.K + k
      const e = r.index[i]
      if (r.position[i] >= 0 && r.position[i] !== used[e]++)
        throw new Error(`assignment ${i} has slot ${r.position[i]}`)
      if (k === 0 && !r.kept[i] && !r.masked(t) && used[e] < r.C) throw new Error(`top-1 assignment ${i} was dropped`)
    }
  }
  if (used.some((count) => count > r.C)) throw new Error(`sequence ${b} has ${used} of ${r.C} slots`)
}

/** Laws of one sequence whose slots are not in token order: those that are taken are 0, 1, 2 … of each expert. */
function checkSlotsInAnyOrder(r: Routed, b: number): void {
  const taken = Array.from({ length: r.E }, () => new Set<number>())
  for (let i = b * r.N * r.K; i < (b + 1) * r.N * r.K; i++) {
    if (!r.kept[i]) continue
    if (taken[r.index[i]].has(r.position[i])) throw new Error(`assignment ${i} has slot ${r.position[i]} again`)
    taken[r.index[i]].add(r.position[i])
  }
  for (const slots of taken)
    if (slots.size > r.C || Array.from(slots).some((slot) => slot >= slots.size))
      throw new Error(`sequence ${b} has slots ${Array.from(slots)} of ${r.C}`)
}

/** No token left behind: one expert at most, and none only if the K are full. */
function checkLeftBehind(r: Routed, t: number): void {
  const assignments = Array.from({ length: r.K }, (_, k) => t * r.K + k)
  const kept = assignments.filter((i) => r.kept[i])
  if (kept.length > 1) throw new Error(`token ${t} has ${kept.length} experts`)
  if (kept.length > 0 || r.masked(t)) return
  const first = Math.floor(t / r.N) * r.N * r.K
  for (const i of assignments) {
    let used = 0
    for (let j = first; j < first + r.N * r.K; j++) used += Number(r.kept[j] && r.index[j] === r.index[i])
    if (used < r.C) throw new Error(`token ${t} was left behind, but expert ${r.index[i]} has a slot`)
  }
}

/** Each dispatched assignment has exactly one row, every other row is zero, and combine restores it. */
function checkRows(r: Routed, x: Numbers, D: number, rows: Numbers, y: Numbers): void {
  const expectedRows = new Float64Array(rows.length)
  const expected = new Float64Array(y.length)
  for (let i = 0; i < r.kept.length; i++) {
    if (!r.kept[i]) continue
    const t = Math.floor(i / r.K)
    const row = ((r.index[i] * r.B + Math.floor(t / r.N)) * r.C + r.position[i]) * D
    for (let d = 0; d < D; d++) {
      if (expectedRows[row + d] !== 0) throw new Error(`slot ${row / D} is taken twice`)
      expectedRows[row + d] = x[t * D + d]
      expected[t * D + d] += r.weight[i] * x[t * D + d]
    }
  }
  if (expectedRows.some((value, at) => value !== rows[at])) throw new Error('a dispatched row is not its token')
  if (!(relativeError(y, expected) < 1e-6)) throw new Error('combine loses or doubles something')
}

function checkRound(draw: Draw): void {
  const [B, N, D, E] = [draw.integer(1, 3), draw.integer(1, 12), draw.integer(1, 3), draw.integer(1, 8)]
  const K = draw.integer(1, E)
  const dtype = draw.of<Float>(['f32', 'f64'])
  const generator = new Generator(draw.integer(0, 2 ** 31 - 1))
  const x = randn([B, N, D], { dtype, generator })
  const mask = draw.boolean(0.3) ? Int32Array.from({ length: B * N }, () => Number(draw.boolean(0.6))) : undefined
  const [ntlb, batchPrioritized] = [draw.boolean(0.25), draw.boolean(0.25)]
  const routing = ops.route(x, randn([E, D], { dtype, generator }), {
    generator,
    ntlb,
    batchPrioritized,
    gateNormalization: 'topk',
    topN: K,
    capacity: draw.integer(0, N + 1),
    threshold: draw.of([0, 0.2, 0.9, 1e6]),
    noiseGates: draw.boolean(),
    differentiableTopk: draw.boolean(0.2),
    training: draw.boolean(),
    mask: mask && tensor(mask, [B, N]),
  })
  const [index, kept, position, gate, weight] = [
    routing.expertIndex,
    routing.kept,
    routing.position,
    routing.gate,
    routing.weight,
  ].map(values)
  const masked = (t: number) => mask?.[t] === 0
  const r: Routed = { B, N, K, E, C: routing.capacity, index, kept, position, gate, weight, masked }
  for (let t = 0; t < B * N; t++) checkToken(r, t)
  for (let b = 0; b < B; b++) (batchPrioritized || ntlb ? checkSlotsInAnyOrder : checkSlots)(r, b)
  for (let t = 0; ntlb && t < B * N; t++) checkLeftBehind(r, t)
  const rows = ops.dispatch(x, routing)
  checkRows(r, values(x), D, values(rows), values(ops.combine(rows, routing)))
}

test(`every assignment is dispatched once or dropped (seed ${seed}, ${rounds} routings)`, () => {
  const draw = new Draw(seed)
  for (let round = 0; round < rounds; round++) {
    try {
      scope(() => checkRound(draw))
    } catch (cause) {
      throw new Error(`round ${round}: ${(cause as Error).message}`, { cause })
    }
  }
})

test('a second expert is used as often as its gate / threshold says', () =>
  scope(() => {
    const [N, threshold] = [40_000, 0.6]
    const generator = new Generator(77)
    const x = randn([1, N, 4], { generator })
    const routing = ops.route(x, randn([6, 4], { generator }), { generator, threshold, capacity: N * 2 })
    const [gate, kept] = [routing.gate, routing.kept].map(values)
    let [expected, variance, count] = [0, 0, 0]
    for (let t = 0; t < N; t++) {
      const p = Math.min(1, gate[2 * t + 1] / threshold)
      expected += p
      variance += p * (1 - p)
      count += kept[2 * t + 1]
    }
    expect(Math.abs(count - expected) / Math.sqrt(variance)).toBeLessThan(4)
    expect(variance).toBeGreaterThan(1000)
  }))

test('only the row of a NaN token becomes NaN', () =>
  scope(() => {
    const moe = new MoE({ dim: 4, numExperts: 3, capacityFactorTrain: 6 })
    const clean = randn([2, 5, 4])
    const data = Float32Array.from(values(clean))
    data[4 * 7 + 2] = Number.NaN
    const random = { uniforms: tensor(new Float32Array(20).fill(0.1), [2, 2, 5]) }
    const [good, bad] = [clean, tensor(data, [2, 5, 4])].map((x) => values(moe.forward(x, { random }).outputs))
    for (let i = 0; i < good.length; i++) {
      if (Math.floor(i / 4) === 7) expect(bad[i]).toBeNaN()
      else expect(bad[i]).toBe(good[i])
    }
  }))
