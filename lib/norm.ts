import { type Handle, native } from './native.js'

/** A scale with which no sum of squares of finite numbers overflows: (2^1024 · 2^−550)² · 2^46 elements < 2^1024. */
const small = 2 ** -550

/** Whether an f32 or f64 tensor has neither NaN nor infinity. Waits for a GPU. */
export const allFinite = (x: Handle): boolean => Number.isFinite(native.sumSquares(x, small))

/** The joint 2-norm of tensors, without intermediate overflow or underflow. Waits for a GPU. */
export function norm(xs: readonly Handle[]): number {
  const scaled = (scale: number) => Math.sqrt(xs.reduce((total, x) => total + native.sumSquares(x, scale), 0)) / scale
  const plain = scaled(1)
  return plain > 2 ** -500 && plain < Infinity ? plain : scaled(plain < 1 ? 1 / small : small)
}
