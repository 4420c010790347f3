import './copy.js' // a method of Tensor

export type { Activation, ActivationOptions } from './activation.js'
export { type AllGatherOptions, allGather } from './all-gather.js'
export { type AllReduceOptions, allReduce } from './all-reduce.js'
export { type AllToAllOptions, allToAll } from './all-to-all.js'
export { type AttentionOptions, attention } from './attention.js'
export { add, type BinaryOperation, div, maximum, minimum, mul, pow, sub } from './binary.js'
export { type BroadcastOptions, broadcast } from './broadcast.js'
export {
  type AttentionCache,
  type CachedAttentionOptions,
  type CachePlace,
  cachedAttention,
} from './cached-attention.js'
export { clone, to } from './cast.js'
export { combine } from './combine.js'
export { clamp, equal, greater, greaterEqual, less, lessEqual, where } from './compare.js'
export { type CrossEntropyOptions, crossEntropy } from './cross-entropy.js'
export { type DispatchOptions, dispatch } from './dispatch.js'
export { dropout } from './dropout.js'
export { embedding } from './embedding.js'
export { expertChoice } from './expert-choice.js'
export { type ExpertFfnOptions, type ExpertWeights, expertFfn } from './expert-ffn.js'
export { argmax, argmin, max, min } from './extremum.js'
export { gather, indexSelect } from './gather.js'
export { groupedGemm } from './grouped-gemm.js'
export { layerNorm } from './layernorm.js'
export { type LinearOptions, linear } from './linear.js'
export {
  type BinaryCrossEntropyOptions,
  binaryCrossEntropyWithLogits,
  type HuberOptions,
  huberLoss,
  type KlDivOptions,
  klDiv,
  type LossOptions,
  mseLoss,
  type Reduction,
  type SmoothL1Options,
  smoothL1Loss,
} from './losses.js'
export { matmul } from './matmul.js'
export { type RecvOptions, recv } from './recv.js'
export { mean, sum } from './reduce.js'
export { type ReduceScatterOptions, reduceScatter } from './reduce-scatter.js'
export { reshape, squeeze, unsqueeze } from './reshape.js'
export { rmsNorm } from './rmsnorm.js'
export { type RotaryOptions, rotary } from './rotary.js'
export { route } from './route.js'
export type { ExpertChoiceOptions, RouteOptions, RoutingRandom } from './route-options.js'
export { expertCapacity, type RouteResult, type Routing } from './routing.js'
export { type SendOptions, send } from './send.js'
export { logSoftmax, softmax } from './softmax.js'
export { concat, slice, stack, transpose } from './strided.js'
export { type TopK, topk } from './topk.js'
export * from './unary.js'
