import { allocateArray, allocated } from '../runtime/dtype.js'
import { type Handle, native } from '../runtime/native.js'

/** A scale with which no sum of squares of finite numbers overflows: (2^1024 · 2^−550)² · 2^46 elements < 2^1024. */
const small = 2 ** -550

/** Handles as an argument of the addon. Errors: OUT_OF_MEMORY. */
export const handleList = (op: string, xs: readonly Handle[]): Float64Array =>
  allocated(op, `an array of ${xs.length} f64`, () => Float64Array.from(xs))

/** A tensor f64 [] that is not finite if one of these f32 or f64 tensors of one device has a NaN or an infinity. */
export const finiteNorm = (op: string, xs: readonly Handle[]): Handle => native.norm(handleList(op, xs), small)

/** √Σ (scale · x)² over float tensors of one device. Waits for a GPU. */
function scaledNorm(xs: readonly Handle[], scale: number): number {
  if (xs.length === 0) return 0
  const result = native.norm(handleList('norm', xs), scale)
  try {
    const value = allocateArray('norm', 'f64', 1)
    native.toData(result, value)
    return value[0]
  } finally {
    native.release(result)
  }
}

/** Whether f32 or f64 tensors of one device have neither NaN nor infinity. Waits for a GPU. */
export const allFinite = (xs: readonly Handle[]): boolean => Number.isFinite(scaledNorm(xs, small))

/** The joint 2-norm of tensors, a list for each device, without intermediate overflow or underflow. Waits for GPUs. */
export function norm(lists: readonly (readonly Handle[])[]): number {
  const scaled = (scale: number) => Math.hypot(...lists.map((xs) => scaledNorm(xs, scale))) / scale
  const plain = scaled(1)
  return plain > 2 ** -500 && plain < Infinity ? plain : scaled(plain < 1 ? 1 / small : small)
}
