import { afterEach, describe, expect, test, vi } from 'vitest'
import {
  captureStep,
  type Device,
  Linear,
  Module,
  MoE,
  MoEMonitor,
  type MoEOptions,
  type MoEResult,
  manualSeed,
  memory,
  type RoutingStats,
  randn,
  SparseMoEBlock,
  scope,
  type Tensor,
  tensor,
} from '../../lib/index.js'
import { native } from '../../lib/runtime/native.js'
import { useEmulator } from '../support/emulator.js'
import { listOf } from '../support/numbers.js'

// What routers are watched by, vs. plain loops over the routing and the logits.

const built = useEmulator()
const devices: Device[] = ['cpu', 'cuda']
const [B, N, D, E] = [2, 70, 6, 5]

afterEach(() => {
  vi.restoreAllMocks()
})

test('of experts with equal gates the first is the top-1 expert', () =>
  scope(() => {
    const moe = new MoE({ dim: 4, numExperts: 3 })
    moe.gate.toGates.weight.copyFrom(new Float32Array(12))
    const { stats } = moe.forward(randn([1, 5, 4]), { stats: true })
    expect(stats!.firstChoicePerExpert).toEqual([5, 0, 0])
  }))

const mean = (list: readonly number[]): number => list.reduce((a, b) => a + b, 0) / Math.max(1, list.length)

/** One forward, by loops. */
function expected({ routing }: MoEResult): RoutingStats {
  const { capacity, numExperts, expertIndex, mask } = routing
  const [sequences, length, K] = expertIndex.shape
  const [experts, kept, gate, logits] = [expertIndex, routing.kept, routing.gate, routing.logits!].map(listOf)
  const seen = mask ? listOf(mask) : Array(sequences * length).fill(1)
  const tokens = seen.flatMap((counts, t) => (counts === 0 ? [] : [t]))
  const all = tokens.map((t) => {
    const choices = Array.from({ length: K }, (_, k) => t * K + k)
    const l = logits.slice(t * numExperts, (t + 1) * numExperts)
    const total = l.reduce((sum, x) => sum + Math.exp(x), 0)
    const s = l.map((x) => Math.exp(x) / total)
    const first = choices.reduce((best, i) => (gate[i] > gate[best] ? i : best))
    return { choices, first: experts[first], s, norm: Math.hypot(...l) }
  })
  const perExpert = (chosen: readonly number[]): number[] =>
    Array.from({ length: numExperts }, (_, e) => chosen.filter((expert) => expert === e).length)
  const dispatched = all.flatMap(({ choices }) => choices.filter((i) => kept[i] === 1))
  return {
    keptPerExpert: perExpert(dispatched.map((i) => experts[i])),
    firstChoicePerExpert: perExpert(all.map(({ first }) => first)),
    droppedTokens: mean(all.map(({ choices }) => Number(choices.every((i) => kept[i] === 0)))),
    droppedPerChoice: Array.from({ length: K }, (_, k) => mean(all.map(({ choices }) => 1 - kept[choices[k]]))),
    slotOccupancy: dispatched.length / (sequences * numExperts * capacity),
    routerEntropy: mean(all.map(({ s }) => -s.reduce((sum, p) => sum + p * Math.log(p), 0))),
    routerConfidence: mean(all.map(({ s }) => Math.max(...s))),
    logitNorm: mean(all.map(({ norm }) => norm)),
  }
}

/** The same shape, with numbers rounded to what f32 gives. */
const rounded = (stats: RoutingStats) =>
  JSON.parse(JSON.stringify(stats), (_key, value) => (typeof value === 'number' ? Number(value.toFixed(4)) : value))

