import { record, willRecord } from '../autograd/autograd.js'
import { type Generator, type GeneratorState, withSample } from '../autograd/random.js'
import { fail, showShape } from '../runtime/check.js'
import { type ComputeDType, checkComputeDType, type DType, dtypeCode } from '../runtime/dtype.js'
import { type Handle, native } from '../runtime/native.js'
import { activationKind } from '../runtime/native-ops.js'
import { boolean, type OptionsOf, rate, reader, unchecked } from '../runtime/options.js'
import { guarded, releaseAll } from '../tensor/handles.js'
import { checkFloat, checkTensor, checkWeight, handleOf, type Tensor, wrap } from '../tensor/tensor.js'
import { type Activation, type ActivationOptions, activationOptions, isGated } from './activation.js'
import { checkRouting, expertPlan } from './plan.js'
import type { Routing } from './routing.js'

/** Stacked parameters of E experts of hidden size H; P = 2H if their activation is gated, else H. */
export interface ExpertWeights {
  /** [E, P, D]; of gated ones the first half values, the second half gates. */
  w1: Tensor
  /** [E, P], or null for none. */
  b1: Tensor | null
  /** [E, H] of gated ones, or null for ones; plain ones have none. */
  multBias?: Tensor | null
  /** [E, O, H] */
  w2: Tensor
  /** [E, O], or null for none. */
  b2: Tensor | null
}

const gradients = { w1: 'dw1', w2: 'dw2', b1: 'db1', b2: 'db2', multBias: 'dmultBias' } as const
const parameterNames = Object.keys(gradients) as (keyof typeof gradients)[]
const tokenNames = ['x', 'weight', 'assignment', 'rowOf', 'ends'] as const
type OperandName = (typeof parameterNames)[number] | (typeof tokenNames)[number]
/** What the forward and the backward take alike. */
type Operands = Record<OperandName, Handle | null> & { x: Handle; w1: Handle; w2: Handle }
const noOperands = Object.fromEntries([...parameterNames, ...tokenNames].map((name) => [name, null]))

const ffnOptions = {
  /** The combine weight also gets the gradient <x, dx> of a dispatch weight whose forward value is 1. Default true. */
  straightThrough: boolean({ default: true }),
  /** Dropout of h with this probability in [0, 1), see {@link dropout}. Default 0. */
  dropout: rate(),
  /** Of the dropout. Default: that of {@link manualSeed}. */
  generator: unchecked<Generator>(),
  /** 'bf16', 'bf16x3' or 'f16' rounds the operands of the GEMMs, forward and backward; sums stay f32. Default: the dtype of x. */
  computeDtype: unchecked<ComputeDType>(),
}

/** Options of {@link expertFfn}. */
export interface ExpertFfnOptions extends OptionsOf<typeof ffnOptions>, ActivationOptions {}

/** Of {@link expertFfnWith}. */
export const readFfnOptions = reader(ffnOptions, activationOptions)
type FfnValues = ReturnType<typeof readFfnOptions>

/** An activation for the native code. */
const nativeActivation = ({
  activation,
  geluApproximate,
  swigluLimit,
  swigluAlpha,
}: Required<ActivationOptions>): { activation: number; limit: number; alpha: number } => {
  const suffix = geluApproximate === 'tanh' ? '_tanh' : swigluLimit !== null ? '_clamped' : ''
  const kind = `${activation}${suffix}` as keyof typeof activationKind // the check of the options knows which exist
  return { activation: activationKind[kind], limit: swigluLimit ?? 0, alpha: swigluAlpha ?? 1.702 }
}

/** `experts`: of the routing, or null without one. */
function checkWeights(
  op: string,
  x: Tensor,
  weights: ExpertWeights,
  activation: Activation,
  experts: number | null,
): void {
  const gated = isGated(activation)
  if (typeof weights !== 'object' || weights === null)
    fail('OPTION', op, `weights must be { w1, b1, ${gated ? 'multBias, ' : ''}w2, b2 }`)
  const D = x.shape[x.shape.length - 1]
  checkTensor(op, 'w2', weights.w2)
  const [E, O, H] = weights.w2.shape
  const P = gated ? 2 * H : H
  const like = (shape: number[]) => ({ shape, dtype: x.dtype, device: x.device })
  if (weights.w2.shape.length !== 3) fail('SHAPE', op, `w2 must be [E, O, H], got ${showShape(weights.w2.shape)}`)
  if (experts !== null && E !== experts)
    fail('SHAPE', op, `w2 must have ${experts} experts, got ${showShape(weights.w2.shape)}`)
  if (experts === null && E !== 1 && (x.shape.length < 2 || x.shape[0] !== E))
    fail('SHAPE', op, `x must be [${E}, ..., ${D}] for ${E} experts without a routing, got ${showShape(x.shape)}`)
  checkWeight(op, 'w2', weights.w2, [E, O, H], x)
  checkWeight(op, 'w1', weights.w1, [E, P, D], x)
  if (weights.b1 !== null) checkTensor(op, 'b1', weights.b1, like([E, P]))
  if (gated && weights.multBias !== null) checkTensor(op, 'multBias', weights.multBias, like([E, H]))
  else if (weights.multBias) fail('OPTION', op, `multBias is for gated activations, got '${activation}'`)
  if (weights.b2 !== null) checkTensor(op, 'b2', weights.b2, like([E, O]))
}

