import type { GradHook, Node } from '../autograd/autograd.js'
import { currentRecorder, currentScope, isAsync, onFailure, refuseToWait, type Scope } from '../autograd/context.js'
import { checkBoolean, fail, sameShape, showShape, sizeOf } from '../runtime/check.js'
import type { Device } from '../runtime/device.js'
import { allocateArray, type DType, type DTypeArrays, dtypeCode, isFloat, weightDTypes } from '../runtime/dtype.js'
import { MoeError, markCopy, show } from '../runtime/errors.js'
import { type Handle, native } from '../runtime/native.js'
import { refuseJson, uncloneable } from './copies.js'
import { handlesOf } from './handles.js'
import { guardHeld, type Held, lasting, letGo, newHeld, unguard } from './held.js'
import { printValues, withSuffix } from './print.js'

/** Nested arrays of numbers, of equal lengths at each depth. */
export type NestedArray = readonly (number | NestedArray)[]

/** Beyond this size, plain arrays may exhaust the heap of the engine; typed arrays have no such limit. */
export const maxNumbers = 2 ** 26

/** Row-major values as nested arrays of a shape. */
function nestedFrom(values: ArrayLike<number>, shape: readonly number[], offset = 0): number | NestedArray {
  if (shape.length === 0) return values[offset]
  const [length, ...rest] = shape
  const each = sizeOf(rest)
  return Array.from({ length }, (_, i) => nestedFrom(values, rest, offset + i * each))
}

/** Opens the constructor to this package. */
export const adopt = Symbol('st-moe adopt')

const ofOneThread = uncloneable(
  'a Tensor belongs to its thread: send the arrays of dataSync(), those of stateDict(), or the path of a safetensors file',
)

/** What a tensor is made of, but its values. */
export interface TensorMeta<D extends DType = DType> {
  /** Its shape. */
  shape: readonly number[]
  /** Its element type. */
  dtype: D
  /** Its device. */
  device: Device
}

// For the other files of this package; not exported from it.

/** Whether a value is a real Tensor: no look-alike, no proxy. */
export let isTensor: (value: unknown) => value is Tensor
/** 0 when disposed. */
export let handleOf: (tensor: Tensor) => Handle
/** A Tensor that takes ownership of a handle. */
export let wrap: <D extends DType>(handle: Handle, meta: TensorMeta<D>) => Tensor<D>
/** Hands over handles that are freed with a tensor. */
export let keepBeside: (tensor: Tensor, handles: readonly Handle[]) => void
export let sourceOf: (tensor: Tensor) => { node: Node; output: number } | null
export let setSource: (tensor: Tensor, node: Node, output: number) => void
export let leafHooksOf: (tensor: Tensor) => GradHook[]
export let gradOwnerOf: (tensor: Tensor) => Tensor | null
/** A gradient no longer ends with its leaf. */
export let disown: (grad: Tensor) => void
export let isKept: (tensor: Tensor) => boolean
/** Moves leaves and their gradients to another device, in place: all of them or none. */
export let moveToDevice: (leaves: readonly Tensor[], device: Device, number: number) => void
/** Stores leaves in another dtype, in place: all of them or none. */
export let storeAs: (leaves: readonly Tensor[], dtype: DType) => void
/** Sets the gradient of a leaf and disposes nothing. */
export let putGrad: (leaf: Tensor, grad: Tensor | null) => void
/** It is no longer one of those that a loop without a scope leaves behind. */
export let markLasting: (tensor: Tensor) => void
/** null: the tensor lives until disposed. */
export let moveToScope: (tensor: Tensor, scope: Scope | null) => void
/** From now on a finalizer frees it once it is unreachable. */
export let guard: (tensor: Tensor) => void

