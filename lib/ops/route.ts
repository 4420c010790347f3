import { type Backward, newOrSum, record, releaseSaved, willRecord } from '../autograd/autograd.js'
import {
  currentBatchPart,
  defaultGenerator,
  Generator,
  type GeneratorState,
  restoringOnError,
} from '../autograd/random.js'
import { checkInteger, checkNumber, fail } from '../runtime/check.js'
import { deviceIndex } from '../runtime/device.js'
import { type DType, dtypeCode } from '../runtime/dtype.js'
import { show } from '../runtime/errors.js'
import { type Handle, native } from '../runtime/native.js'
import { pick } from '../runtime/options.js'
import { consumed, releaseAll, share } from '../tensor/handles.js'
import { checkTensor, handleOf, type Tensor } from '../tensor/tensor.js'
import { keepSlots, wantsSlots } from './plan.js'
import {
  balanceDensities,
  checkChoice,
  gateNormalizations,
  lossOptions,
  type PerToken,
  type RouteOptions,
  randomNames,
  randomOptions,
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
import { stridesOf } from './strided.js'

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

type RouteValues = ReturnType<typeof readRouteOptions>
type Sizes = Readonly<Record<PerToken['dims'][number] | 'C', number>>

function checkedSizes(op: string, x: Tensor, weight: Tensor, o: RouteValues): Sizes {
  const { B, N, E } = checkRouterInputs(op, x, weight)
  const K = checkInteger(op, 'topN', o.topN, 1, E)
  checkChoice(op, o, E, K)
  checkOneMask(op, o)
  const { dtype, device } = x
  if (o.expertBias !== undefined) checkTensor(op, 'expertBias', o.expertBias, { shape: [E], dtype, device })
  const C = checkInteger(op, 'capacity', o.capacity ?? expertCapacity(N, E, o.capacityFactor), 0, 2 ** 31 - 1)
  return { B, N, E, D: x.shape[2], K, C }
}

/** The options that the native code takes as they are. */
const { balanceDensity, gateNormalization, scoreFunction, secondPlaceProb, secondPlaceTemperature, ...asGiven } =
  topkOptions

/** The options of the router for the native code, which knows them by the same names; a word is its index. */
function settingsOf(o: RouteValues) {
  // A softmax of the K largest logits is the softmax of all, divided by the sum over the K.
  const normalization =
    o.scoreFunction === 'softmaxAfterTopk' && o.gateNormalization === 'none' ? 'topk' : o.gateNormalization
  return {
    training: o.training,
    ntlb: o.ntlb,
    importance: o.importance !== undefined,
    secondPolicy: secondPolicies.indexOf(o.ntlb ? 'all' : o.secondPolicy),
    secondPlaceProb: o.training ? o.secondPlaceProb : 0,
    secondPlaceTemperature: o.secondPlaceTemperature ?? -1,
    balanceDensity: balanceDensities.indexOf(o.balanceDensity),
    gateNormalization: gateNormalizations.indexOf(normalization),
    scoreFunction: scoreFunctions.indexOf(o.scoreFunction),
    ...pick(o, lossOptions, asGiven),
  }
}

type RandomHandles = Record<keyof typeof randomOptions, Handle | null>
const noRandom = Object.fromEntries(randomNames.map((name) => [name, null])) as RandomHandles

/** The caller's tensors as new handles, which are added to `own`: on the device of x, random numbers in its dtype. */
function ownInputs(op: string, x: Tensor, o: RouteValues, sizes: Sizes, own: Handle[]) {
  const { dtype, device } = x
  const { B, N, K } = sizes
  const held = <H extends Handle | null>(handle: H): H => {
    if (handle !== null) own.push(handle)
    return handle
  }
  const inDtype = (handle: Handle) => native.convert(handle, dtypeCode(dtype))
  const random: RandomHandles = { ...noRandom }
  for (const name of randomNames) {
    if (o[name] === undefined) continue
    const shape = randomOptions[name].dims.map((dim) => sizes[dim])
    random[name] = held(converted(op, name, o[name], shape, device, inDtype))
  }
  const mask = held(
    o.importance ? importanceHandle(op, o.importance, B, N, device) : maskHandle(op, o.mask, B, N, device),
  )
  const tokens = o.importance && mask !== null ? held(native.tokenMask({ x: mask })) : mask
  const threshold = held(thresholds(op, o.threshold, K, x))
  return { random, mask, tokens, threshold }
}

/** The numbers that are given, or seed and steps of those that are sampled. */
function sampled(generator: Generator, o: RouteValues, given: RandomHandles, partOf: PartOfSample | null) {
  const { seed } = generator
  const secondPlace = o.training && o.secondPlaceProb > 0
  const gumbel = o.noiseGates || o.sampleExperts || (secondPlace && o.secondPlaceTemperature !== undefined)
  const random = { ...given }
  const step = (name: keyof RandomHandles, needed: boolean) => {
    if (!needed || given[name]) return 0
    const { step } = generator.next()
    if (partOf) random[name] = partOf(name, { seed, step })
    return step
  }
  return {
    seed,
    gumbelStep: step('gumbelUniforms', gumbel),
    step: step('uniforms', true),
    secondPlaceStep: step('secondPlaceUniforms', secondPlace),
    ...random,
  }
}

/** Makes the numbers of a sample that are those of this part of the batch. */
type PartOfSample = (name: keyof RandomHandles, sample: GeneratorState) => Handle

/** For the sequences of x in a larger batch: the numbers that one process samples for all of them; null if these are all. */
function partOfSample(op: string, { device, dtype }: Tensor, sizes: Sizes, own: Handle[]): PartOfSample | null {
  const batch = currentBatchPart()
  if (!batch) return null
  return (name, sample) => {
    const { dims } = randomOptions[name]
    const shape = dims.map((dim) => sizes[dim])
    const whole = dims.map((dim) => sizes[dim] * (dim === 'B' ? batch.parts : 1))
    const numbers = { dtype: dtypeCode('f32'), device: deviceIndex(op, device), distribution: 0, a: 0, b: 1 }
    const all = native.random({ shape: whole, ...numbers, ...sample, firstBlock: 0 })
    const strides = stridesOf(whole)
    const first = strides[dims.indexOf('B')] * sizes.B * batch.part
    const part = consumed(all, () => native.stridedRead(all, shape, strides, first))
    const made = consumed(part, () => native.convert(part, dtypeCode(dtype)))
    own.push(made)
    return made
  }
}

type Saved = Record<string, Tensor | Handle | null>
type NamedBackward<S extends Saved> = (
  grads: Parameters<Backward>[0],
  saved: { [N in keyof S]: Handle | Extract<S[N], null> },
  needs: Parameters<Backward>[2],
  addend: Parameters<Backward>[3],
) => ReturnType<Backward>

/** For {@link record}: what a backward needs, saved and returned by name; null stays null. */
function savedByName<S extends Saved>(entries: S, backward: NamedBackward<S>) {
  const isSaved = Object.entries(entries).map(([name, value]): [string, boolean] => [name, value !== null])
  const saved = Object.values(entries).filter((value) => value !== null)
  return { saved, backward: named(isSaved, backward) }
}

/** Apart from {@link savedByName}, so that the closure holds no tensors: the tape keeps their handles. */
function named<S extends Saved>(isSaved: readonly [string, boolean][], backward: NamedBackward<S>): Backward {
  return (grads, saved, needs, addend) => {
    let next = 0
    const entries = isSaved.map(([name, there]) => [name, there ? saved[next++] : null])
    return backward(grads, Object.fromEntries(entries), needs, addend)
  }
}

/** The gradients of x and weight from those of the combine weights and the three losses. */
const backwardOf =
  (settings: ReturnType<typeof settingsOf>): NamedBackward<ReturnType<typeof forBackward>> =>
  ([dweight, dbalanceLoss, dzLoss, dtotalLoss], saved, [needX, needW], addendOf) => {
    const dxSum = needX && saved.mask === null ? addendOf(0, true) : null
    const asked = { dx: needX && dxSum === null, dw: needW, dxSum, ...settings }
    const { dx, dw } = native.routeBackward({ dweight, dbalanceLoss, dzLoss, dtotalLoss, ...saved, ...asked })
    return [newOrSum(dx, dxSum), dw]
  }

type Made = ReturnType<typeof native.route>

/** What the backward reads. */
const forBackward = (
  x: Tensor,
  w: Tensor,
  { expertIndex, kept, gate }: RouteResult,
  { probs, logits, lse, density, secondDensity }: Made,
  mask: Handle | null,
) => ({
  ...{ x, w, expertIndex, kept, gate, probs, logits, lse, density, secondDensity },
  mask: mask === null ? null : share(mask),
})

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
  return routeWith(x, weight, readRouteOptions('route', options))
}

