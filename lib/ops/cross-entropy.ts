import { record } from '../autograd.js'
import { checkInteger, checkOptions, fail, showShape } from '../check.js'
import type { DType } from '../dtype.js'
import { native } from '../native.js'
import { checkFloat, checkTensor, handleOf, type Tensor, wrap } from '../tensor.js'

/** Options of {@link crossEntropy}. */
export interface CrossEntropyOptions {
  /** Rows with this target do not count. Default −100. */
  ignoreIndex?: number
}

/**
 * Mean of −log softmax(logits)[target] in nats, shape []; as torch.nn.functional.cross_entropy, but a batch in which
 * every row is ignored returns 0. logits [..., V] f32 or f64, targets [...] i32. Errors: SHAPE, DTYPE, DEVICE; OPTION for a
 * target outside of [0, V) that is not `ignoreIndex`.
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
  const { ignoreIndex = -100 } = checkOptions<CrossEntropyOptions>(op, options, ['ignoreIndex'])
  checkInteger(op, 'ignoreIndex', ignoreIndex, -(2 ** 31), 2 ** 31 - 1)
  checkFloat(op, 'logits', logits)
  checkTensor(op, 'targets', targets)
  if (targets.dtype !== 'i32') fail('DTYPE', op, `targets must be i32, got ${targets.dtype}`)
  if (logits.shape.length === 0 || targets.shape.join() !== logits.shape.slice(0, -1).join()) {
    fail(
      'SHAPE',
      op,
      `targets must be ${showShape(logits.shape.slice(0, -1))} for logits ${showShape(logits.shape)}, got ${showShape(targets.shape)}`,
    )
  }
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