/**
 * A contiguous array on a device, made by {@link tensor}, {@link zeros}, {@link randn} and their like. Operations return
 * new tensors and never change their inputs. Memory is freed by {@link scope}, `using` or `dispose()`; a tensor used
 * after that is a DISPOSED error.
 *
 * @example
 * ```ts
 * using x = tensor([[1, 2], [3, 4]], null, { requiresGrad: true })
 * const loss = scope(() => x.square().sum())
 * loss.backward()
 * console.log(loss.item(), x.grad?.dataSync()) // → 30 Float32Array(4) [ 2, 4, 6, 8 ]
 * ```
 */
export class Tensor<D extends DType = DType> {
  #meta: TensorMeta<D>
  readonly #size: number
  readonly #held: Held
  #scope: Scope | null = null
  #kept = false
  #requiresGrad = false
  #grad: Tensor<D> | null = null
  #gradOwner: Tensor | null = null
  readonly #hooks: GradHook[] = []
  /** @internal */
  protected readonly uncloneable = ofOneThread

  /** @internal Tensors are made by functions such as `tensor` and `zeros`. */
  constructor(key: unknown, handle?: Handle, meta?: TensorMeta<D>) {
    if (key !== adopt || handle === undefined || meta === undefined) {
      throw new MoeError('OPTION', 'Tensor', 'a Tensor is made by tensor(), zeros(), randn() …, not by its constructor')
    }
    const { shape, dtype, device } = meta
    this.#meta = { shape: Object.isFrozen(shape) ? shape : Object.freeze([...shape]), dtype, device }
    this.#size = sizeOf(shape)
    this.#held = newHeld(handle)
    const scope = currentScope()
    if (scope) moveToScope(this, scope)
    else guard(this)
  }

  /** Length of each axis, frozen; [] for a single value. */
  get shape(): readonly number[] {
    return this.#meta.shape
  }

  /** Type of the elements. */
  get dtype(): D {
    return this.#meta.dtype
  }

  /** 'cpu' or 'cuda:<number>'. */
  get device(): Device {
    return this.#meta.device
  }

  /** Number of elements. */
  get size(): number {
    return this.#size
  }

  /** The memory has been freed; every operation on it is a DISPOSED error. */
  get disposed(): boolean {
    return this.#held.handle === 0
  }

