import { record } from '../autograd/autograd.js'
import { checkOptions, fail, showShape } from '../runtime/check.js'
import { checkComputeDType, type DType, dtypeCode } from '../runtime/dtype.js'
import { native } from '../runtime/native.js'
import { checkFloat, checkTensor, checkWeight, handleOf, type Tensor, wrap } from '../tensor/tensor.js'
import type { LinearOptions } from './linear.js'

/**
 * One GEMM per group of rows: x [R, I], weight [G, O, I], groupSizes [G] (i32, not negative, sum R) → [R, O];
 * the rows of group g, which follow each other, are multiplied by weight[g]ᵀ. f32 or f64; with x in f32 the weight may be bf16, f16 or int8. On CUDA, sizes that came from
 * the host use the grouped GEMM of cuBLAS; sizes computed on the GPU use a simpler kernel, without a wait.
 * Errors: SHAPE, DTYPE, DEVICE, OPTION.
 *
 * @example
 * ```ts
 * const sizes = tensor(Int32Array.of(3, 0, 2))
 * console.log(ops.groupedGemm(randn([5, 8]), randn([3, 4, 8]), sizes).shape) // → [ 5, 4 ]
 * ```
 */
export function groupedGemm<D extends DType>(
  x: Tensor<D>,
  weight: Tensor,
  groupSizes: Tensor,
  options?: LinearOptions,
): Tensor<D> {
  const op = 'groupedGemm'
  checkFloat(op, 'x', x)
  const { computeDtype } = checkOptions<LinearOptions>(op, options, ['computeDtype'])
  const compute = dtypeCode(checkComputeDType(op, computeDtype, x.dtype))
  checkTensor(op, 'weight', weight)
  checkTensor(op, 'groupSizes', groupSizes)
  if (x.shape.length !== 2) fail('SHAPE', op, `x must be [R, I], got ${showShape(x.shape)}`)
  const [R, I] = x.shape
  const [G, O] = weight.shape
  if (weight.shape.length !== 3 || weight.shape[2] !== I)
    fail('SHAPE', op, `weight must be [G, O, ${I}], got ${showShape(weight.shape)}`)
  checkWeight(op, 'weight', weight, weight.shape, x)
  checkTensor(op, 'groupSizes', groupSizes, { shape: [G], dtype: 'i32', device: x.device })
  const made = native.groupedGemm({ x: handleOf(x), w: handleOf(weight), groupSizes: handleOf(groupSizes), compute })
  const y = wrap(made, { shape: [R, O], dtype: x.dtype, device: x.device })
  record({
    op,
    inputs: [x, weight],
    outputs: [y],
    saved: [x, weight, groupSizes],
    backward: ([dy], [x, w, groupSizes], [needX, needW]) => {
      const { dx, dw } = native.groupedGemmBackward({ dy: dy!, x, w, groupSizes, compute, dx: needX, dw: needW })
      return [dx, dw]
    },
  })
  return y
}
