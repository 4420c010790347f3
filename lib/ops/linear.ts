import { newOrSum, record } from '../autograd/autograd.js'
import { checkOptions, fail, showShape } from '../runtime/check.js'
import { type ComputeDType, checkComputeDType, type DType, dtypeCode } from '../runtime/dtype.js'
import { native } from '../runtime/native.js'
import { checkFloat, checkTensor, checkWeight, handleOf, type Tensor, wrap } from '../tensor/tensor.js'

/** Options of {@link linear} and {@link groupedGemm}. */
export interface LinearOptions {
  /** 'bf16', 'bf16x3' or 'f16' rounds the operands of the GEMMs, forward and backward; sums stay f32. Default: the dtype of x. */
  computeDtype?: ComputeDType
}

/**
 * x [..., I] · weightᵀ + bias → [..., O], weight [O, I], bias [O]. f32 or f64; with x in f32 the weight may be bf16, f16 or int8.
 * Errors: SHAPE, DTYPE, DEVICE, OPTION.
 *
 * @example
 * ```ts
 * const y = linear(tensor([[1, 2]]), tensor([[1, 0], [0, 1], [1, 1]]), tensor([0, 0, 10]))
 * console.log(y.dataSync()) // → Float32Array(3) [ 1, 2, 13 ]
 * ```
 */
export function linear<D extends DType>(
  x: Tensor<D>,
  weight: Tensor,
  bias?: Tensor | null,
  options?: LinearOptions,
): Tensor<D> {
  const op = 'linear'
  checkFloat(op, 'x', x)
  checkTensor(op, 'weight', weight)
  const { computeDtype } = checkOptions<LinearOptions>(op, options, ['computeDtype'])
  const compute = dtypeCode(checkComputeDType(op, computeDtype, x.dtype))
  if (x.shape.length === 0) fail('SHAPE', op, 'x must have at least one dimension, got []')
  const I = x.shape[x.shape.length - 1]
  if (weight.shape.length !== 2 || weight.shape[1] !== I) {
    fail(
      'SHAPE',
      op,
      `x must be [..., ${weight.shape[1]}] for weight ${showShape(weight.shape)}, got ${showShape(x.shape)}`,
    )
  }
  const O = weight.shape[0]
  checkWeight(op, 'weight', weight, [O, I], x)
  if (bias) checkTensor(op, 'bias', bias, { shape: [O], ...meta(x) })
  const shape = [...x.shape.slice(0, -1), O]
  const y = native.linear({ x: handleOf(x), w: handleOf(weight), bias: bias ? handleOf(bias) : null, compute })
  const out = wrap(y, { shape, ...meta(x) })
  record({
    op,
    inputs: [x, weight, bias ?? null],
    outputs: [out],
    saved: [x, weight],
    backward: ([dy], [x, w], [needX, needW, needBias], addendOf) => {
      // Of q, k and v for example: the GEMM adds to the gradient that the input has already.
      const dxSum = needX ? addendOf(0, true) : null
      const wanted = { dx: needX && dxSum === null, dw: needW, dbias: needBias }
      const { dx, dw, dbias } = native.linearBackward({ dy: dy!, x, w, dxSum, compute, ...wanted })
      return [newOrSum(dx, dxSum), dw, dbias]
    },
  })
  return out
}

const meta = <D extends DType>({ dtype, device }: Tensor<D>) => ({ dtype, device })
