import { scope } from '../autograd/scope.js'
import { checkBoolean, checkNumber, checkOneOf, checkOptions, fail, sameShape, showShape } from '../runtime/check.js'
import type { DType } from '../runtime/dtype.js'
import { checkFloat, checkTensor, isTensor, type Tensor } from '../tensor/tensor.js'
import { add, broadcastShape, div, mul, sub } from './binary.js'
import { clamp, equal, where } from './compare.js'
import { mean, sum } from './reduce.js'
import { abs, exp, log, neg, softplus, square } from './unary.js'

/** What becomes of the losses of elements or rows: their mean or sum, of shape [], or each by itself. */
export type Reduction = 'mean' | 'sum' | 'none'

/** Options of {@link mseLoss}, and of every other loss. */
export interface LossOptions {
  /** Default 'mean'. */
  reduction?: Reduction
}

export const checkReduction = (op: string, reduction: unknown = 'mean'): Reduction =>
  checkOneOf(op, 'reduction', reduction, ['mean', 'sum', 'none'])

const reduced = <D extends DType>(losses: Tensor<D>, reduction: Reduction): Tensor<D> =>
  reduction === 'none' ? losses : reduction === 'sum' ? sum(losses) : mean(losses)

function checkPair(op: string, names: readonly [string, string], a: Tensor, b: Tensor): void {
  checkFloat(op, names[0], a)
  checkTensor(op, names[1], b, a)
}

const pair = ['prediction', 'target'] as const

/**
 * Squared differences, by default their mean, shape []; as torch.nn.functional.mse_loss. Both tensors of one shape, f32 or
 * f64. Errors: SHAPE, DTYPE, DEVICE, OPTION.
 *
 * @example
 * ```ts
 * console.log(mseLoss(tensor([1, 2]), tensor([1, 4])).item()) // → 2
 * ```
 */
export function mseLoss<D extends DType>(prediction: Tensor<D>, target: Tensor, options?: LossOptions): Tensor<D> {
  const op = 'mseLoss'
  const reduction = checkReduction(op, checkOptions<LossOptions>(op, options, ['reduction']).reduction)
  checkPair(op, pair, prediction, target)
  return scope(() => reduced(square(sub(prediction, target)), reduction))
}

/** ½d² up to |d| = limit, and the line that continues it. */
function huber<D extends DType>(prediction: Tensor<D>, target: Tensor, limit: number): Tensor<D> {
  const difference = sub(prediction, target)
  const limited = clamp(difference, -limit, limit)
  return mul(limited, sub(difference, mul(limited, 0.5)))
}

/** Options of {@link huberLoss}. */
export interface HuberOptions extends LossOptions {
  /** Above 0. Default 1. */
  delta?: number
}

/**
 * ½d² where |d| ≤ delta, else delta · (|d| − ½ delta), for differences d (Huber, 1964); as torch.nn.functional.huber_loss.
 * Tensors and errors as {@link mseLoss}.
 *
 * @example
 * ```ts
 * console.log(huberLoss(tensor([0.5, 3]), tensor([0, 0]), { reduction: 'none' }).dataSync()) // → Float32Array(2) [ 0.125, 2.5 ]
 * ```
 */
export function huberLoss<D extends DType>(prediction: Tensor<D>, target: Tensor, options?: HuberOptions): Tensor<D> {
  const op = 'huberLoss'
  const { delta = 1, reduction } = checkOptions<HuberOptions>(op, options, ['delta', 'reduction'])
  const how = checkReduction(op, reduction)
  if (checkNumber(op, 'delta', delta, 0) === 0) fail('OPTION', op, 'delta must be above 0, got 0')
  checkPair(op, pair, prediction, target)
  return scope(() => reduced(huber(prediction, target, delta), how))
}

/** Options of {@link smoothL1Loss}. */
export interface SmoothL1Options extends LossOptions {
  /** Not negative; 0 is the mean absolute error. Default 1. */
  beta?: number
}

/**
 * ½d²/beta where |d| < beta, else |d| − ½ beta, for differences d (Girshick, arXiv 1504.08083, §2.3, with beta 1); as
 * torch.nn.functional.smooth_l1_loss. Tensors and errors as {@link mseLoss}.
 *
 * @example
 * ```ts
 * console.log(smoothL1Loss(tensor([1, 3]), tensor([0, 0]), { beta: 2, reduction: 'none' }).dataSync()) // → Float32Array(2) [ 0.25, 2 ]
 * ```
 */
