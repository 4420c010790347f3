import { record } from '../autograd.js'
import { checkInteger, checkOptions, fail, showShape } from '../check.js'
import { native } from '../native.js'
import { checkFloat, checkTensor, handleOf, type Tensor, wrap } from '../tensor.js'
import { reshaped, rowsOf, withViews } from './rows.js'

/**
 * Mean of −log softmax(logits)[target] in nats, shape []. logits [..., V], targets [...] (i32, in [0, V) or
 * `ignoreIndex`, default −100, whose rows do not count; else OPTION). A batch in which every row is ignored gives 0.
 */
export function crossEntropy(logits: Tensor, targets: Tensor, options?: { ignoreIndex?: number }): Tensor {
  const op = 'crossEntropy'
  const { ignoreIndex = -100 } = checkOptions<{ ignoreIndex: number }>(op, options, ['ignoreIndex'])
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
  const rows = rowsOf(logits.shape)
  const [loss, lse] = withViews([handleOf(logits), handleOf(targets)], [rows, [rows[0]]], ([lv, tv]) =>
    native.crossEntropy(lv, tv, ignoreIndex),
  )
  const y = wrap(loss, { shape: [], dtype: logits.dtype, device: logits.device })
  const { shape } = logits
  record({
    op,
    inputs: [logits],
    outputs: [y],
    saved: [logits, targets, lse],
    backward: ([dloss], [lv, tv, lsev]) =>
      withViews([lv, tv], [rows, [rows[0]]], ([l, t]) => [
        reshaped(native.crossEntropyBackward(dloss!, l, lsev, t, ignoreIndex), shape),
      ]),
  })
  return y
}
