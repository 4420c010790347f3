/** What the demo and the benchmark use of the program `st-moe`. Not a part of the package. */

export { Layer, type LayerSizes } from './bench/layer.js'
export { type Spread, spreadOf } from './bench/statistics.js'
export { number, parseFlags } from './flags.js'
export { html, Markup } from './markup.js'
export { mean } from './numbers.js'
export { trainCommand } from './train.js'
export { conflictOf } from './trainer/conflict.js'
export { batchesOptions, layerFlags, modelSizes, type RunOptions, runFlags } from './trainer/options.js'
