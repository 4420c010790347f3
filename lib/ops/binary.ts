import { record } from '../autograd/autograd.js'
import { fail, showShape } from '../runtime/check.js'
import { deviceIndex } from '../runtime/device.js'
import { type DType, dtypeCode } from '../runtime/dtype.js'
import { show } from '../runtime/errors.js'
import { type Handle, native } from '../runtime/native.js'
import { binaryKind, unaryKind } from '../runtime/native-ops.js'
import { consumed, handlesOf, share } from '../tensor/handles.js'
import { asMethods } from '../tensor/methods.js'
import { checkTensor, handleOf, type Tensor, wrap } from '../tensor/tensor.js'
import { sumTo } from './reduce.js'

type BinaryKind = keyof typeof binaryKind

/** The functions of native/core/binary_kinds.inc by name, with broadcasting: each returns a new handle. */
export const binaryKinds = Object.fromEntries(
  Object.entries(binaryKind).map(([name, kind]) => [name, (a: Handle, b: Handle) => native.binary(a, b, kind)]),
) as Record<BinaryKind, (a: Handle, b: Handle) => Handle>

/** Those that the addon has for i32. */
const forIntegers: ReadonlySet<string> = new Set(['add', 'sub', 'mul'])

/** A new handle of `dtype`. What the addon lacks for i32 computes in f64, which holds every i32. */
export function applied(kind: BinaryKind, a: Tensor, b: Tensor, dtype: DType): Handle {
  const apply = binaryKinds[kind]
  if (a.dtype !== 'i32' || forIntegers.has(kind)) return cast(apply(handleOf(a), handleOf(b)), a.dtype, dtype)
  const exact = (x: Tensor): Handle => native.convert(handleOf(x), dtypeCode('f64'))
  return cast(
    consumed(exact(a), (x) => consumed(exact(b), (y) => apply(x, y))),
    'f64',
    dtype,
  )
}

const cast = (x: Handle, from: DType, dtype: DType): Handle =>
  from === dtype ? x : consumed(x, (y) => native.convert(y, dtypeCode(dtype)))

const { add: plus, sub: minus, mul: times, div: over, pow: power, less, less_equal: lessEqual, keep } = binaryKinds

type Kind = 'add' | 'sub' | 'mul' | 'div' | 'pow' | 'maximum' | 'minimum'
const forFloats: ReadonlySet<Kind> = new Set(['div', 'pow'])
const { neg, log } = unaryKind

/** Gradients of both operands, before the sum over broadcast axes. */
const gradients: Record<Kind, (dy: Handle, a: Handle, b: Handle) => [a: () => Handle, b: () => Handle]> = {
  add: (dy) => [() => share(dy), () => share(dy)],
  sub: (dy) => [() => share(dy), () => native.unary({ x: dy, kind: neg })],
  mul: (dy, a, b) => [() => times(dy, b), () => times(dy, a)],
  div: (dy, a, b) => [
    () => over(dy, b),
    () => consumed(timesQuotient(dy, a, b), (x) => native.unary({ x, kind: neg })),
  ],
  pow: (dy, a, b) => [() => ofBase(dy, a, b), () => ofExponent(dy, a, b)],
  maximum: (dy, a, b) => [() => ofLess(dy, b, a), () => ofLess(dy, a, b)],
  minimum: (dy, a, b) => [() => ofLess(dy, a, b), () => ofLess(dy, b, a)],
}

const timesQuotient = (dy: Handle, a: Handle, b: Handle): Handle =>
  consumed(times(dy, a), (product) => consumed(times(b, b), (square) => over(product, square)))

/** dy · b · a^(b − 1), and 0 if b is 0. */
const ofBase = (dy: Handle, a: Handle, b: Handle): Handle =>
  consumed(over(b, b), (one) =>
    consumed(minus(b, one), (exponent) =>
      consumed(power(a, exponent), (factor) =>
        consumed(times(b, factor), (slope) => consumed(times(dy, slope), (dx) => keep(dx, b))),
      ),
    ),
  )

