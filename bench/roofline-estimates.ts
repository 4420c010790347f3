import { type Gpu, type Pass, ratioOn } from './roofline-model.js'
import { markdownTable } from './table.js'

/**
 * The time of a pass over that of its GEMMs alone on an H100, estimated by hand from data sheets and machine code, before
 * this model had an L2 cache of a size, instructions and latency: what the model is checked against.
 */
export const estimates: readonly { shape: string; pass: 'forward' | 'backward'; ratio: number }[] = [
  ...both('dim 512, 16 experts, 4 × 1024, bf16', 2.3, 1.7),
  ...both('dim 512, 16 experts, 4 × 1024, bf16, dropless', 3.8, 3.4),
  ...both('4096 × 14336, 8 experts, 4 × 2048, bf16', 1.13, 1.12),
  ...both('4096 × 14336, 8 experts, 4 × 2048, bf16, dropless', 1.8, 1.4),
  ...both('2048 × 768, 128 experts, top-8, 8 × 2048, bf16', 1.8, 1.7),
  ...both('2048 × 768, 128 experts, top-8, 8 × 2048, bf16, dropless', 2.4, 2.7),
]

function both(shape: string, forward: number, backward: number) {
  return [
    { shape, pass: 'forward', ratio: forward },
    { shape, pass: 'backward', ratio: backward },
  ] as const
}

/** A row for each estimate: what the model says, and by how much that is more. */
export const estimateTable = (passes: readonly Pass[], gpu: Gpu): string =>
  markdownTable(
    ['shape', 'pass', 'estimate', 'model', 'model ÷ estimate'],
    estimates.flatMap(({ shape, pass, ratio }) =>
      passes
        .filter((counted) => counted.shape === shape && counted.pass === pass)
        .map((counted) => {
          const model = ratioOn(gpu, counted)
          return [shape, pass, ratio.toFixed(2), model.toFixed(2), (model / ratio).toFixed(2)]
        }),
    ),
  )
