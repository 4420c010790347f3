import { checkInteger, fail, showShape } from '../check.js'
import { within } from '../errors.js'
import { type Handle, native } from '../native.js'
import { checkTensor, handleOf, type Tensor } from '../tensor.js'
import type { Routing } from './routing.js'

/** Checks a routing of x [B, N, D]; returns E and C. */
export function checkRouting(op: string, routing: Routing, x: Tensor): { E: number; C: number } {
  if (typeof routing !== 'object' || routing === null) fail('OPTION', op, 'routing must come from a router')
  if (x.shape.length !== 3) fail('SHAPE', op, `x must be [B, N, D], got ${showShape(x.shape)}`)
  return checkChoices(op, routing, x.shape[0], x.shape[1], x)
}

/** The same for B sequences of N tokens. */
export function checkChoices(
  op: string,
  routing: Routing,
  B: number,
  N: number,
  { dtype, device }: Tensor,
): { E: number; C: number } {
  checkTensor(op, 'routing.expertIndex', routing.expertIndex)
  const shape = [B, N, routing.expertIndex.shape[2] ?? 0]
  checkTensor(op, 'routing.expertIndex', routing.expertIndex, { shape, dtype: 'i32', device })
  checkTensor(op, 'routing.position', routing.position, { shape, dtype: 'i32', device })
  checkTensor(op, 'routing.weight', routing.weight, { shape, dtype, device })
  const E = checkInteger(op, 'routing.numExperts', routing.numExperts, 1, 2 ** 31 - 1)
  const C = checkInteger(op, 'routing.capacity', routing.capacity, 0, 2 ** 31 - 1)
  return { E, C }
}

// Plans say which rows the experts compute, see native/core/ops.inc. Their handles are the caller's.

/** A row for each slot [E, B, C]. */
export function slotPlan(op: string, routing: Routing, E: number, C: number): [assignment: Handle, rowOf: Handle] {
  const { expertIndex, position } = routing
  const made = within(op, () =>
    native.planSlots({ expertIndex: handleOf(expertIndex), position: handleOf(position), E, C }),
  )
  return [made.assignment, made.rowOf]
}

/**
 * The plan of the fused experts: rows of dispatched assignments alone, and `ends`. On a GPU the rows are the slots if
 * the capacity is what limits them: then the host knows every size and need not wait for `ends`.
 */
export function expertPlan(
  op: string,
  routing: Routing,
  E: number,
  C: number,
): [assignment: Handle, rowOf: Handle] | [assignment: Handle, rowOf: Handle, ends: Handle] {
  const { expertIndex, position } = routing
  const [B, N] = expertIndex.shape
  const slots = E * B * C
  const R = Math.min(expertIndex.size, slots)
  const mostlyEmpty = slots > R && (C >= N || slots >= 4 * R)
  if (expertIndex.device !== 'cpu' && !mostlyEmpty) return slotPlan(op, routing, E, C)
  const made = within(op, () =>
    native.planSorted({ expertIndex: handleOf(expertIndex), position: handleOf(position), E, R }),
  )
  return [made.assignment, made.rowOf, made.ends]
}
