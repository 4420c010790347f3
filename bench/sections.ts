import { besideOneDnn, bf16Peer, onThreads, productFigures, threadsIn } from './figures.js'
import { find, type Params, type Report, type Result, ratioTo } from './report.js'
import type { Spread } from './statistics.js'
import { digits, keptAndFull, markdownTable, mebibytes, percent, shareOfPeak, withSpread } from './table.js'
import { missedList, targetTable } from './targets.js'

/** The parts of docs/performance.md and the README that come from a report, as Markdown. */
export function sectionsOf(report: Report): Record<string, string> {
  return {
    machine: machine(report),
    targets: targetTable(report),
    missed: missedList(report),
    headline: headline(report),
    layer: layer(report),
    growth: growth(report),
    bf16: bf16(report),
    whole: whole(report),
    model: model(report),
    products: products(report),
    scaling: scaling(report),
    memory: memory(report),
  }
}

const both = 'forward+backward'
const spaced = (kind: string): string => kind.replace('+', ' + ')
const ms = (result: Result | undefined): string => (result ? `${withSpread(result.wallMs)} ms` : '–')

function machine(report: Report): string {
  const { machine, load, versions, date, command } = report
  const { cpu, cores, memoryGiB, system } = machine
  const named = Object.entries(versions).map(([name, version]) => `${name} ${version}`)
  const run = `${date.slice(0, 10)}, \`${command}\` on ${cores} cores of ${cpu}, ${memoryGiB} GiB, ${system}, load before ${load.toFixed(1)}; ${named.join(', ')}.`
  return [run, ...floors(report)].join('\n\n')
}

/** What the machine can do. */
function floors(report: Report): string[] {
  const rate = (name: string, threads: number, work: 'flops' | 'bytes', unit: string): string => {
    const [floor] = find(report, name, { threads })
    return floor ? `${digits((floor[work]! / floor.wallMs.median) * 1e-6)} ${unit}` : '–'
  }
  const rows = threadsIn(find(report, 'fma')).map((threads) => [
    String(threads),
    rate('fma', threads, 'flops', 'GFLOP/s'),
    rate('bf16-dot', threads, 'flops', 'GFLOP/s'),
    rate('dram-read', threads, 'bytes', 'GB/s'),
  ])
  if (rows.length === 0) return []
  return [markdownTable(['threads', 'fused multiply-adds, f32', 'bf16 dot products', 'read of DRAM'], rows)]
}

/** Times of our case and of the same of others, with how many times as fast ours is. */
function beside(report: Report, label: string[], ours: Result, others: readonly (Result | undefined)[]): string[] {
  const cells = others.map((other) => {
    const ratio = other && ratioTo(ours, other.name, 'speed', { compute: other.params.compute })
    return ratio ? `${ms(other)}, **${digits(ratio.wall.median)}×**` : '–'
  })
  return [...label, ms(ours), percent(shareOfPeak(report, ours)), keptAndFull(ours), ...cells]
}

const besideHeader = ['st-moe', 'of FMA peak', 'kept / slots full']

function peersOf(report: Report, { name, params }: Result): (Result | undefined)[] {
  const same: Params = { ...params }
  return ['st-moe-pytorch', 'index-pytorch'].map((peer) => find(report, name.replace('st-moe', peer), same)[0])
}

function headline(report: Report): string {
  const layers = ['layer/forward', `layer/${both}`, 'model/step'].flatMap((what) => {
    const [ours] = find(report, `st-moe/${what}`).sort((a, b) => Number(b.params.threads) - Number(a.params.threads))
    return ours
      ? [[what === 'model/step' ? "training step of the demo's model" : spaced(what.slice(6)), ours] as const]
      : []
  })
  const long = find(report, `st-moe/growth/${both}`).sort((a, b) => Number(b.params.N) - Number(a.params.N))[0]
  if (long)
    layers.splice(2, 0, [`${spaced(both)}, ${Number(long.params.N).toLocaleString('en')} tokens a sequence`, long])
  const rows = layers.map(([label, ours]) => [
    label,
    `${digits(ours.wallMs.median)} ms`,
    ...peersOf(report, ours).map((peer) => {
      const ratio = peer && ratioTo(ours, peer.name, 'speed')
      return ratio ? `${digits(peer.wallMs.median)} ms, ${digits(ratio.wall.median)}×` : '–'
    }),
  ])
  return markdownTable(['', 'st-moe', 'st-moe-pytorch', 'index-based PyTorch'], rows)
}

