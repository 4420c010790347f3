import { types } from 'node:util'
import { type Generator, withSample } from '../autograd/random.js'
import {
  checkBoolean,
  checkInteger,
  checkNumber,
  checkOptions,
  checkShape,
  fail,
  showShape,
  sizeOf,
} from '../runtime/check.js'
import { checkDevice, type Device, deviceIndex, getDefaultDevice } from '../runtime/device.js'
import {
  allocated,
  checkDType,
  type DType,
  dtypeCode,
  type FloatDType,
  isFloat,
  type TypedArray,
} from '../runtime/dtype.js'
import { show } from '../runtime/errors.js'
import { type Handle, native } from '../runtime/native.js'
import { consumed, guarded } from './handles.js'
import { maxNumbers, type NestedArray, type Tensor, wrap } from './tensor.js'

/** Options of the functions that create tensors. */
export interface TensorOptions<D extends DType = DType> {
  /** Default: the dtype of the data, else 'f32'. */
  dtype?: D
  /** Default: the device of {@link setDefaultDevice}, initially 'cpu'. */
  device?: Device
  /** Makes the tensor a leaf whose `grad` a backward fills; f32 and f64 only. Default false. */
  requiresGrad?: boolean
}

/** Options of the functions that sample random numbers; dtype 'f32' or 'f64'. */
export interface RandomOptions<D extends FloatDType = FloatDType> extends TensorOptions<D> {
  /** Default: {@link defaultGenerator}. */
  generator?: Generator
}

/** The default dtype of {@link tensor} for data. */
export type DTypeOf<T> = T extends Float64Array
  ? 'f64'
  : T extends Float32Array | number | NestedArray
    ? 'f32'
    : T extends Uint16Array
      ? 'bf16' | 'f16'
      : 'i32'

const names = ['dtype', 'device', 'requiresGrad'] as const

function make<D extends DType>(
  op: string,
  shape: readonly number[],
  options: TensorOptions,
  handle: (dtype: DType, device: number) => Handle,
  dtype: DType,
): Tensor<D> {
  const device = checkDevice(op, options.device ?? getDefaultDevice())
  const requiresGrad =
    options.requiresGrad === undefined ? false : checkBoolean(op, 'requiresGrad', options.requiresGrad)
  if (requiresGrad && !isFloat(dtype)) fail('DTYPE', op, `only f32 and f64 tensors have gradients, dtype is ${dtype}`)
  const tensor = wrap(handle(dtype, deviceIndex(op, device)), { shape, dtype: dtype as D, device })
  if (requiresGrad) tensor.requiresGrad = true
  return tensor
}

/**
 * A tensor with a copy of `data`: a typed array, a number, or nested arrays of numbers. `shape` defaults to the shape
 * of the data. The default dtype is f32 for Float32Array and numbers, f64 for Float64Array, i32 for Int32Array and
 * smaller integers. A Uint16Array holds the bits of bf16 or f16 and needs `dtype`.
 *
 * Errors: SHAPE if data and shape do not match, DTYPE for other arrays, OPTION for shared, resizable and detached
 * buffers, BACKEND_UNAVAILABLE for a device that cannot be used, OUT_OF_MEMORY.
 *
 * @example
 * ```ts
 * console.log(tensor([[1, 2, 3], [4, 5, 6]]))
 * // → tensor([[1., 2., 3.],
 * // →         [4., 5., 6.]], [2, 3], f32, cpu)
 * console.log(tensor(new Float64Array(2))) // → tensor([0., 0.], [2], f64, cpu)
 * console.log(tensor(Uint16Array.of(0x3f80), [1], { dtype: 'bf16' }).item()) // → 1
 * ```
 */
export function tensor<T extends TypedArray | number | NestedArray, D extends DType = DTypeOf<T>>(
  data: T,
  shape?: readonly number[] | null,
  options?: TensorOptions<D>,
): Tensor<D> {
  const op = 'tensor'
  const checked = checkOptions<TensorOptions>(op, options, names)
  const source = ArrayBuffer.isView(data) ? fromTypedArray(op, data) : fromNumbers(op, data, checked.dtype)
  const target = shape === undefined || shape === null ? Object.freeze(source.shape) : checkShape(op, 'shape', shape)
  if (sizeOf(target) !== source.values.length) {
    fail('SHAPE', op, `shape ${showShape(target)} needs ${sizeOf(target)} values, data has ${source.values.length}`)
  }
  const dtype = checked.dtype === undefined ? source.dtype : checkDType(op, checked.dtype)
  if (dtype === undefined) fail('DTYPE', op, "data is a Uint16Array: pass dtype 'bf16' or 'f16'")
  return make(op, target, checked, (to, device) => upload(op, source.values, source.dtype, to, target, device), dtype)
}

