/// <reference lib="esnext.disposable" preserve="true" />
/**
 * Sparse mixture-of-experts layers for Node.js. Every name is imported from `st-moe`; the examples leave that line out.
 *
 * Letters in shapes: B sequences, N tokens of a sequence, D width, E experts, K choices of a token, C capacity (slots of
 * one expert for one sequence), H hidden width of an expert, V symbols; `[..., D]` is any shape that ends with D.
 *
 * "Errors" lists codes of {@link MoeError}. Besides those listed, any argument of a wrong kind is `OPTION`, a disposed
 * tensor `DISPOSED`, and memory that runs out `OUT_OF_MEMORY`.
 *
 * @packageDocumentation
 */

import './backward.js' // methods of Tensor

export type { GradHook, HookHandle } from './autograd.js'
export type { BackwardOptions } from './backward.js'
export { type CapturedStep, captureStep } from './capture.js'
export {
  arange,
  type DTypeOf,
  full,
  type NestedArray,
  ones,
  type RandomOptions,
  rand,
  randn,
  type TensorOptions,
  tensor,
  uniform,
  zeros,
} from './create.js'
export {
  type Device,
  type DeviceInfo,
  devices,
  getDefaultDevice,
  getNumThreads,
  type MemoryInfo,
  type MemoryReport,
  memory,
  resetPeakMemory,
  setDefaultDevice,
  setNumThreads,
} from './device.js'
export type { ComputeDType, DType, DTypeArrays, FloatDType, TypedArray } from './dtype.js'
export { MoeError, type MoeErrorCode } from './errors.js'
export * from './io/index.js'
/** The layers, also exported by themselves. */
export * as nn from './nn/index.js'
export * from './nn/index.js'
/** All functions of tensors, differentiable where that makes sense; the most used are also exported by themselves. */
export * as ops from './ops/index.js'
export {
  attention,
  concat,
  crossEntropy,
  dropout,
  embedding,
  gelu,
  layerNorm,
  linear,
  logSoftmax,
  matmul,
  mseLoss,
  relu,
  rmsNorm,
  sigmoid,
  silu,
  softmax,
  tanh,
} from './ops/index.js'
/** The optimizers, also exported by themselves. */
export * as optim from './optim/index.js'
export * from './optim/index.js'
export { defaultGenerator, Generator, type GeneratorState, manualSeed } from './random.js'
export { keep, noGrad, scope } from './scope.js'
export { Tensor } from './tensor.js'
