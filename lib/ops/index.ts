import './copy.js' // a method of Tensor

export type { Activation, ActivationOptions } from './activation.js'
export { type AttentionOptions, attention } from './attention.js'
export { add, div, mul, sub } from './binary.js'
export { clone, to } from './cast.js'
export { combine } from './combine.js'
export { type CrossEntropyOptions, crossEntropy } from './cross-entropy.js'
export { type DispatchOptions, dispatch } from './dispatch.js'
export { dropout } from './dropout.js'
export { embedding } from './embedding.js'
export { type ExpertFfnOptions, type ExpertWeights, expertFfn } from './expert-ffn.js'
export { groupedGemm } from './grouped-gemm.js'
export { layerNorm } from './layernorm.js'
export { type LinearOptions, linear } from './linear.js'
export { mseLoss } from './losses.js'
export { matmul } from './matmul.js'
export { mean, sum } from './reduce.js'
export { reshape } from './reshape.js'
export { rmsNorm } from './rmsnorm.js'
export {
  expertCapacity,
  type RouteOptions,
  type RouteResult,
  type Routing,
  type RoutingRandom,
  route,
} from './route.js'
export { logSoftmax, softmax } from './softmax.js'
export { concat, slice, transpose } from './strided.js'
export { type TopK, topk } from './topk.js'
export * from './unary.js'