type Values = Float32Array | Float64Array | Int32Array | Uint16Array

/** Copies values to native memory, and converts them if the dtypes differ. */
function upload(
  op: string,
  values: Values,
  from: DType | undefined,
  to: DType,
  shape: readonly number[],
  device: number,
): Handle {
  if (values instanceof Uint16Array) {
    if (to !== 'bf16' && to !== 'f16') fail('DTYPE', op, `a Uint16Array holds bf16 or f16, not ${to}`)
    return native.fromData(values, dtypeCode(to), shape, device)
  }
  const handle = native.fromData(values, dtypeCode(from!), shape, device)
  return from === to ? handle : consumed(handle, () => native.convert(handle, dtypeCode(to)))
}

interface Source {
  values: Values
  shape: number[]
  /** undefined: bf16 or f16, which the caller must specify. */
  dtype: DType | undefined
}

function fromTypedArray(op: string, data: ArrayBufferView): Source {
  const { buffer } = data
  if (types.isSharedArrayBuffer(buffer))
    fail('OPTION', op, 'data must not be a view of a SharedArrayBuffer; copy it first')
  if ((buffer as { resizable?: boolean }).resizable)
    fail('OPTION', op, 'data must not be a view of a resizable ArrayBuffer; copy it first')
  if ((buffer as { detached?: boolean }).detached) fail('OPTION', op, 'the buffer of data has been transferred')
  if (types.isFloat32Array(data)) return { values: data, shape: [data.length], dtype: 'f32' }
  if (types.isFloat64Array(data)) return { values: data, shape: [data.length], dtype: 'f64' }
  if (types.isInt32Array(data)) return { values: data, shape: [data.length], dtype: 'i32' }
  if (types.isUint16Array(data)) return { values: data, shape: [data.length], dtype: undefined }
  if (
    types.isInt16Array(data) ||
    types.isInt8Array(data) ||
    types.isUint8Array(data) ||
    types.isUint8ClampedArray(data)
  ) {
    // not Int32Array.from, which would run the caller's iterator
    const values = allocated(op, `an array of ${data.length} i32`, () => new Int32Array(data))
    return { values, shape: [values.length], dtype: 'i32' }
  }
  return fail(
    'DTYPE',
    op,
    `data must be a Float32Array, Float64Array, Int32Array, Uint16Array or a smaller integer array, got ${show(data)}`,
  )
}

/** Concatenates arrays of equal length. Reads each length once, because the arrays may be proxies. */
function flattened(op: string, level: readonly unknown[], depth: number): { length: number; entries: unknown[] } {
  let length = -1
  const entries: unknown[] = []
  for (const part of level) {
    const own = Array.isArray(part) ? part.length : -1
    if (length < 0) length = own
    if (own !== length || own < 0)
      fail('SHAPE', op, `data must be a regular array, but its parts at depth ${depth} differ in length`)
    if (!(length * level.length <= maxNumbers))
      fail('OUT_OF_MEMORY', op, `data has more than 2^26 numbers in plain arrays; use a typed array`)
    for (let i = 0; i < length; i++) entries.push((part as unknown[])[i])
  }
  return { length, entries }
}

/**
 * Nested arrays of numbers, read once; as f64 if they become a dtype other than f32, which is then rounded to once.
 * Iterative, so that depth cannot overflow the stack.
 */
function fromNumbers(op: string, data: unknown, to: unknown = 'f32'): Source {
  const shape: number[] = []
  let level: unknown[] = [data]
  while (level.some((entry) => Array.isArray(entry))) {
    if (shape.length === 8) fail('SHAPE', op, 'data is nested more than 8 deep')
    const { length, entries } = flattened(op, level, shape.length)
    shape.push(length)
    level = entries
  }
  const bad = level.find((entry) => typeof entry !== 'number')
  if (bad !== undefined || (level.length > 0 && level.includes(undefined))) {
    fail('OPTION', op, `data must be a typed array, numbers or nested arrays of numbers, got ${show(bad)}`)
  }
  const dtype = to === 'f32' ? 'f32' : 'f64'
  const List = dtype === 'f32' ? Float32Array : Float64Array
  const values = allocated(op, `an array of ${level.length} ${dtype}`, () => List.from(level as number[]))
  return { values, shape, dtype }
}

