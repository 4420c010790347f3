import {
  type Gpu,
  gemmsAlone,
  gpus,
  limitsOn,
  lostBytes,
  memoryBytes,
  type Pass,
  passSeconds,
  ratioOn,
  secondsOn,
  total,
} from './roofline-model.js'
import { isGemm, type Sizes, type Work } from './roofline-work.js'
import { digits, markdownTable } from './table.js'

const time = (seconds: number): string =>
  seconds < 1e-3 ? `${(seconds * 1e6).toFixed(0)} µs` : `${(seconds * 1e3).toPrecision(3)} ms`

const isLaunch = ({ kind }: Work): boolean => kind === 'kernel' || kind === 'fill'

/** A row for each pass: launches, and per GPU the time and what the GEMMs alone take of it. */
export const summary = (passes: readonly Pass[]): string =>
  markdownTable(
    ['shape', 'pass', 'launches + GEMMs', ...gpus.map(({ name }) => `${name}: time, × GEMMs`)],
    passes.map((pass) => {
      const gemms = pass.works.filter(isGemm).length
      const on = (gpu: Gpu): string => {
        const all = time(passSeconds(gpu, pass))
        return gemms > 0 ? `${all}, ${ratioOn(gpu, pass).toFixed(2)}` : all
      }
      const launches = pass.works.filter(isLaunch).length
      return [pass.shape, pass.pass, `${launches}${gemms > 0 ? ` + ${gemms}` : ''}`, ...gpus.map(on)]
    }),
  )

const megabytes = (bytes: number): string => digits(bytes / 1e6)

/** Launches that are named of those that lose bytes. */
const named = 4

/** A row for each pass of a layer: the bytes that launches other than its experts' GEMMs move. */
export const lossTable = (passes: readonly Pass[], gpu: Gpu): string =>
  markdownTable(
    ['shape', 'pass', 'MB lost', 'of which', 'time', 'GEMMs alone'],
    passes
      .filter(({ experts }) => experts !== undefined)
      .filter(({ works }) => works.some(isGemm))
      .map((pass) => {
        const lost = lostBytes(gpu, pass)
        const most = lost.slice(0, named).map(({ name, bytes }) => `${name} ${megabytes(bytes)}`)
        return [
          ...[pass.shape, pass.pass, megabytes(total(lost, ({ bytes }) => bytes)), most.join(', ')],
          ...[time(passSeconds(gpu, pass)), time(gemmsAlone(gpu, pass))],
        ]
      }),
  )

/** Launches that share a row. */
interface Row {
  name: string
  works: Work[]
}

const differing = (a: Sizes, b: Sizes) => (['m', 'n', 'k'] as const).filter((size) => a[size] !== b[size])

/** Equal launches, and single GEMMs that follow each other and differ in one size: those of the experts, in turn. */
function rowsOf(works: readonly Work[]): Row[] {
  const rows = new Map<string, Row>()
  let run: Row | undefined
  for (const work of works) {
    const first = run?.works[0]
    const types = work.name.replace(/^.*,/, '')
    const follows =
      first?.kind === 'single' && work.kind === 'single' && first.sizes && work.sizes && first.name.endsWith(types)
    if (follows && differing(first.sizes as Sizes, work.sizes as Sizes).length <= 1) {
      run?.works.push(work)
      continue
    }
    run = rows.get(work.name) ?? { name: work.name, works: [] }
    run.works.push(work)
    rows.set(work.name, run)
  }
  return [...rows.values()].map((row) => ({ ...row, name: nameOf(row) }))
}

/** `GEMM 768 × 20–1090 × 2048, bf16 → f32` where one size differs. */
function nameOf({ name, works }: Row): string {
  const all = works.flatMap(({ sizes }) => sizes ?? [])
  const text = (size: keyof Sizes) => {
    const values = all.map((sizes) => sizes[size])
    const [least, most] = [Math.min(...values), Math.max(...values)]
    return least === most ? String(least) : `${least}–${most}`
  }
  if (works[0].kind !== 'single' || works.length === 1) return name
  return `GEMM ${text('m')} × ${text('n')} × ${text('k')}${name.replace(/^[^,]*/, '')}`
}

const count = (value: number): string => (value === 0 ? '' : value < 1e6 ? '< 0.001' : digits(value / 1e9))

/** The limit of most of the time of the launches. */
function limitOf(gpu: Gpu, works: readonly Work[]): string {
  const sums = new Map<string, number>()
  for (const work of works) {
    const [[limit, seconds]] = Object.entries(limitsOn(gpu, work)).sort(([, a], [, b]) => b - a)
    sums.set(limit, (sums.get(limit) ?? 0) + seconds)
  }
  return [...sums].sort(([, a], [, b]) => b - a)[0][0]
}

/** A row for each kernel and GEMM of a pass. */
export const launchTable = ({ works }: Pass, gpu: Gpu): string =>
  markdownTable(
    [
      ...['launch', 'times', 'GFLOP', 'instructions, 10⁹', 'MB', 'MB from memory', 'MB moved', 'of it used'],
      ...['bank conflicts', gpu.name, 'limit'],
    ],
    rowsOf(works).map(({ name, works: row }) => {
      const sum = (value: (work: Work) => number) => total(row, value)
      const gemm = isGemm(row[0])
      const moved = sum((work) => work.moved)
      const used = sum((work) => work.efficiency * work.moved)
      const conflicts = Math.max(...row.map((work) => work.conflicts))
      return [
        ...[name, String(row.length), count(sum(({ flops }) => flops)), count(sum(({ instructions }) => instructions))],
        megabytes(sum(({ read, write }) => read + write)),
        megabytes(sum((work) => memoryBytes(gpu, work))),
        gemm ? '' : megabytes(moved),
        gemm ? '' : (moved > 0 ? used / moved : 1).toFixed(2),
        conflicts > 1 ? `${conflicts.toFixed(2)}×` : '',
        ...[time(sum((work) => secondsOn(gpu, work))), limitOf(gpu, row)],
      ]
    }),
  )