  /** Frees the memory now, if nothing recorded still needs it. A second call does nothing. */
  dispose(): void {
    if (this.disposed) return
    this.#scope?.tensors.delete(this)
    this.#scope = null
    unguard(this.#held)
    letGo(this.#held)
    this.#disposeGrad()
    this.#grad = null
  }

  /** For `using`. */
  [Symbol.dispose](): void {
    this.dispose()
  }

  // ---- gradients

  /** Operations on this tensor are recorded. */
  get requiresGrad(): boolean {
    return this.#requiresGrad
  }

  /**
   * Makes this tensor a leaf: whatever made it is forgotten, and `backward` puts its gradient in `grad`. Errors: DTYPE
   * unless f32 or f64.
   */
  set requiresGrad(value: boolean) {
    checkBoolean('Tensor.requiresGrad', 'value', value)
    if (value && !isFloat(this.dtype))
      fail('DTYPE', 'Tensor.requiresGrad', `only f32 and f64 tensors have gradients, this is ${this.dtype}`)
    this.#held.source?.node.release()
    this.#held.source = null
    this.#requiresGrad = value
  }

  /** The accumulated gradient of a leaf; null before the first `backward` and after `zeroGrad`. */
  get grad(): Tensor<D> | null {
    return this.#grad
  }

  /** Frees the previous gradient. Errors: SHAPE, DTYPE, DEVICE if they differ from those of this tensor. */
  set grad(value: Tensor<D> | null) {
    if (value !== null) checkTensor('Tensor.grad', 'value', value, this)
    const recorder = currentRecorder()
    recorder?.noteGrad(this, this.#grad, true)
    if (value === this.#grad) return
    if (!recorder?.mayReturn(this, this.#grad)) this.#disposeGrad()
    putGrad(this, value)
  }

  #disposeGrad(): void {
    const grad = this.#grad
    if (grad && grad.#gradOwner === this) grad.dispose()
  }

  /** The same values, sharing memory, without history. */
  detach(): Tensor<D> {
    return wrap(native.reshape(handleOf(checkTensor('Tensor.detach', 'this', this)), this.shape), this)
  }

  // ---- values

  /**
   * A copy of the values in row-major order: Float32Array, Float64Array or Int32Array; bf16 and f16 as their bits
   * in a Uint16Array. Waits for a GPU. Errors: DISPOSED, OUT_OF_MEMORY; DTYPE for int8, which needs `to('f32')` first.
   */
  dataSync(): DTypeArrays[D] {
    checkTensor('Tensor.dataSync', 'this', this)
    refuseToWait('Tensor.dataSync')
    const data = allocateArray('Tensor.dataSync', this.dtype, this.size)
    native.toData(this.#held.handle, data)
    return data
  }

  /** {@link Tensor.dataAsync} without options. */
  data(): Promise<DTypeArrays[D]> {
    return this.dataAsync()
  }

  /** The value of a tensor with one element, of any dtype; else SHAPE. */
  item(): number {
    checkTensor('Tensor.item', 'this', this)
    if (this.size !== 1) fail('SHAPE', 'Tensor.item', `needs one element, this has shape ${showShape(this.shape)}`)
    return this.#numbers('Tensor.item')[0]
  }

  /**
   * The values as nested arrays, or a number if the shape is []; bf16 and f16 too. The type of the result is the
   * caller's: `number[][]` of a matrix. Errors: DISPOSED; OUT_OF_MEMORY above 2^26 numbers.
   *
   * @example
   * ```ts
   * const rows = tensor([[1, 2], [3, 4]]).toArray<number[][]>()
   * console.log(rows[1]) // → [ 3, 4 ]
   * ```
   */
  toArray<T extends number | NestedArray = number | NestedArray>(): T {
    const op = 'Tensor.toArray'
    checkTensor(op, 'this', this)
    for (let i = this.shape.length; i > 0; i--)
      if (sizeOf(this.shape.slice(0, i)) > maxNumbers)
        fail('OUT_OF_MEMORY', op, `${showShape(this.shape)} has more than 2^26 numbers; use dataSync()`)
    return nestedFrom(this.#numbers(op), this.shape) as T
  }

  #numbers(op: string): ArrayLike<number> {
    refuseToWait(op)
    if (isFloat(this.dtype) || this.dtype === 'i32') return this.dataSync()
    using wide = wrap(native.convert(this.#held.handle, dtypeCode('f32')), { ...this.#meta, dtype: 'f32' })
    return wide.dataSync()
  }

  /**
   * The values as PyTorch prints them, with shape, dtype and device. Above 1,000 elements only the first and last three
   * of each axis, and no others are read. Waits for a GPU. In a captured step and after `dispose()`, no values.
   *
   * @example
   * ```ts
   * console.log(`${ones([2, 2])}`)
   * // → tensor([[1., 1.],
   * // →         [1., 1.]], [2, 2], f32, cpu)
   * ```
   */
  toString(): string {
    if (this.disposed || currentRecorder() || isAsync()) return this.#summary()
    const { shape, dtype, device } = this
    const start = 'tensor('
    const values = printValues(this.#held.handle, shape, dtype, start.length)
    return withSuffix(start + values, `${showShape(shape)}, ${dtype}, ${device}`, start.length)
  }

  #summary(): string {
    return `Tensor(${showShape(this.shape)}, ${this.dtype}, ${this.device}${this.disposed ? ', disposed' : ''})`
  }

  /** What console.log shows: {@link Tensor.toString}; inside another object shape, dtype and device alone. */
  [Symbol.for('nodejs.util.inspect.custom')](depth?: number, options?: { depth?: number | null }): string {
    const isInside = typeof depth === 'number' && typeof options?.depth === 'number' && depth < options.depth
    return isInside ? this.#summary() : this.toString()
  }

  /** Always an UNSUPPORTED error: JSON would lose the values. */
  toJSON(): never {
    return refuseJson('Tensor', 'put Array.from(tensor.dataSync()) there, or write a file with saveSafetensors')
  }

  static {
    markCopy(Tensor)
    isTensor = (value): value is Tensor => typeof value === 'object' && value !== null && #held in value
    handleOf = (tensor) => tensor.#held.handle
    wrap = (handle, meta) => new Tensor(adopt, handle, meta)
    keepBeside = (tensor, handles) => {
      tensor.#held.beside = handles
    }
    sourceOf = (tensor) => tensor.#held.source
    setSource = (tensor, node, output) => {
      tensor.#held.source = { node, output }
      tensor.#requiresGrad = true
      node.hold()
    }
    leafHooksOf = (tensor) => tensor.#hooks
    moveToDevice = (leaves, device, number) => {
      const tensors = new Set<Tensor>()
      for (const leaf of leaves) {
        for (let next: Tensor | null = leaf; next && !next.disposed && !tensors.has(next); next = next.#grad)
          tensors.add(next)
      }
      replaceHandles([...tensors], { device }, (handle) => native.toDevice(handle, number))
    }
    storeAs = (leaves, dtype) => {
      replaceHandles(leaves, { dtype }, (handle) => {
        const stored = native.convert(handle, dtypeCode(dtype))
        native.keepPacked(stored)
        return stored
      })
    }
    const replaceHandles = (
      tensors: readonly Tensor[],
      change: Partial<TensorMeta>,
      make: (handle: Handle) => Handle,
    ): void => {
      const made = handlesOf(tensors, (tensor) => make(tensor.#held.handle))
      for (const [i, tensor] of tensors.entries()) {
        native.release(tensor.#held.handle)
        tensor.#held.handle = made[i]
        tensor.#meta = { ...tensor.#meta, ...change }
      }
    }
    putGrad = (leaf, grad) => {
      onFailure(() => {
        if (leaf.#grad === grad) leaf.grad = null
      })
      leaf.#grad = grad
      if (!grad) return
      grad.#gradOwner = leaf
      lasting(grad.#held)
    }
    gradOwnerOf = (tensor) => tensor.#gradOwner
    disown = (grad) => {
      grad.#gradOwner = null
    }
    markLasting = (tensor) => lasting(tensor.#held)
    isKept = (tensor) => tensor.#kept
    moveToScope = (tensor, scope) => {
      tensor.#scope?.tensors.delete(tensor)
      tensor.#scope = scope
      tensor.#kept = scope === null
      scope?.tensors.add(tensor)
      if (scope === null || scope.isAsync) guard(tensor)
    }
    guard = (tensor) => guardHeld(tensor, tensor.#held)
  }
}

/**
 * The value, if it is a Tensor that is not disposed, of the dtype, shape and device of `like`, if given. Errors: OPTION,
 * DISPOSED, DTYPE, SHAPE, DEVICE.
 *
 * @example
 * ```ts
 * const double = (x: Tensor) => utils.checkTensor('double', 'x', x).mul(2)
 * console.log(double(ones([2])).dataSync()) // → Float32Array(2) [ 2, 2 ]
 * ```
 */
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

/** A live weight of a shape for x, of its dtype and device; beside an x in f32 it may be one of {@link weightFormats}. */
export function checkWeight(op: string, name: string, value: unknown, shape: readonly number[], x: Tensor): Tensor {
  const { dtype } = checkTensor(op, name, value)
  const allowed = weightDTypes(x.dtype)
  if (!allowed.includes(dtype))
    fail('DTYPE', op, `${name} must be ${allowed.join(' or ')} with x ${x.dtype}, got ${dtype}`)
  return checkTensor(op, name, value, { shape, dtype, device: x.device })
}

/** A live f32 or f64 Tensor. */
export function checkFloat(op: string, name: string, value: unknown): Tensor {
  const tensor = checkTensor(op, name, value)
  if (!isFloat(tensor.dtype))
    fail('DTYPE', op, `${name} must be f32 or f64, got ${tensor.dtype}; convert it with .to('f32')`)
  return tensor
}