/**
 * Experts of two linear maps with an {@link ActivationOptions.activation | activation} between them, by default GEGLU
 * with a multiplicative bias μ: [v ; γ] = x w1ᵀ + b1, h = gelu(γ) ⊙ v ⊙ μ, y = h w2ᵀ + b2 for each dispatched assignment.
 * The output of a token is Σ_k weight_k · y_k.
 * x [B, N, D] with a routing → [B, N, O]. With `null` instead, x [E, ..., D] holds the rows of each expert, or x
 * [..., D] those of the one expert (a dense feed-forward) → [..., O].
 * f32 or f64; with x in f32, w1 and w2 may be bf16, f16 or int8. Only x w1ᵀ + b1 is saved for the backward. Errors: SHAPE, DTYPE, DEVICE, OPTION.
 *
 * @example
 * ```ts
 * const [E, D, H] = [4, 32, 64]
 * const weights = {
 *   w1: randn([E, 2 * H, D]).mul(0.1),
 *   b1: zeros([E, 2 * H]),
 *   multBias: ones([E, H]),
 *   w2: randn([E, D, H]).mul(0.1),
 *   b2: zeros([E, D]),
 * }
 * const x = randn([2, 16, D])
 * const y = ops.expertFfn(x, ops.route(x, randn([E, D])), weights)
 * console.log(y.shape) // → [ 2, 16, 32 ]
 * ```
 */
export function expertFfn<D extends DType>(
  x: Tensor<D>,
  routing: Routing | null,
  weights: ExpertWeights,
  options?: ExpertFfnOptions,
): Tensor<D> {
  return expertFfnWith(x, routing, weights, readFfnOptions('expertFfn', options))
}

/** {@link expertFfn} with options that have been checked. */
export function expertFfnWith<D extends DType>(
  x: Tensor<D>,
  routing: Routing | null,
  weights: ExpertWeights,
  o: FfnValues,
): Tensor<D> {
  const op = 'expertFfn'
  const apply = (sample: GeneratorState) => withDropout(op, x, routing, weights, o, sample)
  return o.dropout > 0 ? withSample(op, o.generator, apply) : apply({ seed: 0, step: 0 })
}

function withDropout<D extends DType>(
  op: string,
  x: Tensor<D>,
  routing: Routing | null,
  weights: ExpertWeights,
  o: FfnValues,
  { seed, step }: GeneratorState,
): Tensor<D> {
  checkFloat(op, 'x', x)
  const compute = dtypeCode(checkComputeDType(op, o.computeDtype, x.dtype))
  if (x.shape.length === 0) fail('SHAPE', op, 'x must have at least one dimension, got []')
  const { shape, dtype, device } = x
  const routed = routing === null ? null : checkRouting(op, routing, x)
  checkWeights(op, x, weights, o.activation, routed?.E ?? null)
  const plan: readonly Handle[] = routing && routed ? expertPlan(op, routing, routed.E, routed.C) : []
  const names = parameterNames.filter((name) => weights[name])
  const parameters = names.map((name) => weights[name]!)
  const inputs = [x, routing?.weight ?? null, ...parameters]
  const save = willRecord(...inputs)
  const tensors = routing ? [...parameters, x, routing.weight] : [...parameters, x]
  const numbers = { compute, ...nativeActivation(o), dropout: o.dropout, seed, step }
  const operands = (handles: readonly Handle[]): Operands => {
    const named: Record<string, Handle | null> = { ...noOperands }
    for (const [i, handle] of handles.entries()) named[names[i] ?? tokenNames[i - names.length]] = handle
    return named as Operands
  }
  const made = guarded(plan, () =>
    native.expertFfn({ a: save, ...numbers, ...operands([...tensors.map(handleOf), ...plan]) }),
  )
  const y = wrap(made.y, { shape: [...shape.slice(0, -1), weights.w2.shape[1]], dtype, device })
  if (!save) {
    releaseAll(plan)
    return y
  }
  record({
    op,
    inputs,
    outputs: [y],
    saved: [made.a!, ...tensors, ...plan],
    backward: ([dy], [a, ...saved], [needX, , ...needParameters]) => {
      const need = needParameters.includes(true)
      const made = native.expertFfnBackward({
        dy: dy!,
        a,
        straightThrough: o.straightThrough && routing !== null,
        dx: needX,
        dweight: routing !== null,
        dw1: need,
        dw2: need,
        db1: need && names.includes('b1'),
        db2: need && names.includes('b2'),
        dmultBias: need && names.includes('multBias'),
        ...numbers,
        ...operands(saved),
      })
      return [made.dx, made.dweight, ...names.map((name) => made[gradients[name]])]
    },
  })
  return y
}
