import { loadAddon } from './addon.js'
import { MoeError, type MoeErrorCode } from './errors.js'

/** A live native tensor: slot and generation in one number, with nothing for the garbage collector. */
export type Handle = number
type Optional = Handle | null

/** The addon. One function per op; argument order as in native/binding. */
export interface Native {
  setErrorFactory(make: (code: string, op: string, text: string) => Error): void
  setThreads(threads: number): void
  getThreads(): number
  /** 0, or the number of the error: that of EAGAIN if another process holds the lock. */
  lockFile(file: number): number
  deviceInfo(device: number): { name: string; variant: string }
  probePlugin(path: string): { devices: number; stage: string; reason: string }
  openDevice(path: string, index: number): number
  memory(device: number): [tensors: number, bytes: number, peakBytes: number, cachedBytes: number]
  resetPeak(device: number): void
  retain(handle: Handle): void
  release(handle: Handle): void
  unique(handle: Handle): boolean
  version(handle: Handle): number
  keepPacked(handle: Handle): void
  fromData(data: ArrayBufferView, dtype: number, shape: readonly number[], device: number): Handle
  toData(x: Handle, data: ArrayBufferView): void
  toDevice(x: Handle, device: number): Handle
  full(shape: readonly number[], dtype: number, device: number, value: number): Handle
  random(
    shape: readonly number[],
    dtype: number,
    device: number,
    normal: boolean,
    a: number,
    b: number,
    seed: number,
    step: number,
  ): Handle
  convert(x: Handle, dtype: number): Handle
  reshape(x: Handle, shape: readonly number[]): Handle
  reshapeOwned(x: Handle, shape: readonly number[]): Handle
  gather(x: Handle, shape: readonly number[], strides: readonly number[], offset: number): Handle
  scatter(target: Handle, x: Handle, strides: readonly number[], offset: number): void
  unaryKinds(): string[]
  unary(x: Handle, kind: number): Handle
  unaryBackward(x: Handle, dy: Handle, kind: number): Handle
  binary(a: Handle, b: Handle, kind: number): Handle
  addInPlace(a: Handle, b: Handle): void
  scaleInPlace(x: Handle, factor: number): void
  reduce(x: Handle, split: readonly number[], shape: readonly number[], factor: number): Handle
  sumSquares(x: Handle, scale: number): number

  matmul(a: Handle, b: Handle, transposeA: boolean, transposeB: boolean): Handle
  linear(x: Handle, w: Handle, bias: Optional, compute: number): Handle
  linearBackward(
    dy: Handle,
    x: Handle,
    w: Handle,
    needX: boolean,
    needW: boolean,
    needBias: boolean,
    compute: number,
  ): Optional[]
  embedding(w: Handle, index: Handle): Handle
  embeddingBackward(dy: Handle, index: Handle, V: number): Handle
  rmsnorm(x: Handle, gamma: Handle): Handle
  rmsnormBackward(dy: Handle, x: Handle, gamma: Handle): Handle[]
  layernorm(x: Handle, weight: Handle, bias: Handle, eps: number): Handle
  layernormBackward(dy: Handle, x: Handle, weight: Handle, eps: number): Handle[]
  softmax(x: Handle, log: boolean): Handle
  softmaxBackward(dy: Handle, y: Handle, log: boolean): Handle
  crossEntropy(logits: Handle, target: Handle, ignoreIndex: number): [loss: Handle, lse: Handle]
  crossEntropyBackward(dloss: Handle, logits: Handle, lse: Handle, target: Handle, ignoreIndex: number): Handle
  attention(q: Handle, k: Handle, v: Handle, heads: number, scale: number, causal: boolean): [y: Handle, lse: Handle]
  attentionBackward(
    dy: Handle,
    q: Handle,
    k: Handle,
    v: Handle,
    y: Handle,
    lse: Handle,
    heads: number,
    scale: number,
    causal: boolean,
  ): Handle[]
  dropout(x: Handle, p: number, seed: number, step: number): Handle

  tokenMask(x: Handle): Handle
  route(
    x: Handle,
    w: Handle,
    threshold: Handle,
    uniforms: Optional,
    gumbelUniforms: Optional,
    mask: Optional,
    K: number,
    capacity: number,
    seed: number,
    step: number,
    gumbelStep: number,
    noiseMult: number,
    eps: number,
    balanceLossCoef: number,
    routerZLossCoef: number,
    noisy: boolean,
    training: boolean,
    differentiableTopk: boolean,
    densityAssigned: boolean,
  ): Handle[]
  routeBackward(
    dweight: Optional,
    dbalance: Optional,
    dz: Optional,
    dtotal: Optional,
    x: Handle,
    w: Handle,
    mask: Optional,
    expertIndex: Handle,
    kept: Handle,
    gate: Handle,
    probs: Handle,
    logits: Handle,
    lse: Handle,
    density: Handle,
    eps: number,
    balanceLossCoef: number,
    routerZLossCoef: number,
    noisy: boolean,
    training: boolean,
    differentiableTopk: boolean,
    needX: boolean,
    needW: boolean,
  ): Optional[]
  expertFfn(
    x: Handle,
    expertIndex: Optional,
    position: Optional,
    weight: Optional,
    w1: Handle,
    b1: Handle,
    multBias: Handle,
    w2: Handle,
    b2: Handle,
    B: number,
    capacity: number,
    save: boolean,
    compute: number,
  ): [y: Handle, a: Optional]
  expertFfnBackward(
    dy: Handle,
    x: Handle,
    expertIndex: Optional,
    position: Optional,
    weight: Optional,
    w1: Handle,
    b1: Handle,
    multBias: Handle,
    w2: Handle,
    b2: Handle,
    a: Handle,
    B: number,
    capacity: number,
    straightThrough: boolean,
    needX: boolean,
    needParameters: boolean,
    compute: number,
  ): Optional[]
  dispatch(x: Handle, expertIndex: Handle, position: Handle, E: number, capacity: number): Handle
  dispatchBackward(dy: Handle, x: Handle, expertIndex: Handle, position: Handle, straightThrough: boolean): Optional[]
  combine(x: Handle, weight: Handle, expertIndex: Handle, position: Handle): Handle
  combineBackward(dy: Handle, x: Handle, weight: Handle, expertIndex: Handle, position: Handle): Handle[]
  topk(x: Handle, K: number): [value: Handle, index: Handle]
  topkBackward(dvalue: Handle, index: Handle, E: number): Handle
  groupedGemm(x: Handle, w: Handle, groupSizes: Handle, compute: number): Handle
  groupedGemmBackward(dy: Handle, x: Handle, w: Handle, groupSizes: Handle, compute: number): Handle[]

  captureBegin(device: number): void
  captureAside(on: boolean): void
  captureEnd(keep: boolean): number | undefined
  replay(step: number, numbers: Float64Array): void
  releaseCapture(step: number): void

  adamw(
    p: Handle,
    g: Handle,
    m: Handle,
    v: Handle,
    step: number,
    lr: number,
    beta1: number,
    beta2: number,
    eps: number,
    weightDecay: number,
  ): void
  sgd(p: Handle, g: Handle, buffer: Optional, step: number, lr: number, momentum: number, weightDecay: number): void
}

const loaded = loadAddon()
export const native = loaded.addon as Native
native.setErrorFactory((code, op, text) => new MoeError(code as MoeErrorCode, op, text.slice(op.length + 3)))
/** Where the addon was found; plugins lie beside it. */
export const addonFile: string = loaded.file
