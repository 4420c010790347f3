import { describe, expect, test } from 'vitest'
import {
  ExpertChoiceGating,
  Linear,
  MoE,
  manualSeed,
  ops,
  randn,
  SparseMoEBlock,
  scope,
  type Tensor,
  tensor,
} from '../../lib/index.js'
import { Draw, listOf, nested, relativeError } from '../support/numbers.js'

interface Choice {
  weight: number[]
  kept: number[]
  position: number[]
  balance: number
  z: number
}

/** Expert choice in plain loops: every expert takes the C tokens of its largest scores. */
function expertChoice(logits: number[][][], C: number, over: 'tokens' | 'experts', mask: number[][]): Choice {
  const [B, N, E] = [logits.length, logits[0].length, logits[0][0].length]
  const made: Choice = { weight: [], kept: [], position: [], balance: 0, z: 0 }
  let tokens = 0
  for (let b = 0; b < B; b++) {
    const real = mask[b].flatMap((entry, n) => (entry ? [n] : []))
    const exp = logits[b].map((row) => row.map(Math.exp))
    const total = (list: number[]) => list.reduce((sum, value) => sum + value, 0)
    const score = (n: number, e: number) =>
      exp[n][e] / (over === 'tokens' ? total(real.map((m) => exp[m][e])) : total(exp[n]))
    const rank = new Map<number, number>()
    for (let e = 0; e < E; e++) {
      const best = real.toSorted((n, m) => score(m, e) - score(n, e) || n - m).slice(0, C)
      for (const [c, n] of best.entries()) rank.set(n * E + e, c)
    }
    for (let n = 0; n < N; n++) {
      const taken = over === 'tokens' ? [...rank.keys()].filter((key) => Math.floor(key / E) === n).length : 1
      for (let e = 0; e < E; e++) {
        const position = rank.get(n * E + e) ?? -1
        made.position.push(position)
        made.kept.push(position < 0 ? 0 : 1)
        made.weight.push(position < 0 ? 0 : score(n, e) / taken)
      }
      if (!mask[b][n]) continue
      tokens++
      made.z += Math.log(total(exp[n])) ** 2
      if (over === 'tokens') made.balance += (total(exp[n].map((_, e) => score(n, e))) / E) ** 2 * (real.length / B)
    }
  }
  made.z /= tokens
  return made
}

describe.each(['tokens', 'experts'] as const)('expert choice over %s', (expertChoiceOver) => {
  test.each([
    [2, 9, 6, 4, 3],
    [1, 1, 3, 1, 4],
    [3, 40, 5, 7, 11],
    [1, 64, 8, 16, 5],
    [2, 5, 3, 4, 0],
  ])('is that of plain loops: B %i, N %i, D %i, E %i, C %i', (B, N, D, E, C) => {
    const draw = new Draw(B * 1000 + N)
    for (const padded of [false, true]) {
      scope(() => {
        const [x, w] = [randn([B, N, D], { dtype: 'f64' }), randn([E, D], { dtype: 'f64' })]
        const mask = Array.from({ length: B }, () =>
          Array.from({ length: N }, (_, n) => (padded && n > 0 && draw.integer(0, 3) === 0 ? 0 : 1)),
        )
        const wanted = expertChoice(nested(x.matmul(w.transpose())), C, expertChoiceOver, mask)
        const made = ops.expertChoice(x, w, {
          capacity: C,
          expertChoiceOver,
          balanceLossCoef: 0.5,
          routerZLossCoef: 0.25,
          ...(padded && { mask: tensor(mask) }),
        })
        expect(listOf(made.kept)).toEqual(wanted.kept)
        expect(listOf(made.position)).toEqual(wanted.position)
        expect(listOf(made.expertIndex)).toEqual(wanted.kept.map((_, i) => i % E))
        expect(relativeError(listOf(made.weight), wanted.weight)).toBeLessThan(1e-12)
        expect(made.balanceLoss.item()).toBeCloseTo(wanted.balance, 10)
        expect(made.routerZLoss.item()).toBeCloseTo(wanted.z, 10)
        expect(made.totalAuxLoss.item()).toBeCloseTo(0.5 * wanted.balance + 0.25 * wanted.z, 10)
        expect(made.capacity).toBe(C)
      })
    }
  })

  test('huge numbers in padding change nothing', () =>
    scope(() => {
      const [B, N, D] = [2, 8, 4]
      const mask = Array.from({ length: B }, () => Array.from({ length: N }, (_, n) => Number(n % 2)))
      const numbers = randn([B, N, D]).dataSync()
      const of = (padding: number) => {
        const x = tensor(
          numbers.map((value, i) => (Math.floor(i / D) % 2 ? value : padding)),
          [B, N, D],
        )
        const w = tensor(
          Float32Array.from({ length: 3 * D }, (_, i) => Math.sin(i)),
          [3, D],
        )
        const made = ops.expertChoice(x, w, { capacity: 2, expertChoiceOver, mask: tensor(mask) })
        return [made.weight, made.kept, made.position].map(listOf)
      }
      expect(of(1e30)).toEqual(of(0))
    }))

  test('a layer adds up the experts that took a token, with its weights', () => {
    manualSeed(2)
    const moe = new MoE({ dim: 6, numExperts: 3, router: 'expertChoice', expertChoiceOver, dtype: 'f64' })
    const x = randn([2, 12, 6], { dtype: 'f64' })
    const { outputs, routing, stats } = moe.forward(x, { stats: true })
    const { w1, b1, multBias, w2, b2 } = moe.experts as never as Record<string, Tensor>
    const wanted = [0, 1, 2]
      .map((e) => {
        const of = (t: Tensor, shape: number[]) => t.slice(0, e, e + 1).reshape(shape)
        const H = w2.shape[2]
        const own = {
          w1: of(w1, [1, 2 * H, 6]),
          b1: of(b1, [1, 2 * H]),
          multBias: of(multBias, [1, H]),
          w2: of(w2, [1, 6, H]),
          b2: of(b2, [1, 6]),
        }
        return ops.expertFfn(x, null, own).mul(routing.weight.slice(2, e, e + 1))
      })
      .reduce((sum, y) => sum.add(y))
    expect(relativeError(listOf(outputs), listOf(wanted))).toBeLessThan(1e-12)
    expect(routing.capacity).toBe(5) // trunc(12 · 1.25 / 3)
    expect(stats?.keptPerExpert).toEqual([10, 10, 10]) // loads are even
    expect(stats?.firstChoicePerExpert.reduce((a, b) => a + b)).toBe(24)
  })
})

