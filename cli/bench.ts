import { isCpu } from '../lib/doctor/index.js'
import { command } from './command.js'
import { UsageError } from './errors.js'
import { computeDtypeFlag, deviceFlag, number, threadsFlag, toggle } from './flags.js'
import { jsonLine, line, table } from './output.js'

/** `st-moe bench` */
export const bench = command({
  program: 'st-moe bench',
  summary: 'Measures the layer on this machine vs. its GEMMs alone.',
  flags: {
    dim: number({ help: 'model dimension', default: 512, min: 1 }),
    experts: number({ help: 'number of experts', default: 16, min: 1, max: 4096 }),
    'top-n': number({ help: 'experts per token (top-k)', default: 2, min: 1 }),
    batch: number({ help: 'sequences per batch', default: 4, min: 1 }),
    tokens: number({ help: 'tokens per sequence', default: 1024, min: 1 }),
    repetitions: number({ help: 'of each measurement, after one for warm-up', default: 7, min: 1, max: 1000 }),
    device: deviceFlag,
    threads: threadsFlag,
    'compute-dtype': computeDtypeFlag,
    json: toggle('print the results as one line of JSON'),
  },
  examples: [
    ['st-moe bench', 'the layer of the documentation, with one thread and with all'],
    ['st-moe bench --dim 256 --experts 8 --tokens 512 --compute-dtype bf16', 'other sizes'],
    ['st-moe bench --device cuda --json', 'on a GPU, for programs'],
  ],
  notes: `GEMMs: the experts' grouped GEMMs alone, on as many rows as the router dispatches. All measurements alternate;
the table shows medians and the range from fastest to slowest.`,
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
      isCpu(device) ? `${threads} ${threads === 1 ? 'thread' : 'threads'}` : device,
      what,
      `${ms.toFixed(1)} ms`,
      `${fastest.toFixed(1)}–${slowest.toFixed(1)}`,
      `${Math.round(tokensPerSecond).toLocaleString('en')} tokens/s`,
      `${(ms / floorMs).toFixed(2)}× its GEMMs, ${floorMs.toFixed(1)} ms`,
    ])
    line(`dim ${dim}, ${experts} experts, top-${topN}, ${batch} × ${tokens} tokens, ${computeDtype} GEMMs, ${result.variant}
${(result.kept * 100).toFixed(1)} % of the assignments dispatched
${table(rows)}`)
    return 0
  },
})