/** dy · a^b · log a, and 0 if a is 0. */
const ofExponent = (dy: Handle, a: Handle, b: Handle): Handle =>
  consumed(power(a, b), (y) =>
    consumed(native.unary({ x: a, kind: log }), (logarithm) =>
      consumed(times(y, logarithm), (slope) => consumed(times(dy, slope), (dx) => keep(dx, a))),
    ),
  )

/** dy where low < high, and half of it where they are equal. */
const ofLess = (dy: Handle, low: Handle, high: Handle): Handle =>
  consumed(lessEqual(low, high), (mask) =>
    consumed(less(low, high), (strictly) =>
      consumed(plus(mask, strictly), (weight) => {
        native.scale({ x: weight, factor: 0.5 })
        return consumed(keep(dy, mask), (dx) => times(dx, weight))
      }),
    ),
  )

export function broadcastShape(op: string, a: readonly number[], b: readonly number[]): number[] {
  const rank = Math.max(a.length, b.length)
  return Array.from({ length: rank }, (_, i) => {
    const m = a[a.length - rank + i] ?? 1
    const n = b[b.length - rank + i] ?? 1
    if (m !== n && m !== 1 && n !== 1) fail('SHAPE', op, `shapes ${showShape(a)} and ${showShape(b)} do not broadcast`)
    return m === 1 ? n : m
  })
}

/** A checked operand: a number becomes a tensor of the dtype and device of `like`, the other one. */
function operand(op: string, name: 'a' | 'b', value: Tensor | number, like: Tensor): Tensor {
  const { dtype, device } = like
  if (typeof value !== 'number') {
    const tensor = checkTensor(op, name, value)
    if (tensor.dtype !== dtype) fail('DTYPE', op, `${name} must be ${dtype} like a, got ${tensor.dtype}`)
    return tensor
  }
  if (dtype === 'i32' && (value | 0) !== value)
    fail('DTYPE', op, `${name} must be an integer of 32 bits beside an i32 tensor, got ${value}`)
  const handle = native.full({ shape: [], dtype: dtypeCode(dtype), device: deviceIndex(op, device), value })
  return wrap(handle, { shape: [], dtype, device })
}

/** Calls `fn` with two checked operands and the shape of the result; a number becomes a tensor for that time. */
export function withOperands<D extends DType, T>(
  op: string,
  a: Tensor<D> | number,
  b: Tensor | number,
  floats: boolean,
  fn: (a: Tensor<D>, b: Tensor, shape: number[]) => T,
): T {
  const [name, like] = typeof a === 'number' ? (['b', b] as const) : (['a', a] as const)
  const { dtype } = checkTensor(op, name, like)
  if (dtype === 'bf16' || dtype === 'f16' || (dtype === 'i32' && floats)) {
    const wanted = floats ? 'f32 or f64' : 'f32, f64 or i32'
    fail('DTYPE', op, `${name} must be ${wanted}, got ${dtype}; convert it with .to('f32')`)
  }
  if (typeof b !== 'number' && typeof b !== 'object')
    fail('OPTION', op, `b must be a Tensor or a number, got ${show(b)}`)
  const [x, y] = [operand(op, 'a', a, like as Tensor), operand(op, 'b', b, like as Tensor)]
  try {
    return fn(x as Tensor<D>, y, broadcastShape(op, x.shape, y.shape))
  } finally {
    if (typeof a === 'number') x.dispose()
    if (typeof b === 'number') y.dispose()
  }
}

function binary<D extends DType>(kind: Kind, a: Tensor<D> | number, b: Tensor | number): Tensor<D> {
  return withOperands(kind, a, b, forFloats.has(kind), (a, b, shape) => {
    const y = wrap(applied(kind, a, b, a.dtype), { shape, dtype: a.dtype, device: a.device })
    const { shape: aShape } = a
    const { shape: bShape } = b
    record({
      op: kind,
      inputs: [a, b],
      outputs: [y],
      saved: kind === 'add' || kind === 'sub' ? [] : [a, b],
      backward: ([dy], [av, bv], [needA, needB]) => {
        const [da, db] = gradients[kind](dy!, av, bv)
        return handlesOf([needA && { d: da, to: aShape }, needB && { d: db, to: bShape }], (operand) =>
          operand ? sumTo(operand.d(), shape, operand.to) : null,
        )
      },
    })
    return y
  })
}

