import { checkInteger, checkNumber, fail, showShape } from '../runtime/check.js'
import { type Device, deviceIndex } from '../runtime/device.js'
import type { DType } from '../runtime/dtype.js'
import { within } from '../runtime/errors.js'
import { type Handle, native } from '../runtime/native.js'
import { consumed, share } from '../tensor/handles.js'
import { checkFloat, checkTensor, handleOf, type Tensor, wrap } from '../tensor/tensor.js'
import { reshape } from './reshape.js'

/** Where each token goes. Letters as in the docs: B sequences, N tokens, E experts, K experts per token. */
export interface Routing<D extends DType = DType> {
  /** i32 of shape [B, N, K], the chosen experts, the most probable first. */
  expertIndex: Tensor<'i32'>
  /** Shape [B, N, K], probabilities of the chosen, normalised over the K experts, before dropping. */
  gate: Tensor<D>
  /** i32 of shape [B, N, K], 1 if dispatched, else 0. */
  kept: Tensor<'i32'>
  /**
   * i32 of shape [B, N, K], the slot in the expert, −1 if dropped. {@link dispatch} and {@link combine} throw OPTION if two
   * assignments of a sequence have the same slot of an expert.
   */
  position: Tensor<'i32'>
  /** Shape [B, N, K], combine weights: normalised probabilities ({@link RouteOptions.gateNormalization}), 0 if dropped. Differentiable. */
  weight: Tensor<D>
  /** C, slots of one expert for one sequence. */
  capacity: number
  /** E */
  numExperts: number
  /** i32 of shape [B, N], 1 for a token and 0 for padding; null without a mask. */
  mask: Tensor<'i32'> | null
  /** Shape [B, N, E], of the router, without noise; not differentiable. A routing of your own may have none. */
  logits?: Tensor<D>
}

/** A routing and the auxiliary losses, each of shape [], differentiable, and 0 unless training. */
export interface RouteResult<D extends DType = DType> extends Routing<D> {
  /**
   * (E / B) · Σ_b Σ_e f[b,e] · P[b,e] with P the mean probability of an expert and f its fraction of top-1 assignments
   * (Switch Transformer, arXiv 2101.03961, §2.2; ST-MoE, arXiv 2202.08906, appendix A). No gradient through f.
   */
  balanceLoss: Tensor<D>
  /** Mean of logsumexp(logits)², of the logits without noise (ST-MoE, arXiv 2202.08906, §3.3). */
  routerZLoss: Tensor<D>
  /** balanceLossCoef · balanceLoss + routerZLossCoef · routerZLoss. */
  totalAuxLoss: Tensor<D>
}

/**
 * C = max(min(N, trunc(N · factor / E)), least), in double precision from left to right: slots of one expert for one
 * sequence of N tokens, as st-moe-pytorch and Mesh TensorFlow count them (not multiplied by K). Errors: OPTION.
 *
 * @example
 * ```ts
 * console.log(ops.expertCapacity(1024, 16, 1.25)) // → 80
 * ```
 */
export function expertCapacity(N: number, E: number, factor: number, least = 4): number {
  const op = 'expertCapacity'
  checkInteger(op, 'N', N, 0)
  checkInteger(op, 'E', E, 1)
  checkNumber(op, 'factor', factor, 0)
  checkInteger(op, 'least', least, 0)
  return Math.max(Math.min(N, Math.trunc((N * factor) / E)), least)
}

/** A new handle to an optional tensor, converted by `convert`. */
export function converted(
  op: string,
  name: string,
  value: unknown,
  shape: readonly number[],
  device: Device,
  convert: (handle: Handle) => Handle,
): Handle | null {
  if (value === undefined || value === null) return null
  const tensor = checkTensor(op, name, value)
  checkTensor(op, name, tensor, { shape, dtype: tensor.dtype, device: tensor.device })
  const own = convert(handleOf(tensor))
  return tensor.device === device ? own : consumed(own, () => native.toDevice(own, deviceIndex(op, device)))
}

