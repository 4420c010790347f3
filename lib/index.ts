/// <reference lib="esnext.disposable" preserve="true" />
/**
 * Sparse mixture-of-experts layers for Node.js. Import every name from `st-moe`; the examples omit that line.
 *
 * Letters in shapes: B batch size, N tokens per sequence, D model dimension, E experts, K experts per token, C capacity
 * (slots per expert and sequence), H hidden size of an expert, V vocabulary size; `[..., D]` is any shape that ends
 * with D.
 *
 * "Errors" lists codes of {@link MoeError}. In addition, any function may throw `OPTION` for an argument of the wrong
 * type, `DISPOSED` for a disposed tensor and `OUT_OF_MEMORY`.
 *
 * @packageDocumentation
 */

import './runtime/symbol-dispose.js' // before the classes
import './autograd/backward.js' // methods of Tensor
import './tensor/elements.js'

export { type AsyncOptions, trainStepAsync } from './autograd/async.js'
export type { GradHook } from './autograd/autograd.js'
export type { BackwardOptions } from './autograd/backward.js'
export { type CapturedStep, captureStep } from './autograd/capture.js'
export type { HookHandle } from './autograd/context.js'
export { defaultGenerator, Generator, type GeneratorState, manualSeed } from './autograd/random.js'
export { allOrNone, keep, noGrad, scope } from './autograd/scope.js'
export * from './data/index.js'
export * from './distributed/index.js'
export * from './io/index.js'
/** Building blocks for libraries and programs on top of this package: declared options, checks, safe files. */
export * as utils from './io/utils.js'
/** The layers, also exported directly. */
export * as nn from './nn/index.js'
export * from './nn/index.js'
export { isGated as isGatedActivation } from './ops/activation.js'
/** All functions on tensors, differentiable where possible; the most common are also exported directly. */
export * as ops from './ops/index.js'
export {
  attention,
  binaryCrossEntropyWithLogits,
  concat,
  crossEntropy,
  dropout,
  embedding,
  gelu,
  huberLoss,
  klDiv,
  layerNorm,
  linear,
  logSoftmax,
  matmul,
  mseLoss,
  relu,
  rmsNorm,
  sigmoid,
  silu,
  smoothL1Loss,
  softmax,
  tanh,
} from './ops/index.js'
export { type Quantized, quantize } from './ops/quantize.js'
/** The optimizers, also exported directly. */
export * as optim from './optim/index.js'
export * from './optim/index.js'
export {
  type Device,
  type DeviceInfo,
  devices,
  getDefaultDevice,
  getNumThreads,
  setDefaultDevice,
  setNumThreads,
} from './runtime/device.js'
export type { ComputeDType, DType, DTypeArrays, FloatDType, TypedArray, WeightFormat } from './runtime/dtype.js'
export { MoeError, type MoeErrorCode } from './runtime/errors.js'
export {
  emptyCache,
  type MemoryInfo,
  type MemoryReport,
  memory,
  resetPeakMemory,
  setMemoryLimit,
} from './runtime/memory.js'
export { type ParallelGroups, ProcessGroup } from './runtime/process-group.js'
export type { AbortSignalLike } from './runtime/signal.js'
export { SummaryWriter, type SummaryWriterOptions } from './summary/writer.js'
export {
  arange,
  type DTypeOf,
  full,
  ones,
  type RandomOptions,
  rand,
  randn,
  randperm,
  type TensorOptions,
  tensor,
  uniform,
  zeros,
} from './tensor/create.js'
export { type NestedArray, Tensor } from './tensor/tensor.js'
