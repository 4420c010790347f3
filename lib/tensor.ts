import { type GradHook, type Node, runBackward } from './autograd.js'
import { checkBoolean, checkFunction, checkOptions, fail, sameShape, showShape, sizeOf } from './check.js'
import { type Device, deviceIndex } from './device.js'
import { allocateArray, type DType, dtypeCode, isFloat } from './dtype.js'
import { MoeError, show } from './errors.js'
import { type Handle, native } from './native.js'
import { add, div, mul, sub } from './ops/binary.js'
import { clone, to } from './ops/cast.js'
import { matmul } from './ops/matmul.js'
import { mean, sum } from './ops/reduce.js'
import { reshape } from './ops/reshape.js'
import { softmax } from './ops/softmax.js'
import { slice, transpose } from './ops/strided.js'
import { abs, exp, gelu, log, neg, relu, sigmoid, silu, sqrt, square, tanh } from './ops/unary.js'
import { currentScope, type Scope } from './scope.js'

/** What a finalizer needs, apart from the Tensor itself. */
interface Held {
  handle: Handle // 0 when disposed
  source: { node: Node; output: number } | null
}

function letGo(held: Held): void {
  if (held.handle === 0) return
  native.release(held.handle)
  held.handle = 0
  held.source?.node.release()
  held.source = null
}

/** Only a safety net: in a synchronous loop finalizers do not run. */
const finalizers = new FinalizationRegistry<Held>(letGo)
/** Opens the constructor to this package. */
export const adopt = Symbol('st-moe adopt')

export interface TensorMeta {
  shape: readonly number[]
  dtype: DType
  device: Device
}

// For the other files of this package; not exported from it.

/** Whether a value is a real Tensor: no look-alike, no proxy. */
export let isTensor: (value: unknown) => value is Tensor
/** 0 when disposed. */
export let handleOf: (tensor: Tensor) => Handle
/** A Tensor that takes over a handle. */
export let wrap: (handle: Handle, meta: TensorMeta) => Tensor
export let sourceOf: (tensor: Tensor) => { node: Node; output: number } | null
export let setSource: (tensor: Tensor, node: Node, output: number) => void
export let leafHooksOf: (tensor: Tensor) => readonly GradHook[]
export let gradOwnerOf: (tensor: Tensor) => Tensor | null
export let isKept: (tensor: Tensor) => boolean
/** Puts the memory of a leaf and its gradient on another device, in place. */
export let moveToDevice: (tensor: Tensor, device: Device, number: number) => void
/** null: the tensor lives until disposed. */
export let moveToScope: (tensor: Tensor, scope: Scope | null) => void
/** Adds to `leaf.grad`; takes the gradient over. */
export let accumulateGrad: (leaf: Tensor, grad: Handle) => void

/**
 * A contiguous array on a device. Operations give new tensors and never change their inputs. Memory is freed by
 * `scope`, `using` or `dispose()`.
 *
 * @example
 * using x = tensor([[1, 2], [3, 4]])
 * x.mul(2).sum().item() // 20
 */
export class Tensor {
  #meta: TensorMeta
  readonly #size: number
  readonly #held: Held
  #scope: Scope | null = null
  #kept = false
  #requiresGrad = false
  #grad: Tensor | null = null
  #gradOwner: Tensor | null = null
  readonly #hooks: GradHook[] = []

