import { hasHostMemory, isCpu } from '../../lib/doctor/index.js'
import {
  type ComputeDType,
  devices,
  expertHiddenSize,
  getDefaultDevice,
  getNumThreads,
  manualSeed,
  noGrad,
  ops,
  randn,
  scope,
  setNumThreads,
  type Tensor,
  tensor,
} from '../../lib/index.js'
import { useDevice } from '../errors.js'
import { checkMemory } from '../memory.js'
import { Layer } from './layer.js'
import { spreadOf } from './statistics.js'

export interface Settings {
  dim: number
  experts: number
  'top-n': number
  batch: number
  tokens: number
  repetitions: number
  device: string
  threads: number | null
  'compute-dtype': ComputeDType
}

export interface Row {
  threads: number
  what: 'forward' | 'forward + backward'
  /** Median, fastest and slowest, in milliseconds. */
  ms: number
  fastest: number
  slowest: number
  tokensPerSecond: number
  /** Median of the GEMMs alone. */
  floorMs: number
}

export interface Measurement extends Settings {
  variant: string
  /** Fraction of the assignments that were dispatched, 0 to 1. */
  kept: number
  rows: Row[]
}

type What = Row['what']
const kinds: readonly What[] = ['forward', 'forward + backward']

/** Times the layer and its GEMMs, alternating, with one thread and with all. */
export function measure(settings: Settings): Measurement {
  const { device, dim, experts, batch, tokens, repetitions } = settings
  useDevice(device)
  const most = settings.threads ?? getNumThreads()
  const counts = isCpu(device) && settings.threads === null && most > 1 ? [1, most] : [most]
  if (hasHostMemory(getDefaultDevice()))
    checkMemory('this benchmark', bytesOf(settings), { dim, experts, batch, tokens })
  manualSeed(0)
  const { layer, floor, kept } = programs(settings)
  const cases = counts.flatMap((threads) =>
    kinds.map((what) => ({ threads, what, layer: [] as number[], floor: [] as number[] })),
  )
  for (let i = 0; i <= repetitions; i++) {
    for (const { threads, what, ...times } of cases) {
      setNumThreads(threads)
      const taken = { layer: timed(() => layer(what)), floor: timed(() => floor(what)) }
      if (i === 0) continue // warm-up
      times.layer.push(taken.layer)
      times.floor.push(taken.floor)
    }
  }
  const variant = devices().find((info) => info.device === device || info.device === `${device}:0`)?.variant ?? ''
  const rows = cases.map(({ threads, what, ...times }) => {
    const ms = spreadOf(times.layer).median
    const [fastest, slowest] = [Math.min(...times.layer), Math.max(...times.layer)]
    const tokensPerSecond = (batch * tokens * 1000) / ms
    return { threads, what, ms, fastest, slowest, tokensPerSecond, floorMs: spreadOf(times.floor).median }
  })
  return { ...settings, threads: most, variant, kept, rows }
}

/** Lower bound: weights and gradients, of the layer and of the GEMMs alone; token rows and hidden rows. */
function bytesOf({ dim, experts, 'top-n': topN, batch, tokens }: Settings): number {
  const hidden = expertHiddenSize(dim, 4)
  const weights = experts * 3 * hidden * dim
  return 4 * (4 * weights + batch * tokens * (4 * dim + topN * 2 * hidden))
}

/** The layer, and its GEMMs alone on as many rows: each a function that returns when the device is done. */
function programs({ dim, experts, 'top-n': topN, batch, tokens, 'compute-dtype': computeDtype }: Settings) {
  const one = new Layer({ dim, experts, batch, tokens }, { gatingTopN: topN, computeDtype })
  const { hidden, routing } = one
  const sizes = tensor(Int32Array.from(routing.rowsPerExpert), [experts])
  const input = randn([routing.rows, dim], { requiresGrad: true })
  const middle = randn([routing.rows, hidden], { requiresGrad: true })
  const w1 = randn([experts, 2 * hidden, dim], { requiresGrad: true })
  const w2 = randn([experts, dim, hidden], { requiresGrad: true })
  const gemms = (): Tensor[] => [
    ops.groupedGemm(input, w1, sizes, { computeDtype }),
    ops.groupedGemm(middle, w2, sizes, { computeDtype }),
  ]
  const layer = (what: What): void => {
    if (what === 'forward') return void one.forward().mean().item()
    one.step()
    one.x.grad!.mean().item() // waits for the device
    one.dropGradients()
  }
  const floor = (what: What): void => {
    if (what === 'forward') return void noGrad(() => gemms().map((y) => y.slice(0, 0, 1).sum().item()))
    for (const y of gemms()) y.backward(y)
    w1.grad!.slice(0, 0, 1).sum().item()
    for (const t of [input, middle, w1, w2]) t.grad = null
  }
  return { layer, floor, kept: routing.kept }
}

function timed(run: () => void): number {
  const start = performance.now()
  scope(run)
  return performance.now() - start
}