export function smoothL1Loss<D extends DType>(
  prediction: Tensor<D>,
  target: Tensor,
  options?: SmoothL1Options,
): Tensor<D> {
  const op = 'smoothL1Loss'
  const { beta = 1, reduction } = checkOptions<SmoothL1Options>(op, options, ['beta', 'reduction'])
  const how = checkReduction(op, reduction)
  checkNumber(op, 'beta', beta, 0)
  checkPair(op, pair, prediction, target)
  return scope(() =>
    reduced(beta === 0 ? abs(sub(prediction, target)) : div(huber(prediction, target, beta), beta), how),
  )
}

/** Options of {@link binaryCrossEntropyWithLogits}. */
export interface BinaryCrossEntropyOptions extends LossOptions {
  /** Factor of the loss where the target is 1: a number, or a tensor that broadcasts to the shape of the logits. */
  posWeight?: Tensor | number
}

/**
 * −w·y·log σ(x) − (1 − y)·log(1 − σ(x)) of logits x, targets y from 0 to 1 and w = `posWeight`; computed as
 * (1 − y)·x + (1 + (w − 1)·y)·softplus(−x), which neither overflows nor cancels; as
 * torch.nn.functional.binary_cross_entropy_with_logits. Tensors and errors as {@link mseLoss}.
 *
 * @example
 * ```ts
 * const loss = binaryCrossEntropyWithLogits(tensor([0, 100]), tensor([1, 0]), { reduction: 'none' })
 * console.log([...loss.dataSync()].map((x) => x.toFixed(4))) // → [ '0.6931', '100.0000' ]
 * ```
 */
export function binaryCrossEntropyWithLogits<D extends DType>(
  logits: Tensor<D>,
  target: Tensor,
  options?: BinaryCrossEntropyOptions,
): Tensor<D> {
  const op = 'binaryCrossEntropyWithLogits'
  const { posWeight, reduction } = checkOptions<BinaryCrossEntropyOptions>(op, options, ['posWeight', 'reduction'])
  const how = checkReduction(op, reduction)
  checkPair(op, ['logits', 'target'], logits, target)
  if (isTensor(posWeight)) {
    const { shape } = checkTensor(op, 'posWeight', posWeight)
    checkTensor(op, 'posWeight', posWeight, { shape, dtype: logits.dtype, device: logits.device })
    if (!sameShape(broadcastShape(op, shape, logits.shape), logits.shape))
      fail('SHAPE', op, `posWeight must broadcast to ${showShape(logits.shape)}, got ${showShape(shape)}`)
  } else if (posWeight !== undefined) checkNumber(op, 'posWeight', posWeight)
  return scope(() => {
    const negative = mul(sub(1, target), logits)
    const log1p = softplus(neg(logits))
    if (posWeight === undefined) return reduced(add(negative, log1p), how) as Tensor<D>
    const more = typeof posWeight === 'number' ? posWeight - 1 : sub(posWeight, 1)
    return reduced(add(negative, mul(log1p, add(mul(target, more), 1))), how) as Tensor<D>
  })
}

/** Options of {@link klDiv}. */
export interface KlDivOptions {
  /** 'batchmean' divides the sum by the first dimension: the divergence per row. Default 'mean', over all elements. */
  reduction?: Reduction | 'batchmean'
  /** The target holds logarithms, too. Default false. */
  logTarget?: boolean
}

/**
 * Kullback–Leibler divergence of a distribution `input`, given as logarithms, from `target`: t·(log t − input) for each
 * element, 0 where t is 0; as torch.nn.functional.kl_div. Tensors and errors as {@link mseLoss}.
 *
 * @example
 * ```ts
 * const input = logSoftmax(zeros([1, 4]))
 * console.log(klDiv(input, tensor([[1, 0, 0, 0]]), { reduction: 'batchmean' }).item().toFixed(4)) // → 1.3863
 * ```
 */
export function klDiv<D extends DType>(input: Tensor<D>, target: Tensor, options?: KlDivOptions): Tensor<D> {
  const op = 'klDiv'
  const { reduction = 'mean', logTarget = false } = checkOptions<KlDivOptions>(op, options, ['reduction', 'logTarget'])
  checkOneOf(op, 'reduction', reduction, ['mean', 'batchmean', 'sum', 'none'])
  checkBoolean(op, 'logTarget', logTarget)
  checkPair(op, ['input', 'target'], input, target)
  if (reduction === 'batchmean' && input.shape.length === 0)
    fail('SHAPE', op, "reduction 'batchmean' needs at least one dimension, got []")
  return scope(() => {
    const probability = logTarget ? exp(target) : target
    // log 1 in place of log 0, so that a target of 0 has no loss, and no gradient that is not finite
    const logarithm = logTarget ? target : log(where(equal(target, 0), 1, target))
    const losses = mul(probability, sub(logarithm, input)) as Tensor<D>
    return reduction === 'batchmean' ? div(sum(losses), input.shape[0] || 1) : reduced(losses, reduction)
  })
}
