import { record } from '../autograd/autograd.js'
import { scope } from '../autograd/scope.js'
import { checkInteger, checkNumber, checkOptions, fail, showShape } from '../runtime/check.js'
import type { DType } from '../runtime/dtype.js'
import { within } from '../runtime/errors.js'
import { native } from '../runtime/native.js'
import { checkFloat, checkTensor, handleOf, type Tensor, wrap } from '../tensor/tensor.js'
import { div, maximum, mul, sub } from './binary.js'
import { to } from './cast.js'
import { equal, where } from './compare.js'
import { gather } from './gather.js'
import { checkReduction, type LossOptions, type Reduction } from './losses.js'
import { mean, sum } from './reduce.js'
import { squeeze, unsqueeze } from './reshape.js'
import { logSoftmax } from './softmax.js'
import { neg } from './unary.js'

/** Options of {@link crossEntropy}. */
export interface CrossEntropyOptions extends LossOptions {
  /** Rows with this target do not count; with reduction 'none' their loss is 0. Default −100. */
  ignoreIndex?: number
  /**
   * From 0 to 1: the share of the target's probability that all V classes have together (Szegedy et al., arXiv 1512.00567,
   * §7). Above 0, or with another reduction than 'mean', log-probabilities [..., V] are kept for the backward. Default 0.
   */
  labelSmoothing?: number
}

/**
 * −log softmax(logits)[target] in nats, by default the mean, shape []; as torch.nn.functional.cross_entropy, but the mean
 * of a batch in which every row is ignored is 0. logits [..., V] f32 or f64, targets [...] i32. Errors: SHAPE, DTYPE,
 * DEVICE; OPTION for a target outside of [0, V) that is not `ignoreIndex`.
 *
 * @example
 * ```ts
 * const loss = crossEntropy(zeros([3, 4]), tensor(Int32Array.of(0, 3, -100)))
 * console.log(loss.item().toFixed(4), Math.log(4).toFixed(4)) // → 1.3863 1.3863
 * ```
 */
export function crossEntropy<D extends DType>(
  logits: Tensor<D>,
  targets: Tensor,
  options?: CrossEntropyOptions,
): Tensor<D> {
  const op = 'crossEntropy'
  const known = ['ignoreIndex', 'labelSmoothing', 'reduction'] as const
  const { ignoreIndex = -100, labelSmoothing = 0, reduction } = checkOptions<CrossEntropyOptions>(op, options, known)
  checkInteger(op, 'ignoreIndex', ignoreIndex, -(2 ** 31), 2 ** 31 - 1)
  checkNumber(op, 'labelSmoothing', labelSmoothing, 0, 1)
  const how = checkReduction(op, reduction)
  checkFloat(op, 'logits', logits)
  checkTensor(op, 'targets', targets)
  if (targets.dtype !== 'i32')
    fail('DTYPE', op, `targets must be i32, got ${targets.dtype}; convert them with .to('i32')`)
  if (logits.shape.length === 0 || targets.shape.join() !== logits.shape.slice(0, -1).join()) {
    fail(
      'SHAPE',
      op,
      `targets must be ${showShape(logits.shape.slice(0, -1))} for logits ${showShape(logits.shape)}, got ${showShape(targets.shape)}`,
    )
  }
  if (labelSmoothing > 0 || how !== 'mean')
    return within(op, () => scope(() => composed(logits, targets, ignoreIndex, labelSmoothing, how)))
  const { loss, lse } = native.crossEntropy({ logits: handleOf(logits), target: handleOf(targets), ignoreIndex })
  const y = wrap(loss, { shape: [], dtype: logits.dtype, device: logits.device })
  record({
    op,
    inputs: [logits],
    outputs: [y],
    saved: [logits, targets, lse],
    backward: ([dloss], [logits, target, lse]) => [
      native.crossEntropyBackward({ dloss: dloss!, logits, lse, target, ignoreIndex }),
    ],
  })
  return y
}

function composed<D extends DType>(
  logits: Tensor<D>,
  targets: Tensor,
  ignoreIndex: number,
  smoothing: number,
  reduction: Reduction,
): Tensor<D> {
  const counts = sub(1, equal(targets, ignoreIndex))
  const logs = logSoftmax(logits)
  const index = mul(targets, counts) // 0 stands for an ignored target
  const loss = neg(squeeze(gather(logs, -1, unsqueeze(index, -1)), -1))
  const smooth = smoothing > 0 ? sub(mul(loss, 1 - smoothing), mul(mean(logs, -1), smoothing)) : loss
  const losses = where(counts, smooth, 0)
  if (reduction === 'none') return losses
  return reduction === 'sum' ? sum(losses) : div(sum(losses), maximum(sum(to(counts, logits.dtype)), 1))
}
