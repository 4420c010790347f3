import { newOrSum, record } from '../autograd/autograd.js'
import { defaultGenerator, Generator, restoringOnError } from '../autograd/random.js'
import { checkInteger, checkNumber, fail } from '../runtime/check.js'
import { deviceIndex } from '../runtime/device.js'
import { type DType, dtypeCode } from '../runtime/dtype.js'
import { show } from '../runtime/errors.js'
import { type Handle, native } from '../runtime/native.js'
import { pick } from '../runtime/options.js'
import { share } from '../tensor/handles.js'
import { checkTensor, handleOf, type Tensor } from '../tensor/tensor.js'
import { keepSlots, wantsSlots } from './plan.js'
import {
  checkChoice,
  gateNormalizations,
  type RouteOptions,
  readRouteOptions,
  scoreFunctions,
  secondPolicies,
  topkOptions,
} from './route-options.js'
import {
  checkOneMask,
  checkRouterInputs,
  converted,
  expertCapacity,
  importanceHandle,
  maskHandle,
  type RouteResult,
  routeResult,
} from './routing.js'

/** A new handle. */
function thresholds(op: string, value: unknown, K: number, like: Tensor): Handle {
  if (typeof value === 'number') {
    return native.full({
      shape: [K],
      dtype: dtypeCode('f32'),
      device: deviceIndex(op, like.device),
      value: checkNumber(op, 'threshold', value),
    })
  }
  return share(handleOf(checkTensor(op, 'threshold', value, { shape: [K], dtype: 'f32', device: like.device })))
}

/**
 * Top-k routing with capacity: x [B, N, D], router weight [E, D] → routing and losses, f32 or f64. The steps are those of
 * docs/semantics.md: logits, Gumbel noise, scores, the K largest, normalised gates, stochastic thresholds for the
 * second and later experts (the random routing of GShard, arXiv 2006.16668, §2.2), slots in order of rank (top-1 first), then token.
 *
 * The gradient flows to x and weight from `weight` and the losses. Errors: SHAPE, DTYPE, DEVICE, OPTION; NON_FINITE for a
 * NaN in `mask`, on a GPU by the next operation that waits for it.
 *
 * @example
 * ```ts
 * const { expertIndex, kept, totalAuxLoss } = ops.route(randn([2, 16, 32]), randn([4, 32]), { topN: 2 })
 * console.log(expertIndex.shape, kept.dtype, totalAuxLoss.shape) // → [ 2, 16, 2 ] i32 []
 * ```
 */
