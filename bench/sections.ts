import type { Spread } from '../lib/cli/bench/statistics.js'
import { find, type Report, type Result, ratioTo } from './report.js'
import { digits, dispatched, markdownTable, mebibytes, ofPeak, percent, withSpread, workPerSecond } from './table.js'
import {
  besideOneDnn,
  bf16Peer,
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
  return {
    machine: machine(report),
    limits: limits(report),
    targets: targetTable(report),
    missed: missedList(report),
    headline: headline(report),
    layer: layer(report),
    growth: growth(report),
    bf16: bf16(report),
    whole: whole(report),
    model: model(report),
    gemms: gemms(report),
    scaling: scaling(report),
    memory: memory(report),
  }
}

const kinds = ['forward', both]
const ms = (result: Result | undefined): string => (result ? `${withSpread(result.wallMs)} ms` : '–')

function machine({ machine, load, versions, date, command }: Report): string {
  const { cpu, cores, memoryGiB, system } = machine
  const named = Object.entries(versions).map(([name, version]) => `${name} ${version}`)
  return `${date.slice(0, 10)}, \`${command}\` on ${cores} cores of ${cpu}, ${memoryGiB} GiB, ${system}, load before ${load.toFixed(1)}; ${named.join(', ')}.`
}

/** What the machine can do. */
function limits(report: Report): string {
  const rows = threadsIn(find(report, 'fma')).map((threads) => [
    String(threads),
    ...['fma', 'bf16-dot', 'dram-read'].map(
      (name) => find(report, name, { threads }).slice(0, 1).flatMap(workPerSecond)[0] ?? '–',
    ),
  ])
  return markdownTable(['threads', 'fused multiply-adds, f32', 'bf16 dot products', 'read of DRAM'], rows)
}

/** Times of our case and of the same of others, with how many times as fast ours is. */
function beside(report: Report, label: string[], ours: Result, others: readonly (Result | undefined)[]): string[] {
  const cells = others.map((other) => {
    const ratio = other && ratioTo(ours, other.name, 'speed', { compute: other.params.compute })
    return ratio ? `${ms(other)}, **${digits(ratio.wall.median)}×**` : '–'
  })
  return [...label, ms(ours), percent(ofPeak(report, ours)), dispatched(ours), ...cells]
}

const besideHeader = ['st-moe', 'of FMA peak', 'dispatched / capacity used']

const peersOf = (report: Report, { name, params }: Result): (Result | undefined)[] =>
  ['st-moe-pytorch', 'index-pytorch'].map((peer) => find(report, name.replace('st-moe', peer), params)[0])

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
    const peers = peersOf(report, ours).map((peer) => {
      const ratio = peer && ratioTo(ours, peer.name, 'speed')
      return ratio ? `${digits(peer.wallMs.median)} ms, ${digits(ratio.wall.median)}×` : '–'
    })
    return [[label, `${digits(ours.wallMs.median)} ms`, ...peers]]
  })
  return markdownTable(['', 'st-moe', 'st-moe-pytorch', 'index-based PyTorch'], rows)
}

function layer(report: Report): string {
  const rows = kinds.flatMap((kind) =>
    find(report, `st-moe/layer/${kind}`).map((ours) =>
      beside(report, [spaced(kind), String(ours.params.threads)], ours, peersOf(report, ours)),
    ),
  )
  return markdownTable(['f32', 'threads', ...besideHeader, 'st-moe-pytorch', 'index-pytorch'], rows)
}

function growth(report: Report): string {
  const rows = find(report, `st-moe/growth/${both}`).map((ours) => {
    const peers = peersOf(report, ours)
    const counts = [ours, ...peers].map((result) => result?.samples.length ?? 0)
    return [...beside(report, [String(ours.params.N)], ours, peers), counts.join(' / ')]
  })
  return markdownTable(['N', ...besideHeader, 'st-moe-pytorch', 'index-pytorch', 'repetitions'], rows)
}

function bf16(report: Report): string {
  const rows = kinds.flatMap((kind) =>
    find(report, `st-moe/bf16/${kind}`, { compute: 'bf16' }).map((ours) => {
      const [exact] = find(report, ours.name, { compute: 'f32' })
      const peers = ['bf16', 'autocast'].map((compute) => find(report, `index-pytorch/bf16/${kind}`, { compute })[0])
      const faster = { bf16: 'weights in bf16', autocast: 'autocast' }[String(bf16Peer(report, kind)?.params.compute)]
      return [...beside(report, [spaced(kind)], ours, [exact, ...peers]), faster ?? '–']
    }),
  )
  const header = ['bf16', ...besideHeader, 'st-moe in f32', 'index-pytorch, weights in bf16', 'autocast', 'faster']
  return markdownTable(header, rows)
}

/** The layer vs. its own GEMMs, both without JavaScript. */
function whole(report: Report): string {
  const rows = kinds.flatMap((kind) =>
    find(report, `layer/${kind}`).map((result) => {
      const { threads, compute } = result.params
      const [alone] = find(report, `layer-gemms/${kind}`, { threads, compute })
      const peak = alone.ratios.find(({ measure }) => measure === 'flops')!
      const ratios = [
        ratioTo(result, alone.name, 'time', { compute }),
        ratioTo(result, result.name, 'speed', { compute }),
      ].map((ratio) => (ratio ? digits(ratio.wall.median) : ''))
      const cells = [`${ms(alone)}, ${percent(peak.wall.median)} of ${peak.name}`, ms(result), ...ratios]
      return [spaced(kind), String(compute), String(threads), ...cells, dispatched(result)]
    }),
  )
  const header = ['', '', 'threads', 'GEMMs alone', 'layer', 'layer ÷ GEMMs', 'vs. 1 thread', besideHeader[2]]
  return markdownTable(header, rows)
}

function model(report: Report): string {
  const rows = find(report, 'st-moe/model/step').map((ours) =>
    beside(report, [String(ours.params.threads)], ours, peersOf(report, ours).slice(0, 1)),
  )
  return markdownTable(['threads', ...besideHeader, 'st-moe-pytorch'], rows)
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
  return markdownTable(['N', 'E', 'K', 'D', ...header, besideHeader[2]], rows)
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
