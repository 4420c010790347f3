import { noGrad, scope } from '../autograd/scope.js'
import { show } from '../runtime/errors.js'
import { allFinite } from '../tensor/norm.js'
import { checkTensor, handleOf, type Tensor, type TensorMeta } from '../tensor/tensor.js'

/** The allowed values of a state tensor, all finite. */
export type StateValues = 'any' | 'non-negative'

/** A tensor of a parameter's state that does not have the shape of the parameter. */
export interface ShapedStateTensor {
  /** Its allowed values. */
  values: StateValues
  /** Its shape. */
  shape: readonly number[]
}

/** A tensor of a parameter's state: its allowed values, and its shape if it is not that of the parameter. */
export type StateTensor = StateValues | ShapedStateTensor

/** Tensors of a parameter's state by name. */
export type StateTensors = Readonly<Record<string, StateTensor>>

export const shapeOf = (tensor: StateTensor, shape: readonly number[]): readonly number[] =>
  typeof tensor === 'string' ? shape : tensor.shape

const stepMeta = { shape: [], dtype: 'f64' } as const

/** What is wrong with the entry `key` of a state, the step count or a tensor of the parameter `meta`; null if nothing. */
export function problemOf(
  op: string,
  key: string,
  value: Tensor,
  { shape, dtype }: Pick<TensorMeta, 'shape' | 'dtype'>,
  kind: StateTensor | undefined,
): string | null {
  const meta = kind === undefined ? stepMeta : { shape: shapeOf(kind, shape), dtype }
  const misfit = misfitOf(op, key, value, meta)
  if (misfit !== null) return misfit
  const numbers = kind === undefined ? countProblem(value) : numbersProblem(value, kind)
  return numbers === null ? null : `${key} ${numbers}`
}

function misfitOf(op: string, key: string, value: unknown, meta: Pick<TensorMeta, 'shape' | 'dtype'>): string | null {
  try {
    const { device } = checkTensor(op, key, value)
    checkTensor(op, key, value, { ...meta, device })
    return null
  } catch (error) {
    return (error as Error).message.slice(op.length + 3)
  }
}

const countProblem = (value: Tensor): string | null => {
  const count = value.item()
  return Number.isSafeInteger(count) && count >= 0 ? null : `must be an integer of at least 0, got ${show(count)}`
}

/** For 'non-negative', checks the square root, which is NaN for negative numbers. */
const numbersProblem = (value: Tensor, kind: StateTensor): string | null => {
  const nonNegative = (typeof kind === 'string' ? kind : kind.values) === 'non-negative'
  const isRight = noGrad(() => scope(() => allFinite([handleOf(nonNegative ? value.sqrt() : value)])))
  return isRight ? null : `must hold finite ${nonNegative ? 'numbers of at least 0' : 'numbers'}`
}
