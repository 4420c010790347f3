import { command } from './command.js'
import { UsageError } from './errors.js'
import { computeDtypeFlag, deviceFlag, number, threadsFlag, toggle } from './flags.js'
import { jsonLine, line, table } from './output.js'

/** `st-moe bench` */
export const bench = command({
  program: 'st-moe bench',
  summary: 'Measures the layer on this machine, beside its matrix products alone.',
  flags: {
    dim: number({ help: 'model width', default: 512, min: 1 }),
    experts: number({ help: 'experts', default: 16, min: 1, max: 4096 }),
    'top-n': number({ help: 'experts that a token visits at most', default: 2, min: 1 }),
    batch: number({ help: 'sequences', default: 4, min: 1 }),
    tokens: number({ help: 'tokens in a sequence', default: 1024, min: 1 }),
    repetitions: number({ help: 'of each measurement, one more to warm up', default: 7, min: 1, max: 1000 }),
    device: deviceFlag,
    threads: threadsFlag,
    'compute-dtype': computeDtypeFlag,
    json: toggle('the figures as one line of JSON'),
  },
  examples: [
    ['st-moe bench', 'the layer of the documentation, one thread and all'],
    ['st-moe bench --dim 256 --experts 8 --tokens 512 --compute-dtype bf16', 'other sizes'],
    ['st-moe bench --device cuda --json', 'on a card, for programs'],
  ],
  notes: `The floor is what the products of the experts take alone, on as many rows as the router kept. Repetitions of
everything alternate; shown are medians, and the range from the fastest to the slowest.`,
  async run({ values }) {
    const { experts, 'top-n': topN } = values
    if (topN > experts) throw new UsageError(`--top-n must be at most --experts, got ${topN} and ${experts}`)
    const { measure } = await import('./bench/measure.js')
    const result = measure(values)
    if (values.json) {
      jsonLine(result)
      return 0
    }
    const { dim, batch, tokens, device, 'compute-dtype': computeDtype } = values
    const rows = result.rows.map(({ threads, what, ms, fastest, slowest, tokensPerSecond, floorMs }) => [
      device === 'cpu' ? `${threads} ${threads === 1 ? 'thread' : 'threads'}` : device,
      what,
      `${ms.toFixed(1)} ms`,
      `${fastest.toFixed(1)}–${slowest.toFixed(1)}`,
      `${Math.round(tokensPerSecond).toLocaleString('en')} tokens/s`,
      `floor ${floorMs.toFixed(1)} ms, ${(ms / floorMs).toFixed(2)} times that`,
    ])
    line(`dim ${dim}, ${experts} experts, top-${topN}, ${batch} × ${tokens} tokens, products in ${computeDtype}, ${result.variant}
${(result.kept * 100).toFixed(1)} % of the assignments kept
${table(rows)}`)
    return 0
  },
})
