import { refuseToWait } from '../autograd/context.js'
import { noGrad, scope } from '../autograd/scope.js'
import { fail } from '../runtime/check.js'
import { checkDType, type WeightFormat, weightFormats } from '../runtime/dtype.js'
import { norm } from '../tensor/norm.js'
import { checkTensor, handleOf, type Tensor } from '../tensor/tensor.js'
import { sub } from './binary.js'
import { clone, to } from './cast.js'

/** What {@link quantize} returns. */
export interface Quantized<F extends WeightFormat = WeightFormat> {
  /** The weights in the format, without history. */
  tensor: Tensor<F>
  /** ‖w − stored‖ / ‖w‖: 0 for weights that are all 0, NaN if one is not finite or too large for the format. */
  error: number
}

/**
 * Weights w [..., rows, columns] in a format that {@link ops.linear}, {@link ops.groupedGemm} and {@link ops.expertFfn} take
 * beside an x in f32, and the error of that. 'int8': 32 elements of a row, at its end fewer, are integers from −127 to 127
 * times a scale in f16; of a few scales it takes the one with the least squared error. Weights that are such numbers already
 * stay as they are, if the largest of each block is at least 0.008. A block with an element that is not finite, or above
 * 8e6, becomes NaN, and one with elements below 3.7e-6 alone 0. Waits for a GPU.
 *
 * Errors: DTYPE for w in i32 or another format; SHAPE for [] in int8; UNSUPPORTED in a captured step or an asynchronous
 * call.
 *
 * @example
 * ```ts
 * const layer = new Linear(64, 32)
 * const { tensor: weight, error } = quantize(layer.weight, 'int8')
 * console.log(weight.dtype, error < 0.006, ops.linear(ones([1, 64]), weight, layer.bias).shape) // → int8 true [ 1, 32 ]
 * ```
 */
export function quantize<F extends WeightFormat>(w: Tensor, format: F): Quantized<F> {
  const op = 'quantize'
  const { dtype } = checkTensor(op, 'w', w)
  if (dtype === 'i32') fail('DTYPE', op, `w must be a floating-point tensor, got ${dtype}`)
  checkDType(op, format, weightFormats)
  refuseToWait(op)
  return noGrad(() =>
    scope(() => {
      const stored = (dtype === format ? clone(w) : to(w, format)) as Tensor<F>
      const wide = dtype === 'f64' ? dtype : 'f32'
      const exact = to(w, wide)
      const [whole, lost] = [exact, sub(exact, to(stored, wide))].map((x) => norm([[handleOf(x)]]))
      return { tensor: stored, error: lost === 0 ? 0 : lost / whole }
    }),
  )
}
