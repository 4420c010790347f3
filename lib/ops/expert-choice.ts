import { newOrSum, record } from '../autograd/autograd.js'
import { checkInteger } from '../runtime/check.js'
import type { DType } from '../runtime/dtype.js'
import { native } from '../runtime/native.js'
import { pick } from '../runtime/options.js'
import { releaseAll } from '../tensor/handles.js'
import { handleOf, type Tensor } from '../tensor/tensor.js'
import { type ExpertChoiceOptions, lossOptions, readExpertChoiceOptions } from './route-options.js'
import { checkRouterInputs, expertCapacity, maskHandle, type RouteResult, routeResult } from './routing.js'

/**
 * Expert choice (Zhou et al., arXiv 2202.09368, and Mesh TensorFlow): each expert takes the C tokens of its highest
 * scores in each sequence, so loads are even and a token may have any number of experts, or none. x [B, N, D], router
 * weight [E, D] → routing and losses, f32 or f64. K = E: assignment e of a token is to expert e, `gate` its score s, `position`
 * its rank among the tokens that the expert took (ties: token order). A token's routing depends on later tokens.
 *
 * `balanceLoss` is N · mean over sequences and tokens of (mean_e s)² · (number of unmasked tokens), 0 over 'experts'. The
 * gradient flows to x and weight from `weight` and the losses. Errors: SHAPE, DTYPE, DEVICE, OPTION; NON_FINITE as in
 * {@link route}.
 *
 * @example
 * ```ts
 * const { weight, kept } = ops.expertChoice(randn([2, 16, 32]), randn([4, 32]), { capacity: 5 })
 * console.log(weight.shape, kept.to('f32').sum().item()) // → [ 2, 16, 4 ] 40
 * ```
 */
export function expertChoice<D extends DType>(
  x: Tensor<D>,
  weight: Tensor,
  options?: ExpertChoiceOptions,
): RouteResult<D> {
  const op = 'expertChoice'
  const o = readExpertChoiceOptions(op, options)
  const { B, N, E } = checkRouterInputs(op, x, weight)
  const C = checkInteger(op, 'capacity', o.capacity ?? expertCapacity(N, E, o.capacityFactor), 0, 2 ** 31 - 1)
  const settings = {
    overExperts: o.expertChoiceOver === 'experts',
    training: o.training,
    ...pick(o, lossOptions),
  }
  const ownMask = maskHandle(op, o.mask, B, N, x.device)
  try {
    const made = native.expertChoice({ x: handleOf(x), w: handleOf(weight), mask: ownMask, C, ...settings })
    const result = routeResult(x, made, { K: E, E, C, mask: ownMask })
    record({
      op,
      inputs: [x, weight],
      outputs: [result.weight, result.balanceLoss, result.routerZLoss, result.totalAuxLoss],
      saved: [x, weight, result.kept, result.gate, made.logits, made.lse, ...(result.mask ? [result.mask] : [])],
      backward: (
        [dweight, dbalanceLoss, dzLoss, dtotalLoss],
        [x, w, kept, gate, logits, lse, mask = null],
        [needX, needW],
        addendOf,
      ) => {
        const dxSum = needX && mask === null ? addendOf(0, true) : null
        const asked = { dx: needX && dxSum === null, dw: needW, dxSum, ...settings }
        const saved = { x, w, mask, kept, gate, logits, lse }
        const { dx, dw } = native.expertChoiceBackward({
          dweight,
          dbalanceLoss,
          dzLoss,
          dtotalLoss,
          ...saved,
          ...asked,
        })
        return [newOrSum(dx, dxSum), dw]
      },
    })
    return result
  } finally {
    releaseAll([ownMask])
  }
}
