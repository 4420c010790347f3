import type { Spread } from '../cli/index.js'
import { find, type Report, type Result, ratioTo } from './report.js'
import {
  digits,
  dispatched,
  markdownTable,
  mebibytes,
  percent,
  resultTable,
  withSpread,
  workPerSecond,
} from './table.js'
import {
  besideOneDnn,
  both,
  gemmFigures,
  missedList,
  ofLimit,
  onThreads,
  spaced,
  targetTable,
  threadsIn,
} from './targets.js'

/** The parts of the pages that come from a report, as Markdown. */
export function sectionsOf(report: Report): Record<string, string> {
  const results = (names: RegExp): string =>
    resultTable(
      report.results.filter(({ name }) => names.test(name)),
      report.results,
    )
  return {
    machine: machine(report),
    limits: limits(report),
    targets: targetTable(report),
    missed: missedList(report),
    headline: headline(report),
    layer: results(/^st-moe\/layer\//),
    growth: results(/^st-moe\/growth\//),
    bf16: results(/^st-moe\/bf16\//),
    routers: results(/\/routers\//),
    soft: results(/^st-moe\/soft\//),
    model: results(/^st-moe\/model\//),
    capture: results(/^st-moe\/capture\//),
    server: server(report),
    native: results(/^layer(-gemms)?\//),
    gemms: gemms(report),
    scaling: scaling(report),
    memory: memory(report),
  }
}

const kinds = ['forward', both]

function machine({ machine, load, versions, date, command }: Report): string {
  const { cpu, cores, memoryGiB, system } = machine
  const named = Object.entries(versions).map(([name, version]) => `${name} ${version}`)
  return `${date.slice(0, 10)}, \`${command}\` on ${cores} cores of ${cpu}, ${memoryGiB} GiB, ${system}, load before ${load.toFixed(1)}; ${named.join(', ')}.`
}

/** What the machine can do. */
function limits(report: Report): string {
  const rows = threadsIn(find(report, 'fma')).map((threads) => [
    String(threads),
    ...['fma', 'bf16-dot', 'dram-read'].map((name) => find(report, name, { threads }).map(workPerSecond)[0] ?? '–'),
  ])
  return markdownTable(['threads', 'fused multiply-adds, f32', 'bf16 dot products', 'read of DRAM'], rows)
}

function headline(report: Report): string {
  const largest = (name: string, size: string): Result | undefined =>
    find(report, `st-moe/${name}`).sort((a, b) => Number(b.params[size]) - Number(a.params[size]))[0]
  const long = largest(`growth/${both}`, 'N')
  const rows = [
    { label: 'forward', ours: largest('layer/forward', 'threads') },
    { label: spaced(both), ours: largest(`layer/${both}`, 'threads') },
    { label: `${spaced(both)}, ${Number(long?.params.N).toLocaleString('en')} tokens per sequence`, ours: long },
    { label: "training step of the demo's model", ours: largest('model/step', 'threads') },
  ].flatMap(({ label, ours }) => {
    if (!ours) return []
    const peers = ['st-moe-pytorch', 'index-pytorch'].map((implementation) => {
      const ratio = ratioTo(ours, ours.name.replace('st-moe', implementation), 'speed')
      const [peer] = ratio ? find(report, ratio.name, ratio.params) : []
      return ratio ? `${digits(peer.wallMs.median)} ms, ${digits(ratio.wall.median)}×` : '–'
    })
    return [[label, `${digits(ours.wallMs.median)} ms`, ...peers]]
  })
  return markdownTable(['', 'st-moe', 'st-moe-pytorch', 'index-based PyTorch'], rows)
}

/** The 99th percentile of the delay, and a training step. */
function server(report: Report): string {
  const of = (name: string) => find(report, `st-moe/server/${name}`)
  if (of('delay').length === 0) return 'not measured'
  const ms = ({ wallMs }: Result): string => `${withSpread(wallMs)} ms`
  const rows = of('delay').map((delay, i) => [String(delay.params.training), ms(delay), ms(of('step')[i])])
  const table = markdownTable(['training', 'delay of the event loop, 99th percentile', 'training step'], rows)
  return `${table}\n\n${machine(report)}`
}

function gemms(report: Report): string {
  const all = find(report, 'gemm/a')
  const columns: [header: string, compute: string, ratioOf: (result: Result) => Spread | undefined][] = [
    ['f32: of FMA peak', 'f32', ofLimit('fma')],
    ['of oneDNN', 'f32', (r) => besideOneDnn(r, 'plain')],
    ['of oneDNN, packed', 'f32', (r) => besideOneDnn(r, 'packed')],
    ['bf16, packed: of dot peak', 'bf16', ofLimit('bf16-dot')],
    ['of oneDNN, packed', 'bf16', (r) => besideOneDnn(r, 'packed')],
  ]
  const rows = [...new Set(all.map(({ params }) => Number(params.rows)))].flatMap((size) =>
    threadsIn(all).map((threads) => {
      const cells = columns.map(([, compute, ratioOf]) => {
        const which = { compute, rows: (rows: number) => rows === size, packed: compute === 'bf16' }
        const found = gemmFigures(report, which, ratioOf).find(({ of }) => of === onThreads(threads))
        return found ? digits(found.value.median) : '–'
      })
      return [String(size), String(threads), ...cells]
    }),
  )
  return markdownTable(['rows', 'threads', ...columns.map(([header]) => header)], rows)
}

function scaling(report: Report): string {
  const all = find(report, `scaling/${both}`)
  const threads = threadsIn(all)
  const columns = kinds.flatMap((kind) => threads.map((count) => ({ kind, count })))
  const rows = all
    .filter(({ params }) => params.threads === threads[0])
    .map((size) => {
      const { N, E, K, D } = size.params
      const cells = columns.map(({ kind, count }) => {
        const [result] = find(report, `scaling/${kind}`, { N, E, K, D, threads: count })
        return `${digits(result.wallMs.median)} ms, ${percent(ratioTo(result, 'fma', 'flops')!.wall.median)}`
      })
      return [...[N, E, K, D].map(String), ...cells, dispatched(size)]
    })
  const header = columns.map(({ kind, count }) => `${spaced(kind)}, ${onThreads(count)}`)
  return markdownTable(['N', 'E', 'K', 'D', ...header, 'dispatched / capacity used'], rows)
}

function memory({ memory }: Report): string {
  const ours = memory.find(({ implementation }) => implementation === 'st-moe')?.resident
  const rows = memory.map(({ implementation, resident, counted }) => [
    implementation,
    mebibytes(resident),
    counted === undefined ? '' : mebibytes(counted),
    ours === undefined || implementation === 'st-moe' ? '' : digits(ours / resident),
  ])
  return markdownTable([`N = ${memory[0]?.tokens ?? '–'}`, 'resident', 'counted by memory()', 'ours ÷ theirs'], rows)
}