  /** @internal Tensors are made by functions such as `tensor` and `zeros`. */
  constructor(key: unknown, handle?: Handle, meta?: TensorMeta) {
    if (key !== adopt || handle === undefined || meta === undefined) {
      throw new MoeError('OPTION', 'Tensor', 'a Tensor is made by tensor(), zeros(), randn() …, not by its constructor')
    }
    const { shape, dtype, device } = meta
    this.#meta = { shape: Object.freeze([...shape]), dtype, device }
    this.#size = sizeOf(shape)
    this.#held = { handle, source: null }
    finalizers.register(this, this.#held, this.#held)
    const scope = currentScope()
    if (scope) moveToScope(this, scope)
  }

  get shape(): readonly number[] {
    return this.#meta.shape
  }

  get dtype(): DType {
    return this.#meta.dtype
  }

  get device(): Device {
    return this.#meta.device
  }

  /** Number of elements. */
  get size(): number {
    return this.#size
  }

  get disposed(): boolean {
    return this.#held.handle === 0
  }

  /** Frees the memory now, if nothing recorded still needs it. A second call does nothing. */
  dispose(): void {
    if (this.disposed) return
    this.#scope?.tensors.delete(this)
    this.#scope = null
    finalizers.unregister(this.#held)
    letGo(this.#held)
    this.#grad?.dispose()
    this.#grad = null
  }

  [Symbol.dispose](): void {
    this.dispose()
  }

  // ---- gradients

  get requiresGrad(): boolean {
    return this.#requiresGrad
  }

  /** Setting it makes this tensor a leaf: whatever made it is forgotten, and `backward` puts its gradient in `grad`. */
  set requiresGrad(value: boolean) {
    checkBoolean('Tensor.requiresGrad', 'value', value)
    if (value && !isFloat(this.dtype))
      fail('DTYPE', 'Tensor.requiresGrad', `only f32 and f64 tensors have gradients, this is ${this.dtype}`)
    this.#held.source?.node.release()
    this.#held.source = null
    this.#requiresGrad = value
  }

  /** The accumulated gradient of a leaf, of the same shape; null before the first `backward` and after `zeroGrad`. */
  get grad(): Tensor | null {
    return this.#grad
  }

  set grad(value: Tensor | null) {
    if (value !== null) checkTensor('Tensor.grad', 'value', value, this)
    if (value === this.#grad) return
    this.#grad?.dispose()
    this.#grad = value
    if (value) value.#gradOwner = this
  }

  /**
   * Adds d(this)/d(leaf) to `leaf.grad` for every leaf with `requiresGrad`. `gradient` has the shape of this tensor
   * and may be left out where it has one element. Frees the graph unless `retainGraph`.
   */
  backward(gradient?: Tensor | null, options?: { retainGraph?: boolean }): void {
    const op = 'Tensor.backward'
    const { retainGraph = false } = checkOptions<{ retainGraph: boolean }>(op, options, ['retainGraph'])
    checkBoolean(op, 'retainGraph', retainGraph)
    checkTensor(op, 'this', this)
    if (!this.#requiresGrad) fail('UNSUPPORTED', op, 'this tensor does not depend on any tensor with requiresGrad')
    if (gradient === undefined || gradient === null) {
      if (this.size !== 1)
        fail('SHAPE', op, `a tensor of shape ${showShape(this.shape)} needs a gradient of the same shape`)
      runBackward(this, native.full(this.shape, dtypeCode(this.dtype), deviceIndex(op, this.device), 1), retainGraph)
      return
    }
    checkTensor(op, 'gradient', gradient, this)
    const handle = handleOf(gradient)
    native.retain(handle)
    runBackward(this, handle, retainGraph)
  }

  /**
   * Calls `fn` with the gradient of this tensor in every backward; a tensor that it returns takes the gradient's place.
   * The gradient is disposed after the call unless kept or cloned.
   */
  registerHook(fn: GradHook): { remove(): void } {
    checkFunction('Tensor.registerHook', 'fn', fn)
    if (!this.#requiresGrad) fail('OPTION', 'Tensor.registerHook', 'this tensor does not require a gradient')
    const source = this.#held.source
    const hooks = source ? source.node.hooks[source.output] : this.#hooks
    const entry: GradHook = (grad) => fn(grad)
    hooks.push(entry)
    return {
      remove: () => {
        const at = hooks.indexOf(entry)
        if (at >= 0) hooks.splice(at, 1)
      },
    }
  }

  /** The same values, sharing memory, without history. */
  detach(): Tensor {
    return wrap(native.reshape(handleOf(checkTensor('Tensor.detach', 'this', this)), this.shape), this)
  }

  // ---- values

  /** A copy of the values. bf16 and f16 come as their bits in a Uint16Array. */
  dataSync(): Float32Array | Float64Array | Int32Array | Uint16Array {
    checkTensor('Tensor.dataSync', 'this', this)
    const data = allocateArray('Tensor.dataSync', this.dtype, this.size)
    native.toData(this.#held.handle, data)
    return data
  }

  async data(): Promise<Float32Array | Float64Array | Int32Array | Uint16Array> {
    return this.dataSync()
  }

  /** The value of a tensor with one element. */
  item(): number {
    checkTensor('Tensor.item', 'this', this)
    if (this.size !== 1) fail('SHAPE', 'Tensor.item', `needs one element, this has shape ${showShape(this.shape)}`)
    if (isFloat(this.dtype) || this.dtype === 'i32') return this.dataSync()[0]
    const wide = native.convert(this.#held.handle, dtypeCode('f32'))
    const data = new Float32Array(1)
    native.toData(wide, data)
    native.release(wide)
    return data[0]
  }

  toString(): string {
    return `Tensor(${showShape(this.shape)}, ${this.dtype}, ${this.device}${this.disposed ? ', disposed' : ''})`
  }

  /** What console.log shows. */
  [Symbol.for('nodejs.util.inspect.custom')](): string {
    return this.toString()
  }

  // ---- the functions of the same name as methods

  /** a + b with broadcasting; also of a number. */
  add(other: Tensor | number): Tensor {
    return add(this, other)
  }
  sub(other: Tensor | number): Tensor {
    return sub(this, other)
  }
  mul(other: Tensor | number): Tensor {
    return mul(this, other)
  }
  div(other: Tensor | number): Tensor {
    return div(this, other)
  }
  neg(): Tensor {
    return neg(this)
  }
  exp(): Tensor {
    return exp(this)
  }
  log(): Tensor {
    return log(this)
  }
  sqrt(): Tensor {
    return sqrt(this)
  }
  abs(): Tensor {
    return abs(this)
  }
  square(): Tensor {
    return square(this)
  }
  relu(): Tensor {
    return relu(this)
  }
  gelu(): Tensor {
    return gelu(this)
  }
  silu(): Tensor {
    return silu(this)
  }
  sigmoid(): Tensor {
    return sigmoid(this)
  }
  tanh(): Tensor {
    return tanh(this)
  }
  /** Over the last axis. */
  softmax(): Tensor {
    return softmax(this)
  }
  matmul(other: Tensor): Tensor {
    return matmul(this, other)
  }
  /** Over all axes (a tensor of shape []), one axis, or several. */
  sum(axis?: number | readonly number[], keepDim?: boolean): Tensor {
    return sum(this, axis, keepDim)
  }
  mean(axis?: number | readonly number[], keepDim?: boolean): Tensor {
    return mean(this, axis, keepDim)
  }
  /** Shares memory. One dimension may be −1. */
  reshape(shape: readonly number[]): Tensor {
    return reshape(this, shape)
  }
  /** Swaps two axes; by default the last two. A copy. */
  transpose(axis0?: number, axis1?: number): Tensor {
    return transpose(this, axis0, axis1)
  }
  /** Entries `start` to `end` (exclusive) along an axis. A copy. */
  slice(axis: number, start: number, end?: number): Tensor {
    return slice(this, axis, start, end)
  }
  /** A copy with its own memory; differentiable. */
  clone(): Tensor {
    return clone(this)
  }
  /** To another dtype (differentiable between floating-point types) or device. */
  to(target: DType | Device): Tensor {
    return to(this, target)
  }

  static {
    isTensor = (value): value is Tensor => typeof value === 'object' && value !== null && #held in value
    handleOf = (tensor) => tensor.#held.handle
    wrap = (handle, meta) => new Tensor(adopt, handle, meta)
    sourceOf = (tensor) => tensor.#held.source
    setSource = (tensor, node, output) => {
      tensor.#held.source = { node, output }
      tensor.#requiresGrad = true
      node.hold()
    }
    leafHooksOf = (tensor) => tensor.#hooks
    moveToDevice = (tensor, device, number) => {
      const moved = native.toDevice(tensor.#held.handle, number)
      native.release(tensor.#held.handle)
      tensor.#held.handle = moved
      tensor.#meta = { ...tensor.#meta, device }
      if (tensor.#grad && !tensor.#grad.disposed) moveToDevice(tensor.#grad, device, number)
    }
    gradOwnerOf = (tensor) => tensor.#gradOwner
    isKept = (tensor) => tensor.#kept
    moveToScope = (tensor, scope) => {
      tensor.#scope?.tensors.delete(tensor)
      tensor.#scope = scope
      tensor.#kept = scope === null
      scope?.tensors.add(tensor)
    }
    accumulateGrad = (leaf, grad) => {
      const held = leaf.#grad
      if (held && !held.disposed) {
        native.addInPlace(held.#held.handle, grad)
        native.release(grad)
        return
      }
      const own = native.unique(grad) ? grad : copyOf(grad, leaf)
      leaf.#grad = wrap(own, leaf)
      leaf.#grad.#gradOwner = leaf
    }
  }
}

function copyOf(handle: Handle, meta: TensorMeta): Handle {
  const copy = native.convert(handle, dtypeCode(meta.dtype))
  native.release(handle)
  return copy
}

/** A live Tensor of the dtype, shape and device of `like`, where given; else a MoeError. */
export function checkTensor(op: string, name: string, value: unknown, like?: TensorMeta): Tensor {
  if (!isTensor(value)) fail('OPTION', op, `${name} must be a Tensor, got ${show(value)}`)
  if (value.disposed) fail('DISPOSED', op, `${name} has been disposed`)
  if (like) {
    if (!sameShape(value.shape, like.shape))
      fail('SHAPE', op, `${name} must be ${showShape(like.shape)}, got ${showShape(value.shape)}`)
    if (value.dtype !== like.dtype) fail('DTYPE', op, `${name} must be ${like.dtype}, got ${value.dtype}`)
    if (value.device !== like.device) fail('DEVICE', op, `${name} must be on ${like.device}, got ${value.device}`)
  }
  return value
}

/** A live f32 or f64 Tensor. */
export function checkFloat(op: string, name: string, value: unknown): Tensor {
  const tensor = checkTensor(op, name, value)
  if (!isFloat(tensor.dtype))
    fail('DTYPE', op, `${name} must be f32 or f64, got ${tensor.dtype}; convert it with .to('f32')`)
  return tensor
}