export function route<D extends DType>(x: Tensor<D>, weight: Tensor, options?: RouteOptions): RouteResult<D> {
  const op = 'route'
  const o = readRouteOptions(op, options)
  const { B, N, E } = checkRouterInputs(op, x, weight)
  const { dtype, device } = x
  const K = checkInteger(op, 'topN', o.topN, 1, E)
  checkChoice(op, o, E, K)
  checkOneMask(op, o)
  if (o.expertBias !== undefined) checkTensor(op, 'expertBias', o.expertBias, { shape: [E], dtype, device })
  // A softmax of the K largest logits is the softmax of all, divided by the sum over the K.
  const gateNormalization =
    o.scoreFunction === 'softmaxAfterTopk' && o.gateNormalization === 'none' ? 'topk' : o.gateNormalization
  const C = checkInteger(op, 'capacity', o.capacity ?? expertCapacity(N, E, o.capacityFactor), 0, 2 ** 31 - 1)
  const secondPlaceProb = o.training ? o.secondPlaceProb : 0
  const settings = {
    noisy: o.noiseGates,
    importance: o.importance !== undefined,
    balanceCoef: o.balanceLossCoef,
    zCoef: o.routerZLossCoef,
    densityAssigned: o.balanceDensity === 'assigned',
    training: o.training,
    ...pick(o, topkOptions),
    gateNormalization: gateNormalizations.indexOf(gateNormalization),
    scoreFunction: scoreFunctions.indexOf(o.scoreFunction),
    groups: o.routingGroups,
  }
  const choice = {
    samples: o.sampleExperts,
    temperature: o.routerTemperature,
    secondPlaceProb,
    secondPlaceTemperature: o.secondPlaceTemperature ?? -1,
    secondPolicy: secondPolicies.indexOf(o.ntlb ? 'all' : o.secondPolicy),
    prioritized: o.batchPrioritized,
    ntlb: o.ntlb,
    secondDensity: o.useSecondPlaceLoss,
  }
  const slots = wantsSlots(device, B, N, K, E, C)
  const drawsGumbel = o.noiseGates || o.sampleExperts || (secondPlaceProb > 0 && o.secondPlaceTemperature !== undefined)
  const generator = o.generator ?? defaultGenerator
  if (!Generator.isGenerator(generator)) fail('OPTION', op, `generator must be a Generator, got ${show(generator)}`)
  const own: Handle[] = []
  const held = (handle: Handle | null): Handle | null => {
    if (handle !== null) own.push(handle)
    return handle
  }
  try {
    const inDtype = (handle: Handle) => native.convert(handle, dtypeCode(dtype))
    const uniforms = held(converted(op, 'uniforms', o.uniforms, [K, B, N], device, inDtype))
    const gumbelUniforms = held(converted(op, 'gumbelUniforms', o.gumbelUniforms, [B, N, E], device, inDtype))
    const secondPlaceUniforms = held(
      converted(op, 'secondPlaceUniforms', o.secondPlaceUniforms, [B, N], device, inDtype),
    )
    const mask = held(
      o.importance ? importanceHandle(op, o.importance, B, N, device) : maskHandle(op, o.mask, B, N, device),
    )
    const tokens = o.importance && mask !== null ? held(native.tokenMask({ x: mask })) : mask
    const threshold = held(thresholds(op, o.threshold, K, x))!
    const made = restoringOnError(generator, () => {
      const { seed } = generator
      const step = (drawn: boolean) => (drawn ? generator.next().step : 0)
      const gumbelStep = step(drawsGumbel && !gumbelUniforms)
      return native.route({
        x: handleOf(x),
        w: handleOf(weight),
        threshold,
        uniforms,
        gumbelUniforms,
        secondPlaceUniforms,
        expertBias: o.expertBias ? handleOf(o.expertBias) : null,
        mask,
        K,
        C,
        seed,
        gumbelStep,
        step: step(!uniforms),
        secondPlaceStep: step(secondPlaceProb > 0 && !secondPlaceUniforms),
        assignment: slots,
        rowOf: slots,
        ...settings,
        ...choice,
      })
    })
    const result = routeResult(x, made, { K, E, C, mask: tokens })
    if (made.assignment !== null && made.rowOf !== null) keepSlots(result, [made.assignment, made.rowOf])
    record({
      op,
      inputs: [x, weight],
      outputs: [result.weight, result.balanceLoss, result.routerZLoss, result.totalAuxLoss],
      saved: [
        x,
        weight,
        result.expertIndex,
        result.kept,
        result.gate,
        made.probs,
        made.logits,
        made.lse,
        made.density,
        ...(made.secondDensity === null ? [] : [made.secondDensity]),
        ...(mask === null ? [] : [share(mask)]),
      ],
      backward: (
        [dweight, dbalanceLoss, dzLoss, dtotalLoss],
        [x, w, expertIndex, kept, gate, probs, logits, lse, density, ...optional],
        [needX, needW],
        addendOf,
      ) => {
        const [secondDensity = null, mask = null] = o.useSecondPlaceLoss ? optional : [null, ...optional]
        const saved = { x, w, expertIndex, kept, gate, probs, logits, lse, density, secondDensity, mask }
        const dxSum = needX && mask === null ? addendOf(0, true) : null
        const asked = { dx: needX && dxSum === null, dw: needW, dxSum, ...settings }
        const { dx, dw } = native.routeBackward({ dweight, dbalanceLoss, dzLoss, dtotalLoss, ...saved, ...asked })
        return [newOrSum(dx, dxSum), dw]
      },
    })
    return result
  } finally {
    for (const handle of own) native.release(handle)
  }
}