function layer(report: Report): string {
  const rows = ['forward', both].flatMap((kind) =>
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
  const table = markdownTable(['N', ...besideHeader, 'st-moe-pytorch', 'index-pytorch', 'repetitions'], rows)
  return `${table}\n\n![Time of a training step over the length of a sequence](images/growth.svg)`
}

function bf16(report: Report): string {
  const rows = ['forward', both].flatMap((kind) => {
    const [ours] = find(report, `st-moe/bf16/${kind}`, { compute: 'bf16' })
    if (!ours) return []
    const [exact] = find(report, ours.name, { compute: 'f32' })
    const peers = ['bf16', 'autocast'].map((compute) => find(report, `index-pytorch/bf16/${kind}`, { compute })[0])
    const fastest = bf16Peer(report, kind)
    const row = beside(report, [spaced(kind)], ours, [exact, ...peers])
    return [[...row, fastest ? (fastest.params.compute === 'bf16' ? 'weights in bf16' : 'autocast') : '–']]
  })
  const header = ['bf16', ...besideHeader, 'st-moe in f32', 'index-pytorch, weights in bf16', 'autocast', 'faster']
  return markdownTable(header, rows)
}

/** The layer beside its own products, both without JavaScript. */
function whole(report: Report): string {
  const rows = ['forward', both].flatMap((kind) =>
    find(report, `layer/${kind}`).map((result) => {
      const { threads, compute } = result.params
      const [alone] = find(report, `layer-products/${kind}`, { threads, compute })
      const [time, speed] = (['time', 'speed'] as const).map(
        (measure) => ratioTo(result, measure === 'time' ? alone.name : result.name, measure, { compute })?.wall,
      )
      const [peak] = alone.ratios.filter(({ measure }) => measure === 'flops')
      const products = `${withSpread(alone.wallMs)} ms, ${percent(peak.wall.median)} of ${peak.name}`
      const cells = [time, speed].map((ratio) => (ratio ? digits(ratio.median) : ''))
      return [spaced(kind), String(compute), String(threads), products, ms(result), ...cells, keptAndFull(result)]
    }),
  )
  const header = ['', '', 'threads', 'products alone', 'layer', 'layer ÷ products', 'of 1 thread', 'kept / slots full']
  return markdownTable(header, rows)
}

function model(report: Report): string {
  const rows = find(report, 'st-moe/model/step').map((ours) =>
    beside(report, [String(ours.params.threads)], ours, peersOf(report, ours).slice(0, 1)),
  )
  return markdownTable(['threads', ...besideHeader, 'st-moe-pytorch'], rows)
}

function products(report: Report): string {
  const all = find(report, 'gemm/a')
  const sizes = [...new Set(all.map(({ params }) => Number(params.rows)))]
  const figuresOf = (size: number, threads: number): string[] => {
    const mean = (compute: string, packed: boolean, ratioOf: (result: Result) => Spread | undefined) => {
      const found = productFigures(report, { compute, rows: (rows) => rows === size, packed }, ratioOf)
      const value = found.find(({ of }) => of === onThreads(threads))?.value
      return value ? digits(value.median) : '–'
    }
    return [
      mean('f32', false, (r) => ratioTo(r, 'fma', 'flops')?.wall),
      mean('f32', false, (r) => besideOneDnn(r, 'plain')),
      mean('f32', false, (r) => besideOneDnn(r, 'packed')),
      mean('bf16', true, (r) => ratioTo(r, 'bf16-dot', 'flops')?.wall),
      mean('bf16', true, (r) => besideOneDnn(r, 'packed')),
    ]
  }
  const rows = sizes.flatMap((size) =>
    threadsIn(all).map((threads) => [String(size), String(threads), ...figuresOf(size, threads)]),
  )
  const f32 = ['f32: of FMA peak', 'of oneDNN', 'of oneDNN, packed']
  return markdownTable(['rows', 'threads', ...f32, 'bf16, packed: of dot peak', 'of oneDNN, packed'], rows)
}

function scaling(report: Report): string {
  const all = find(report, `scaling/${both}`)
  const threads = threadsIn(all)
  const sizes = all.filter(({ params }) => params.threads === threads[0])
  const rows = sizes.map((size) => {
    const { N, E, K, D } = size.params
    const cells = ['forward', both].flatMap((kind) =>
      threads.map((count) => {
        const [result] = find(report, `scaling/${kind}`, { N, E, K, D, threads: count })
        return `${digits(result.wallMs.median)} ms, ${percent(ratioTo(result, 'fma', 'flops')!.wall.median)}`
      }),
    )
    return [...[N, E, K, D].map(String), ...cells, keptAndFull(size)]
  })
  const columns = ['forward', spaced(both)].flatMap((kind) => threads.map((count) => `${kind}, ${onThreads(count)}`))
  const table = markdownTable(['N', 'E', 'K', 'D', ...columns, 'kept / slots full'], rows)
  return `${table}\n\n![Share of the FMA peak over the sizes of the layer](images/scaling.svg)`
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
