import { record } from '../autograd.js'
import { fail, showShape } from '../check.js'
import { deviceIndex } from '../device.js'
import { type DType, dtypeCode } from '../dtype.js'
import { show } from '../errors.js'
import { consumed, handlesOf, share } from '../handles.js'
import { asMethods } from '../methods.js'
import { type Handle, native } from '../native.js'
import { checkTensor, handleOf, type Tensor, wrap } from '../tensor.js'
import { sumTo } from './reduce.js'

const kinds = { add: 0, sub: 1, mul: 2, div: 3 } as const
type Kind = keyof typeof kinds
const neg = native.unaryKinds().indexOf('neg')

/** Gradients of both operands, before the sum over broadcast axes. */
const gradients: Record<Kind, (dy: Handle, a: Handle, b: Handle) => [a: () => Handle, b: () => Handle]> = {
  add: (dy) => [() => share(dy), () => share(dy)],
  sub: (dy) => [() => share(dy), () => native.unary({ x: dy, kind: neg })],
  mul: (dy, a, b) => [() => native.binary(dy, b, kinds.mul), () => native.binary(dy, a, kinds.mul)],
  div: (dy, a, b) => [
    () => native.binary(dy, b, kinds.div),
    () => consumed(timesQuotient(dy, a, b), (x) => native.unary({ x, kind: neg })),
  ],
}

const timesQuotient = (dy: Handle, a: Handle, b: Handle): Handle =>
  consumed(native.binary(dy, a, kinds.mul), (product) =>
    consumed(native.binary(b, b, kinds.mul), (square) => native.binary(product, square, kinds.div)),
  )

function broadcastShape(op: string, a: readonly number[], b: readonly number[]): number[] {
  const rank = Math.max(a.length, b.length)
  return Array.from({ length: rank }, (_, i) => {
    const m = a[a.length - rank + i] ?? 1
    const n = b[b.length - rank + i] ?? 1
    if (m !== n && m !== 1 && n !== 1) fail('SHAPE', op, `shapes ${showShape(a)} and ${showShape(b)} do not broadcast`)
    return m === 1 ? n : m
  })
}

function operand(op: string, value: unknown, like: Tensor): Tensor {
  if (typeof value !== 'number') {
    const tensor = checkTensor(op, 'b', value)
    if (tensor.dtype !== like.dtype) fail('DTYPE', op, `b must be ${like.dtype} like a, got ${tensor.dtype}`)
    return tensor
  }
  if (like.dtype === 'i32' && !Number.isInteger(value))
    fail('DTYPE', op, `b must be an integer beside an i32 tensor, got ${value}`)
  const meta = { shape: [], dtype: like.dtype, device: like.device }
  return wrap(
    native.full({ shape: [], dtype: dtypeCode(like.dtype), device: deviceIndex(op, like.device), value }),
    meta,
  )
}

function binary<D extends DType>(kind: Kind, a: Tensor<D>, other: Tensor | number): Tensor<D> {
  checkTensor(kind, 'a', a)
  if (a.dtype === 'bf16' || a.dtype === 'f16' || (a.dtype === 'i32' && kind === 'div')) {
    fail(
      'DTYPE',
      kind,
      `a must be ${kind === 'div' ? 'f32 or f64' : 'f32, f64 or i32'}, got ${a.dtype}; convert it with .to('f32')`,
    )
  }
  if (typeof other !== 'number' && typeof other !== 'object')
    fail('OPTION', kind, `b must be a Tensor or a number, got ${show(other)}`)
  const b = operand(kind, other, a)
  try {
    const shape = broadcastShape(kind, a.shape, b.shape)
    const y = wrap(native.binary(handleOf(a), handleOf(b), kinds[kind]), { shape, dtype: a.dtype, device: a.device })
    const { shape: aShape } = a
    const { shape: bShape } = b
    const reads = kind === 'mul' || kind === 'div'
    record({
      op: kind,
      inputs: [a, b],
      outputs: [y],
      saved: reads ? [a, b] : [],
      backward: ([dy], [av, bv], [needA, needB]) => {
        const [da, db] = gradients[kind](dy!, av, bv)
        return handlesOf([needA && { d: da, to: aShape }, needB && { d: db, to: bShape }], (operand) =>
          operand ? sumTo(operand.d(), shape, operand.to) : null,
        )
      },
    })
    return y
  } finally {
    if (typeof other === 'number') b.dispose()
  }
}

/**
 * a + b with broadcasting by NumPy's rules; `b` may be a number. f32, f64 or i32, both of one dtype and device.
 * Errors: SHAPE if the shapes do not broadcast, DTYPE, DEVICE.
 *
 * @example
 * ```ts
 * console.log(ops.add(ones([2, 3]), tensor([1, 2, 3])).shape) // → [ 2, 3 ]
 * ```
 */
export const add = <D extends DType>(a: Tensor<D>, b: Tensor | number): Tensor<D> => binary('add', a, b)
/**
 * a − b, as {@link add}.
 *
 * @example
 * ```ts
 * console.log(ops.sub(tensor([5, 7]), 1).dataSync()) // → Float32Array(2) [ 4, 6 ]
 * ```
 */
export const sub = <D extends DType>(a: Tensor<D>, b: Tensor | number): Tensor<D> => binary('sub', a, b)
/**
 * a · b element by element, as {@link add}.
 *
 * @example
 * ```ts
 * console.log(ops.mul(tensor([5, 7]), tensor([2, 3])).dataSync()) // → Float32Array(2) [ 10, 21 ]
 * ```
 */
export const mul = <D extends DType>(a: Tensor<D>, b: Tensor | number): Tensor<D> => binary('mul', a, b)
/**
 * a / b element by element, as {@link add} but f32 or f64 only.
 *
 * @example
 * ```ts
 * console.log(ops.div(tensor([1, 0]), 0).dataSync()) // → Float32Array(2) [ Infinity, NaN ]
 * ```
 */
export const div = <D extends DType>(a: Tensor<D>, b: Tensor | number): Tensor<D> => binary('div', a, b)

declare module '../tensor.js' {
  interface Tensor<D extends DType> {
    /** See {@link ops.add}. */
    add(other: Tensor | number): Tensor<D>
    /** See {@link ops.sub}. */
    sub(other: Tensor | number): Tensor<D>
    /** See {@link ops.mul}. */
    mul(other: Tensor | number): Tensor<D>
    /** See {@link ops.div}. */
    div(other: Tensor | number): Tensor<D>
  }
}
asMethods({ add, sub, mul, div })
