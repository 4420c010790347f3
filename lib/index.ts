export type { GradHook } from './autograd.js'
export {
  arange,
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
  memory,
  resetPeakMemory,
  setDefaultDevice,
  setNumThreads,
} from './device.js'
export type { ComputeDType, DType, TypedArray } from './dtype.js'
export { MoeError, type MoeErrorCode } from './errors.js'
export * from './io/index.js'
export * as nn from './nn/index.js'
export * from './nn/index.js'
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
export * as optim from './optim/index.js'
export * from './optim/index.js'
export { Generator, manualSeed } from './random.js'
export { keep, noGrad, scope } from './scope.js'
export { Tensor } from './tensor.js'