/** An operation on two tensors, or on a tensor and a number. */
export interface BinaryOperation {
  /** With the tensor first. */
  <D extends DType>(a: Tensor<D>, b: Tensor | number): Tensor<D>
  /** With the number first. */
  <D extends DType>(a: number, b: Tensor<D>): Tensor<D>
}

const operation =
  (kind: Kind): BinaryOperation =>
  (a: Tensor | number, b: Tensor | number): Tensor<never> =>
    binary(kind, a, b) as Tensor<never>

/**
 * a + b with broadcasting by NumPy's rules; either may be a number. f32, f64 or i32, both of one dtype and device. A
 * method has the tensor first: `x.sub(2)`; a number first takes the function: `ops.sub(2, x)`. Errors: SHAPE if the
 * shapes do not broadcast, DTYPE, DEVICE.
 *
 * @example
 * ```ts
 * console.log(ops.add(ones([2, 3]), tensor([1, 2, 3])).shape) // → [ 2, 3 ]
 * ```
 */
export const add = operation('add')
/**
 * a − b, as {@link add}.
 *
 * @example
 * ```ts
 * console.log(ops.sub(tensor([5, 7]), 1).dataSync()) // → Float32Array(2) [ 4, 6 ]
 * console.log(ops.sub(1, tensor([5, 7])).dataSync()) // → Float32Array(2) [ -4, -6 ]
 * ```
 */
export const sub = operation('sub')
/**
 * a · b element by element, as {@link add}.
 *
 * @example
 * ```ts
 * console.log(ops.mul(tensor([5, 7]), tensor([2, 3])).dataSync()) // → Float32Array(2) [ 10, 21 ]
 * ```
 */
export const mul = operation('mul')
/**
 * a / b element by element, as {@link add} but f32 or f64 only.
 *
 * @example
 * ```ts
 * console.log(ops.div(tensor([1, 0]), 0).dataSync()) // → Float32Array(2) [ Infinity, NaN ]
 * ```
 */
export const div = operation('div')

/**
 * a to the power of b, as {@link div}. Where b is 0 the gradient of a is 0, and where a is 0 that of b.
 *
 * @example
 * ```ts
 * console.log(ops.pow(tensor([2, 3]), 2).dataSync()) // → Float32Array(2) [ 4, 9 ]
 * ```
 */
export const pow = operation('pow')
/**
 * The larger of a and b element by element, as {@link add}; NaN if one is. Equal elements get half of the gradient each.
 *
 * @example
 * ```ts
 * console.log(ops.maximum(tensor([1, 5]), 3).dataSync()) // → Float32Array(2) [ 3, 5 ]
 * ```
 */
export const maximum = operation('maximum')
/**
 * The smaller of a and b, as {@link maximum}.
 *
 * @example
 * ```ts
 * console.log(ops.minimum(tensor([1, 5]), 3).dataSync()) // → Float32Array(2) [ 1, 3 ]
 * ```
 */
export const minimum = operation('minimum')

declare module '../tensor/tensor.js' {
  interface Tensor<D extends DType> {
    /** See {@link ops.add}. */
    add(other: Tensor | number): Tensor<D>
    /** See {@link ops.sub}. */
    sub(other: Tensor | number): Tensor<D>
    /** See {@link ops.mul}. */
    mul(other: Tensor | number): Tensor<D>
    /** See {@link ops.div}. */
    div(other: Tensor | number): Tensor<D>
    /** See {@link ops.pow}. */
    pow(other: Tensor | number): Tensor<D>
    /** See {@link ops.maximum}. */
    maximum(other: Tensor | number): Tensor<D>
    /** See {@link ops.minimum}. */
    minimum(other: Tensor | number): Tensor<D>
  }
}
asMethods({ add, sub, mul, div, pow, maximum, minimum })
