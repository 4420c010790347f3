import { describe, expect, test } from 'vitest'
import { type FloatDType, MoE, manualSeed, ops, randn, scope, tensor } from '../../lib/index.js'
import { Draw, listOf } from '../support/numbers.js'

const identity = (E: number) =>
  Array.from({ length: E }, (_, i) => Array.from({ length: E }, (_, j) => Number(i === j)))

/** The routing of these logits [N, E], one sequence. */
function routed(logits: number[][], options: ops.RouteOptions, dtype: FloatDType = 'f64') {
  const x = tensor([logits], null, { dtype })
  return ops.route(x, tensor(identity(logits[0].length), null, { dtype }), {
    topN: 2,
    secondPolicy: 'all',
    batchPrioritized: true,
    ...options,
  })
}

const logs = (probs: number[][]) => probs.map((row) => row.map(Math.log))

describe('slots go by the largest score that is not divided', () => {
  // The gate of the first is 0.4 / 0.675, of the second 0.5 / 0.98.
  const unsureFirst = logs([
    [0.4, 0.05, 0.275, 0.275],
    [0.5, 0.48, 0.01, 0.01],
  ])
  test.each(['topk', 'kept', 'none'] as const)('whatever gates are divided by: %s', (gateNormalization) => {
    expect(routed(unsureFirst, { capacity: 1, gateNormalization }).kept.toArray()).toEqual([
      [
        [0, 1],
        [1, 1],
      ],
    ])
  })

  test('with K = 1 as well', () => {
    expect(listOf(routed(unsureFirst, { topN: 1, capacity: 1 }).kept)).toEqual([0, 1])
    manualSeed(1)
    const moe = (batchPrioritized: boolean) =>
      new MoE({
        dim: 4,
        numExperts: 2,
        gatingTopN: 1,
        capacityFactorTrain: 0.3,
        minExpertCapacity: 1,
        batchPrioritized,
      })
    const x = randn([1, 12, 4])
    const ordered = moe(true)
    const plain = moe(false)
    plain.loadStateDict(ordered.stateDict())
    expect(listOf(ordered.forward(x).routing.kept)).not.toEqual(listOf(plain.forward(x).routing.kept))
  })

  test('equal scores go by token', () => {
    const logits = logs([
      [0.5, 0.3, 0.2],
      [0.6, 0.3, 0.1],
      [0.6, 0.1, 0.3],
      [0.6, 0.3, 0.1],
    ])
    expect(listOf(routed(logits, { topN: 1, capacity: 2 }).position)).toEqual([-1, 0, 1, -1])
  })

  test.each([
    ['sigmoid', [1, 0]],
    ['sigmoidAfterTopk', [1, 0]],
    ['softmax', [0, 1]],
    ['softmaxAfterTopk', [0, 1]],
  ] as const)('of %s', (scoreFunction, position) => {
    const logits = [
      [1, -2, -2, -2], // the larger probability
      [2, 1.5, 1.5, 1.5], // the larger sigmoid
    ]
    expect(listOf(routed(logits, { topN: 1, capacity: 2, scoreFunction }).position)).toEqual(position)
  })

  test('of the expert that a bias chooses, and not of a soft top-k, which is 1 for all', () => {
    const logits = logs([
      [0.7, 0.1, 0.2],
      [0.4, 0.3, 0.3],
    ])
    const expertBias = tensor([0, 0, 1], null, { dtype: 'f64' }) // all choose expert 2
    expect(listOf(routed(logits, { topN: 1, capacity: 2, expertBias }).position)).toEqual([1, 0])
    const soft = routed(
      logs([
        [0.6, 0.2, 0.2],
        [0.7, 0.2, 0.1],
      ]),
      { topN: 1, capacity: 2, differentiableTopk: true },
    )
    expect(listOf(soft.position)).toEqual([1, 0])
  })

  test('of the best expert, if another is sampled first', () => {
    const logits = logs([
      [0.3, 0.4, 0.3],
      [0.2, 0.6, 0.2],
    ])
    // Noise makes expert 0 the first of both.
    const gumbelUniforms = tensor(
      [
        [
          [0.999999, 0.1, 0.1],
          [0.999999, 0.1, 0.1],
        ],
      ],
      null,
      { dtype: 'f64' },
    )
    const { expertIndex, position } = routed(logits, { capacity: 2, sampleExperts: true, gumbelUniforms })
    expect(listOf(expertIndex)).toEqual([0, 1, 0, 1])
    expect(listOf(position)).toEqual([1, 1, 0, 0])
  })
})

/** Combine weights [N, E] of NllbMoeTop2Router of transformers 4.57, `batch_prioritized_routing`, policy 'all'. */
function nllb(logits: number[][], capacity: number, normalizeBeforeDropping: boolean): number[][] {
  const E = logits[0].length
  const probs = logits.map((row) => {
    const exp = row.map((l) => Math.exp(l - Math.max(...row)))
    const total = exp.reduce((sum, v) => sum + v)
    return exp.map((v) => v / total)
  })
  const largest = (row: number[]) => row.indexOf(Math.max(...row))
  const first = probs.map(largest)
  const second = logits.map((row, n) => largest(row.map((l, e) => (e === first[n] ? -Infinity : l))))
  const importance = probs.map((row) => -Math.max(...row))
  const order = importance.map((_, n) => n).sort((i, j) => importance[i] - importance[j] || i - j)
  const locations = (experts: number[], before: number[]) => {
    const next = [...before]
    const location = Array<number>(logits.length)
    for (const n of order) location[n] = next[experts[n]]++
    return location
  }
  const none = Array<number>(E).fill(0)
  const location1 = locations(first, none)
  const location2 = locations(
    second,
    none.map((_, e) => first.filter((expert) => expert === e).length),
  )
  return probs.map((row, n) => {
    const kept = [location1[n] < capacity, location2[n] < capacity].map(Number)
    const [p1, p2] = normalizeBeforeDropping
      ? [row[first[n]], row[second[n]]]
      : [row[first[n]] * kept[0], row[second[n]] * kept[1]]
    const total = Math.max(p1 + p2, Number.EPSILON)
    return row.map((_, e) => (e === first[n] ? (kept[0] * p1) / total : e === second[n] ? (kept[1] * p2) / total : 0))
  })
}

test.each(['f32', 'f64'] as const)('60 random cases are as in NLLB, %s', (dtype) => {
  const draw = new Draw(5)
  for (let i = 0; i < 60; i++)
    scope(() => {
      const [N, E] = [draw.integer(2, 40), draw.integer(2, 9)]
      const logits = Array.from({ length: N }, () => Array.from({ length: E }, () => Math.fround(1.5 * draw.normal())))
      const capacity = draw.integer(1, Math.ceil((2 * N) / E))
      const before = draw.boolean()
      const { expertIndex, weight } = routed(logits, { capacity, gateNormalization: before ? 'topk' : 'kept' }, dtype)
      const [index, w] = [listOf(expertIndex), listOf(weight)]
      const combine = logits.map((row, n) =>
        row.map((_, e) => (index[2 * n] === e ? w[2 * n] : index[2 * n + 1] === e ? w[2 * n + 1] : 0)),
      )
      const expected = nllb(logits, capacity, before)
      for (const [n, row] of combine.entries())
        for (const [e, value] of row.entries())
          expect(value, `case ${i}, token ${n}, expert ${e}`).toBeCloseTo(expected[n][e], dtype === 'f32' ? 5 : 12)
    })
})