for (const device of devices)
  describe.skipIf(device === 'cuda' && !built)(`on ${device}`, () => {
    const layers: [string, Omit<MoEOptions, 'dim'>][] = [
      ['topk', { capacityFactorTrain: 0.7 }],
      ['three experts, noise', { gatingTopN: 3, noiseGates: true, minExpertCapacity: 0, capacityFactorTrain: 0.5 }],
      ['switch', { router: 'switch' }],
      ['scores', { scoreFunction: 'sigmoid', expertBias: true, dropless: true }],
      ['expertChoice', { router: 'expertChoice', capacityFactorTrain: 0.9 }],
      ['switchMax', { router: 'switchMax' }],
      ['ntlb', { router: 'ntlb', capacityFactorTrain: 0.7 }],
      ['two levels', { numExperts: [E, 2] }],
      ['groups', { groupSize: 28, dtype: 'f64' }],
    ]
    test.each(layers)('%s: the numbers of one forward are those of loops, with a mask too', (_name, options) =>
      scope(() => {
        manualSeed(4)
        const moe = new MoE({ dim: D, numExperts: E, device, ...options })
        using monitor = new MoEMonitor(moe)
        const x = randn([B, N, D], { device, dtype: options.dtype }).mul(3)
        const mask = tensor(
          Float32Array.from({ length: B * N }, (_, t) => Number(t % 7 > 1)),
          [B, N],
        )
        for (const given of [{}, { mask }]) {
          const result = moe.forward(x, { ...given, stats: true })
          const want = expected(result)
          expect(rounded(result.stats!)).toEqual(rounded(want))
          const [{ name, forwards, tokens, ...stats }] = monitor.report()
          expect({ name, forwards, tokens }).toEqual({ name: '', forwards: 1, tokens: 'mask' in given ? 100 : B * N })
          expect(rounded(stats)).toEqual(rounded(want))
          monitor.reset()
        }
      }),
    )

    class Model extends Module {
      blocks = [0, 1].map(
        () => new SparseMoEBlock(new MoE({ dim: D, numExperts: E, device, capacityFactorTrain: 0.5 })),
      )
      head = new Linear(D, 3, { device })
      forward(x: Tensor): Tensor {
        let y = x
        for (const block of this.blocks) y = block.forward(y).outputs
        return this.head.forward(y)
      }
    }

    test('steps add up, in as much memory as one, without waiting', () => {
      const steps = 4
      manualSeed(5)
      const before = memory()
      {
        using model = new Model()
        using x = randn([B, N, D], { device })
        const result: RoutingStats[][] = [[], []]
        const handles = model.blocks.map(({ moe }, i) =>
          moe.registerForwardHook((_m, _a, made) => void result[i].push(expected(made))),
        )
        using monitor = new MoEMonitor(model)
        const step = () => scope(() => model.forward(x).square().mean().backward())
        step()
        for (const handle of handles) handle.remove()
        const reads = vi.spyOn(native, 'toData')
        const { tensors, bytes } = memory()
        for (let i = 1; i < steps; i++) step()
        expect(memory()).toMatchObject({ tensors, bytes })
        expect(reads).not.toHaveBeenCalled()
        model.eval()
        step()
        const report = monitor.report()
        expect(reads).toHaveBeenCalledTimes(2)
        expect(report.map(({ name, forwards, tokens }) => [name, forwards, tokens])).toEqual([
          ['blocks.0.moe', steps, steps * B * N],
          ['blocks.1.moe', steps, steps * B * N],
        ])
        for (const [i, layer] of report.entries()) {
          const [one] = result[i]
          // The weights do not change, and slots are few: the second experts alone are random.
          expect(layer.firstChoicePerExpert).toEqual(one.firstChoicePerExpert.map((count) => steps * count))
          if (i === 0) expect(layer.routerEntropy).toBeCloseTo(one.routerEntropy, 5)
          expect(layer.keptPerExpert.reduce((a, b) => a + b)).toBeGreaterThan((steps - 1) * B * N * 0.5)
        }
      }
      expect(memory().tensors).toBe(before.tensors)
    })
  })