/** Checked before the other arguments: without brackets, the second dimension would be one of them. */
const shapeFor = (op: string, shape: unknown): readonly number[] =>
  checkShape(op, 'shape', shape, op === 'full' || op === 'uniform' ? `${op}([2, 3], …)` : `${op}([2, 3])`)

function filled<D extends DType>(op: string, shape: unknown, value: number, options: unknown): Tensor<D> {
  const target = shapeFor(op, shape)
  const checked = checkOptions<TensorOptions>(op, options, names)
  const dtype = checked.dtype === undefined ? 'f32' : checkDType(op, checked.dtype)
  return make(
    op,
    target,
    checked,
    (to, device) => native.full({ shape: target, dtype: dtypeCode(to), device, value }),
    dtype,
  )
}

/**
 * A tensor of zeros, by default f32. Errors: SHAPE, DTYPE, BACKEND_UNAVAILABLE, OUT_OF_MEMORY.
 *
 * @example
 * ```ts
 * console.log(zeros([3], { dtype: 'i32' })) // → tensor([0, 0, 0], [3], i32, cpu)
 * ```
 */
export const zeros = <D extends DType = 'f32'>(shape: readonly number[], options?: TensorOptions<D>): Tensor<D> =>
  filled('zeros', shape, 0, options)
/**
 * A tensor of ones; otherwise like {@link zeros}.
 *
 * @example
 * ```ts
 * console.log(ones([2, 3]).sum().item()) // → 6
 * ```
 */
export const ones = <D extends DType = 'f32'>(shape: readonly number[], options?: TensorOptions<D>): Tensor<D> =>
  filled('ones', shape, 1, options)
/**
 * A tensor filled with one value, rounded to the dtype; otherwise like {@link zeros}.
 *
 * @example
 * ```ts
 * console.log(full([2], 0.5).dataSync()) // → Float32Array(2) [ 0.5, 0.5 ]
 * ```
 */
export function full<D extends DType = 'f32'>(
  shape: readonly number[],
  value: number,
  options?: TensorOptions<D>,
): Tensor<D> {
  if (typeof value !== 'number') fail('OPTION', 'full', `value must be a number, got ${show(value)}`)
  return filled('full', shape, value, options)
}

function sampled<D extends FloatDType>(
  op: string,
  shape: unknown,
  normal: boolean,
  a: number,
  b: number,
  options: unknown,
  first = 0,
): Tensor<D> {
  const target = shapeFor(op, shape)
  const checked = checkOptions<RandomOptions>(op, options, [...names, 'generator'])
  const dtype = checked.dtype === undefined ? 'f32' : checkDType(op, checked.dtype, ['f32', 'f64'])
  const ofBlock = dtype === 'f32' && !normal ? 4 : 2 // elements of a Philox block
  const [skipped, firstBlock, size] = [first % ofBlock, Math.floor(first / ofBlock), sizeOf(target)]
  return withSample(op, checked.generator, ({ seed, step }) =>
    make(
      op,
      target,
      checked,
      (to, device) => {
        const numbers = { dtype: dtypeCode(to), device, distribution: normal ? 1 : 0, a, b, seed, step, firstBlock }
        if (skipped === 0) return native.random({ shape: target, ...numbers })
        const block = native.random({ shape: [skipped + size], ...numbers })
        const wanted = consumed(block, () => native.stridedRead(block, [size], [1], skipped))
        return guarded([wanted], () => native.reshapeOwned(wanted, target))
      },
      dtype,
    ),
  )
}

/**
 * Samples uniformly from [0, 1), in f32 or f64. A seed gives the same numbers on every device. Errors as {@link zeros}.
 *
 * @example
 * ```ts
 * const u = rand([1000], { generator: new Generator(7) })
 * console.log(Math.min(...u.dataSync()) >= 0, Math.max(...u.dataSync()) < 1) // → true true
 * ```
 */
export const rand = <D extends FloatDType = 'f32'>(shape: readonly number[], options?: RandomOptions<D>): Tensor<D> =>
  sampled('rand', shape, false, 0, 1, options)
/**
 * Samples a normal distribution with mean 0 and variance 1, in f32 or f64. Errors as {@link zeros}.
 *
 * @example
 * ```ts
 * manualSeed(1)
 * const a = randn([4, 8]).sum().item()
 * manualSeed(1)
 * console.log(randn([4, 8]).sum().item() === a) // → true
 * ```
 */
