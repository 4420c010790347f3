export { AdamW, type AdamWOptions } from './adamw.js'
export { type ClipOptions, clipGradNorm } from './clip.js'
export {
  Optimizer,
  type OptimizerOptions,
  type ParameterState,
  type ParameterUpdate,
  type StateTensors,
} from './optimizer.js'
export { SGD, type SGDOptions } from './sgd.js'