test('over experts the load-balancing loss is 0, and so is its gradient', () =>
  scope(() => {
    const [x, w] = [randn([2, 9, 6], { requiresGrad: true }), randn([4, 6], { requiresGrad: true })]
    const { balanceLoss } = ops.expertChoice(x, w, { expertChoiceOver: 'experts' })
    balanceLoss.backward()
    expect([balanceLoss, x.grad!, w.grad!].flatMap(listOf).every((value) => value === 0)).toBe(true)
  }))

test('expert choice takes the first of equal tokens, and empty slots stay empty', () => {
  const equal = ops.expertChoice(tensor(new Float32Array(2 * 6 * 3), [2, 6, 3]), randn([4, 3]), { capacity: 2 })
  expect(nested(equal.position as never as Tensor)[1].map((row) => row[3])).toEqual([0, 1, -1, -1, -1, -1])
  const all = ops.expertChoice(randn([1, 3, 2]), randn([2, 2]), { capacity: 9 })
  expect(listOf(all.kept)).toEqual(Array(6).fill(1))
  expect(ops.dispatch(randn([1, 3, 2]), all).shape).toEqual([2, 1, 9, 2])
})

test('a layer of expert choice trains, has no losses in evaluation, and its state goes round', () => {
  manualSeed(1)
  const make = () => new MoE({ dim: 8, numExperts: 4, router: 'expertChoice' })
  const [moe, other] = [make(), make()]
  const x = randn([2, 16, 8])
  const { outputs, totalAuxLoss } = moe.forward(x)
  outputs.square().mean().add(totalAuxLoss).backward()
  for (const [name, parameter] of moe.namedParameters()) expect(parameter.grad, name).not.toBeNull()
  expect(totalAuxLoss.item()).toBeGreaterThan(0)
  const state = moe.stateDict()
  expect(Object.keys(state).filter((name) => name.startsWith('gate.'))).toEqual(['gate.to_gates.weight'])
  other.loadStateDict(state)
  const [a, b] = [moe.eval().forward(x), other.eval().forward(x)]
  expect(listOf(a.outputs)).toEqual(listOf(b.outputs))
  expect([...a].slice(1).map((loss) => loss.item())).toEqual([0, 0, 0])
  expect(a.routing.capacity).toBe(8) // trunc(16 · 2 / 4)
})

test('expert choice works with custom experts, one expert, a block and plain arrays', () => {
  const experts = [new Linear(4, 4), new Linear(4, 4), new Linear(4, 4)]
  const own = new MoE({ dim: 4, experts, router: 'expertChoice' })
  expect(own.forward(randn([2, 9, 4])).outputs.shape).toEqual([2, 9, 4])
  const one = new MoE({ dim: 4, numExperts: 1, router: 'expertChoice' })
  expect(one.gate).toBeInstanceOf(ExpertChoiceGating)
  expect(one.forward(randn([1, 5, 4])).routing.expertIndex.shape).toEqual([1, 5, 1])
  expect(new SparseMoEBlock(one).forward(randn([1, 5, 4])).outputs.shape).toEqual([1, 5, 4])
  using step = one.forwardWithGrad(new Float32Array(20).fill(0.1), [1, 5, 4])
  expect(step.backward(step.outputs, 1).dInput).toHaveLength(20)
})

test('a forward of expert choice refuses random numbers', () => {
  const moe = new MoE({ dim: 8, numExperts: 4, router: 'expertChoice' })
  const x = randn([1, 5, 8])
  expect(() => moe.forward(x, { random: { uniforms: randn([2, 1, 5]) } })).toThrow(
    /uniforms is for router "topk": expert choice samples nothing/,
  )
  expect(() => moe.forward(x, { noiseGates: true })).toThrow(/noiseGates is for router "topk"/)
})