test('nothing else changes: outputs and gradients have the same bits', () => {
  const run = (watch: boolean) =>
    scope(() => {
      manualSeed(6)
      const moe = new MoE({ dim: D, numExperts: E })
      using _monitor = watch ? new MoEMonitor(moe) : null
      const { outputs, totalAuxLoss } = moe.forward(randn([B, N, D]))
      outputs.square().mean().add(totalAuxLoss).backward()
      return [outputs, ...[...moe.parameters()].map(({ grad }) => grad!)].map(listOf)
    })
  expect(run(true)).toEqual(run(false))
})

test('evaluation counts if wanted; a reset also forgets what is not finite; after dispose nothing is watched', () =>
  scope(() => {
    const moe = new MoE({ dim: D, numExperts: E }).eval()
    const monitors = [new MoEMonitor(moe), new MoEMonitor(moe, { evaluation: true })]
    const forwards = () => monitors.map((monitor) => monitor.report()[0].forwards)
    const x = randn([B, N, D])
    moe.forward(x)
    expect(forwards()).toEqual([0, 1])
    moe.train().forward(x.mul(Number.NaN))
    expect(forwards()).toEqual([1, 2])
    expect(monitors[0].report()[0].routerEntropy).toBeNaN()
    for (const monitor of monitors) monitor.reset()
    moe.forward(x)
    expect(forwards()).toEqual([1, 1])
    expect(monitors[0].report()[0].routerEntropy).toBeGreaterThan(0)
    for (const monitor of monitors) monitor.dispose()
    monitors[0].dispose()
    moe.forward(x)
    for (const method of ['report', 'reset'] as const)
      expect(() => monitors[0][method]()).toThrow(`[MoEMonitor.${method}] the monitor was disposed`)
  }))

test('a layer that two modules share is watched once', () =>
  scope(() => {
    const shared = new MoE({ dim: D, numExperts: E })
    class Twice extends Module {
      first = shared
      second = shared
      forward(x: Tensor): Tensor {
        return this.second.forward(this.first.forward(x).outputs).outputs
      }
    }
    const model = new Twice()
    expect([...model.namedModules()].map(([name]) => name).slice(0, 2)).toEqual(['', 'first'])
    using monitor = new MoEMonitor(model)
    model.forward(randn([B, N, D]))
    expect(monitor.report().map(({ name, forwards }) => [name, forwards])).toEqual([['first', 2]])
  }))

test.skipIf(!built)('a CUDA graph counts its replays; the sums follow a layer to another device', () => {
  using moe = new MoE({ dim: D, numExperts: E })
  using monitor = new MoEMonitor(moe)
  scope(() => moe.forward(randn([B, N, D])))
  moe.to('cuda')
  using x = randn([B, N, D], { device: 'cuda' })
  scope(() => moe.forward(x))
  using step = captureStep(() => ({ outputs: moe.forward(x).outputs }), { device: 'cuda' })
  expect(monitor.report()[0]).toMatchObject({ forwards: 2, tokens: 2 * B * N })
  for (let i = 0; i < 3; i++) step.replay()
  expect(monitor.report()[0]).toMatchObject({ forwards: 5, tokens: 5 * B * N })
  monitor.reset()
  step.replay()
  expect(monitor.report()[0]).toMatchObject({ forwards: 1, tokens: B * N })
})

test.each<[() => unknown, string]>([
  [() => new MoEMonitor(new Linear(2, 2)), '[MoEMonitor] model must contain a MoE'],
  [() => new MoEMonitor({} as never), '[MoEMonitor] model must be a Module'],
  [() => new MoEMonitor(new MoE({ dim: 2 }), { eval: true } as never), '[MoEMonitor] unknown option "eval"'],
  [
    () => new MoEMonitor(new MoE({ dim: 2 }), { evaluation: 1 as never }),
    '[MoEMonitor] evaluation must be true or false, got 1',
  ],
])('%#: what cannot be watched is an error', (make, message) => {
  scope(() => expect(make).toThrow(message))
})