/** A new handle to a mask [B, N] of any dtype, as 0 and 1. */
export const maskHandle = (op: string, mask: unknown, B: number, N: number, device: Device): Handle | null =>
  converted(op, 'mask', mask, [B, N], device, (handle) => within(op, () => native.tokenMask({ x: handle })))

/** A new handle to the importance [B, N] of tokens, as the mask of the op `route`. */
export const importanceHandle = (
  op: string,
  importance: unknown,
  B: number,
  N: number,
  device: Device,
): Handle | null =>
  converted(op, 'importance', importance, [B, N], device, (handle) =>
    within(op, () => native.tokenMask({ x: handle, importance: true })),
  )

/** Padding is said in one way. */
export function checkOneMask(op: string, { mask, importance }: { mask?: unknown; importance?: unknown }): void {
  if (mask && importance) fail('OPTION', op, 'mask and importance cannot be together: importance 0 is padding')
}

/** Checks x [B, N, D] and the weight [E, D] of a router. */
export function checkRouterInputs(op: string, x: Tensor, weight: Tensor): { B: number; N: number; E: number } {
  checkFloat(op, 'x', x)
  checkTensor(op, 'weight', weight)
  if (x.shape.length !== 3) fail('SHAPE', op, `x must be [B, N, D], got ${showShape(x.shape)}`)
  const [B, N, D] = x.shape
  const E = weight.shape[0] ?? 0
  checkTensor(op, 'weight', weight, { shape: [E, D], dtype: x.dtype, device: x.device })
  if (E === 0) fail('SHAPE', op, `weight must have at least one expert, got ${showShape(weight.shape)}`)
  return { B, N, E }
}

/** The same with each assignment as a token of its own, [B, N · K, 1], and these weights. */
export function eachChoice<D extends DType>(routing: Routing, weight: Tensor<D>): Routing<D> {
  const { expertIndex, gate, kept, position, capacity, numExperts } = routing
  const [B, N, K] = expertIndex.shape
  const alone = <T extends Tensor>(choices: T): T => reshape(choices, [B, N * K, 1]) as T
  return {
    expertIndex: alone(expertIndex),
    gate: alone(gate) as Tensor<D>,
    kept: alone(kept),
    position: alone(position),
    weight: alone(weight),
    capacity,
    numExperts,
    mask: null,
  }
}

/** The result of a native router for x, with K experts per token. */
export function routeResult<D extends DType>(
  x: Tensor<D>,
  made: Record<
    'expertIndex' | 'gate' | 'kept' | 'position' | 'weight' | 'balanceLoss' | 'zLoss' | 'totalLoss' | 'logits',
    Handle
  >,
  { K, E, C, mask }: { K: number; E: number; C: number; mask: Handle | null },
): RouteResult<D> {
  const { dtype, device } = x
  const [B, N] = x.shape
  const perChoice = Object.freeze([B, N, K]) // a frozen shape is not copied
  const i32 = { shape: perChoice, dtype: 'i32', device } as const
  const choices = { shape: perChoice, dtype, device }
  const scalar = { shape: Object.freeze([]), dtype, device }
  return {
    expertIndex: wrap(made.expertIndex, i32),
    gate: wrap(made.gate, choices),
    kept: wrap(made.kept, i32),
    position: wrap(made.position, i32),
    weight: wrap(made.weight, choices),
    capacity: C,
    numExperts: E,
    mask: mask === null ? null : wrap(share(mask), { shape: [B, N], dtype: 'i32', device }),
    logits: wrap(share(made.logits), { shape: [B, N, E], dtype, device }), // the caller has a handle of its own
    balanceLoss: wrap(made.balanceLoss, scalar),
    routerZLoss: wrap(made.zLoss, scalar),
    totalAuxLoss: wrap(made.totalLoss, scalar),
  }
}
