import { checkInteger, fail, showShape } from '../runtime/check.js'
import { type Device, prefersSlots } from '../runtime/device.js'
import { within } from '../runtime/errors.js'
import { type Handle, native } from '../runtime/native.js'
import { share } from '../tensor/handles.js'
import { checkTensor, handleOf, keepBeside, type Tensor, wrap } from '../tensor/tensor.js'
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

/** The assignment of each row, and the row of each assignment. */
export type SlotPlan = readonly [assignment: Handle, rowOf: Handle]

/** The plan that a router made, of the tensors and sizes of its routing. */
interface Routed {
  plan: SlotPlan
  expertIndex: Tensor
  sizes: readonly number[]
  versions: readonly number[]
}

/** By positions. */
const routed = new WeakMap<Tensor, Routed>()

const versionsOf = (...tensors: Tensor[]): number[] => tensors.map((tensor) => native.version(handleOf(tensor)))

/** Whether most of E · B · C slots are empty: the capacity is then not what limits the experts. */
const mostlyEmpty = (N: number, assignments: number, slots: number, C: number): boolean =>
  slots > assignments && (C >= N || slots >= 4 * assignments)

/** Whether the router should make the plan of slots: where the experts will have it, see {@link expertPlan}. */
export function wantsSlots(device: Device, B: number, N: number, K: number, E: number, C: number): boolean {
  return prefersSlots(device) && !mostlyEmpty(N, B * N * K, E * B * C, C) && E * B * C < 2 ** 31
}

/** Takes over the plan of slots of a routing, which lives as long as its positions. */
export function keepSlots({ expertIndex, position, numExperts, capacity }: Routing, plan: SlotPlan): void {
  keepBeside(position, plan)
  const versions = versionsOf(expertIndex, position)
  routed.set(position, { plan, expertIndex, sizes: [numExperts, capacity], versions })
}

/** That of the router, if the routing is still as the router made it. */
function keptSlots({ expertIndex, position }: Routing, E: number, C: number): SlotPlan | null {
  const made = routed.get(position)
  if (!made || made.expertIndex !== expertIndex || made.sizes[0] !== E || made.sizes[1] !== C) return null
  return versionsOf(expertIndex, position).every((version, i) => version === made.versions[i]) ? made.plan : null
}

/** A row for each slot [E, B, C]. */
export function slotPlan(op: string, routing: Routing, E: number, C: number): SlotPlan {
  const { expertIndex, position } = routing
  const kept = keptSlots(routing, E, C)
  if (kept) return [share(kept[0]), share(kept[1])]
  const made = within(op, () =>
    native.planSlots({ expertIndex: handleOf(expertIndex), position: handleOf(position), E, C }),
  )
  return [made.assignment, made.rowOf]
}

/**
 * The plan of the fused experts: rows of dispatched assignments alone, and `ends`. Where the backend prefers it,
 * as on a GPU, the rows are the slots if the capacity is what limits them: then the host knows every size and need not
 * wait for `ends`.
 */
export function expertPlan(
  op: string,
  routing: Routing,
  E: number,
  C: number,
): SlotPlan | readonly [assignment: Handle, rowOf: Handle, ends: Handle] {
  const { expertIndex, position } = routing
  const [B, N] = expertIndex.shape
  const slots = E * B * C
  if (prefersSlots(expertIndex.device) && !mostlyEmpty(N, expertIndex.size, slots, C))
    return slotPlan(op, routing, E, C)
  const R = Math.min(expertIndex.size, slots)
  const made = within(op, () =>
    native.planSorted({ expertIndex: handleOf(expertIndex), position: handleOf(position), E, R }),
  )
  return [made.assignment, made.rowOf, made.ends]
}

/** Rows of dispatched assignments alone, in the order of their experts, and how many each has. It waits for the device. */
export function countedPlan(op: string, routing: Routing, E: number): { plan: readonly Tensor[]; counts: number[] } {
  const { expertIndex, position } = routing
  const R = expertIndex.size
  const made = within(op, () =>
    native.planSorted({ expertIndex: handleOf(expertIndex), position: handleOf(position), E, R }),
  )
  const { device, shape } = expertIndex
  const i32 = (handle: Handle, shape: readonly number[]) => wrap(handle, { shape, dtype: 'i32', device })
  const [assignment, rowOf] = [i32(made.assignment, [R]), i32(made.rowOf, shape)]
  using last = i32(made.ends, [E])
  const ends = last.dataSync()
  const used = i32(native.stridedRead(made.assignment, [ends[E - 1]], [1], 0), [ends[E - 1]])
  assignment.dispose()
  return { plan: [used, rowOf], counts: Array.from(ends, (end, e) => end - (e > 0 ? ends[e - 1] : 0)) }
}