export const randn = <D extends FloatDType = 'f32'>(shape: readonly number[], options?: RandomOptions<D>): Tensor<D> =>
  sampled('randn', shape, true, 0, 1, options)
/**
 * Samples uniformly from [low, high), in f32 or f64. Errors as {@link zeros}.
 *
 * @example
 * ```ts
 * const w = uniform([64, 16], -0.25, 0.25)
 * console.log(Math.max(...w.abs().dataSync()) <= 0.25) // → true
 * ```
 */
export function uniform<D extends FloatDType = 'f32'>(
  shape: readonly number[],
  low: number,
  high: number,
  options?: RandomOptions<D>,
): Tensor<D> {
  const op = 'uniform'
  const target = shapeFor(op, shape)
  return sampled(op, target, false, checkNumber(op, 'low', low), checkNumber(op, 'high', high), options)
}

/** The rows of `shape` from `first` on, of what {@link uniform} would sample in ±bound for a tensor that has them all. */
export const uniformRows = (
  shape: readonly number[],
  first: number,
  bound: number,
  options: TensorOptions<FloatDType>,
) => sampled<FloatDType>('uniform', shape, false, -bound, bound, options, first * sizeOf(shape.slice(1)))

/**
 * 0 … n − 1 in random order, every order as probable: i32 [n]. A seed gives the same order on every device. Errors: OPTION
 * unless n is an integer from 0 to 2^31 − 1; BACKEND_UNAVAILABLE, OUT_OF_MEMORY.
 *
 * @example
 * ```ts
 * const order = randperm(5, { generator: new Generator(7) })
 * console.log([...order.dataSync()].sort()) // → [ 0, 1, 2, 3, 4 ]
 * ```
 */
export function randperm(n: number, options?: Pick<RandomOptions, 'device' | 'generator'>): Tensor<'i32'> {
  const op = 'randperm'
  const shape = [checkInteger(op, 'n', n, 0, 2 ** 31 - 1)]
  const checked = checkOptions<RandomOptions>(op, options, ['device', 'generator'])
  return withSample(op, checked.generator, ({ seed, step }) =>
    make(
      op,
      shape,
      { device: checked.device },
      (to, device) => native.randperm({ shape, dtype: dtypeCode(to), device, seed, step }),
      'i32',
    ),
  )
}

/**
 * start, start + step, … below `end`, shape [length]; with one number 0 … end − 1. By default i32 if all arguments are
 * integers and all elements fit, else f32. Errors: OPTION, also if the arguments are integers and neither type has all
 * elements; SHAPE above 2^27 elements.
 *
 * @example
 * ```ts
 * console.log(arange(4).dataSync()) // → Int32Array(4) [ 0, 1, 2, 3 ]
 * console.log(arange(0, 1, 0.25).dataSync()) // → Float32Array(4) [ 0, 0.25, 0.5, 0.75 ]
 * ```
 */
export function arange<D extends DType = 'i32' | 'f32'>(
  start: number,
  end?: number | TensorOptions<D>,
  step?: number,
  options?: TensorOptions<D>,
): Tensor<D> {
  const op = 'arange'
  if (typeof end === 'object' && end !== null) return arange(0, start, 1, end)
  const from = end === undefined ? 0 : checkNumber(op, 'start', start)
  const to = end === undefined ? checkNumber(op, 'end', start) : checkNumber(op, 'end', end)
  const by = step === undefined ? 1 : checkNumber(op, 'step', step)
  if (by === 0) fail('OPTION', op, 'step must not be 0')
  const size = Math.max(0, Math.ceil((to - from) / by))
  if (size > 2 ** 27) fail('SHAPE', op, `${size} elements are too many; create it in parts`)
  const values = allocated(op, `an array of ${size} f64`, () =>
    Float64Array.from({ length: size }, (_, i) => from + i * by),
  )
  const checked = checkOptions<TensorOptions>(op, options, names)
  const dtype = checked.dtype ?? ([from, to, by].every(Number.isInteger) ? dtypeOfIntegers(op, values) : 'f32')
  return tensor(values, [size], { ...checked, dtype: dtype as D })
}

/** The first of i32 and f32 that has all these integers. */
function dtypeOfIntegers(op: string, values: Float64Array): DType {
  if (values.every((value) => value >= -(2 ** 31) && value < 2 ** 31)) return 'i32'
  const inexact = values.find((value) => Math.fround(value) !== value)
  if (inexact !== undefined)
    fail('OPTION', op, `neither i32 nor f32 has the element ${inexact}: pass a dtype, such as 'f64'`)
  return 'f32'
}