/** {@link route} with options that {@link readRouteOptions} has checked. */
export function routeWith<D extends DType>(x: Tensor<D>, weight: Tensor, o: RouteValues): RouteResult<D> {
  const op = 'route'
  const sizes = checkedSizes(op, x, weight, o)
  const { B, N, E, K, C } = sizes
  const settings = settingsOf(o)
  const generator = o.generator ?? defaultGenerator
  if (!Generator.isGenerator(generator)) fail('OPTION', op, `generator must be a Generator, got ${show(generator)}`)
  const slots = wantsSlots(x.device, B, N, K, E, C)
  const own: Handle[] = []
  try {
    const { random, mask, tokens, threshold } = ownInputs(op, x, o, sizes, own)
    const made = restoringOnError(generator, () =>
      native.route({
        x: handleOf(x),
        w: handleOf(weight),
        threshold,
        expertBias: o.expertBias ? handleOf(o.expertBias) : null,
        mask,
        K,
        C,
        assignment: slots,
        rowOf: slots,
        secondDensity: o.useSecondPlaceLoss,
        ...sampled(generator, o, random, partOfSample(op, x, sizes, own)),
        ...settings,
      }),
    )
    const result = routeResult(x, made, { K, E, C, mask: tokens })
    if (made.assignment !== null && made.rowOf !== null) keepSlots(result, [made.assignment, made.rowOf])
    const saved = forBackward(x, weight, result, made, mask)
    if (willRecord(x, weight)) {
      record({
        op,
        inputs: [x, weight],
        outputs: [result.weight, result.balanceLoss, result.routerZLoss, result.totalAuxLoss],
        ...savedByName(saved, backwardOf(settings)),
      })
    } else {
      releaseSaved(Object.values(saved)) // without the entries by name, which cost as much as an op
    }
    return result
  } finally {
    releaseAll(own)
  }
}
