import { record } from '../autograd.js'
import { checkInteger, checkNumber, fail, showShape } from '../check.js'
import { type Device, deviceIndex } from '../device.js'
import { type DType, dtypeCode } from '../dtype.js'
import { show } from '../errors.js'
import { consumed, share } from '../handles.js'
import { type Handle, native } from '../native.js'
import { pick } from '../options.js'
import { defaultGenerator, drawnOrNot, Generator } from '../random.js'
import { checkFloat, checkTensor, handleOf, type Tensor, wrap } from '../tensor.js'
import { type RouteOptions, readRouteOptions, routerOptions } from './route-options.js'

/** Where each token goes. Letters as in the docs: B sequences, N tokens, E experts, K choices. */
export interface Routing<D extends DType = DType> {
  /** i32 of shape [B, N, K], the chosen experts, the most probable first. */
  expertIndex: Tensor<'i32'>
  /** Shape [B, N, K], probabilities of the chosen, normalised over the K choices, before dropping. */
  gate: Tensor<D>
  /** i32 of shape [B, N, K], 1 where routed and within capacity, else 0. */
  kept: Tensor<'i32'>
  /** i32 of shape [B, N, K], the slot in the expert, −1 where not kept. */
  position: Tensor<'i32'>
  /** Shape [B, N, K], combine weight gate · kept. Differentiable. */
  weight: Tensor<D>
  /** Slots of one expert for one sequence. */
  capacity: number
  /** E */
  numExperts: number
  /** i32 of shape [B, N], 1 for a token and 0 for padding; null without a mask. */
  mask: Tensor<'i32'> | null
}

/** A routing and the auxiliary losses, each of shape [], differentiable, and 0 unless training. */
export interface RouteResult<D extends DType = DType> extends Routing<D> {
  /**
   * (E / B) · Σ_b Σ_e f[b,e] · P[b,e] with P the mean probability of an expert and f its share of first choices
   * (Switch Transformer, arXiv 2101.03961, §2.2; ST-MoE, arXiv 2202.08906, appendix A). No gradient through f.
   */
  balanceLoss: Tensor<D>
  /** Mean of logsumexp(logits)², of the logits without noise (ST-MoE, arXiv 2202.08906, §3.3). */
  routerZLoss: Tensor<D>
  /** balanceLossCoef · balanceLoss + routerZLossCoef · routerZLoss. */
  totalAuxLoss: Tensor<D>
}

/**
 * C = max(min(N, trunc(N · factor / E)), 4), in double precision from left to right: slots of one expert for one
 * sequence of N tokens, as st-moe-pytorch and Mesh TensorFlow count them (not multiplied by K). Errors: OPTION.
 *
 * @example
 * ```ts
 * console.log(ops.expertCapacity(1024, 16, 1.25)) // → 80
 * ```
 */
export function expertCapacity(N: number, E: number, factor: number): number {
  const op = 'expertCapacity'
  checkInteger(op, 'N', N, 0)
  checkInteger(op, 'E', E, 1)
  checkNumber(op, 'factor', factor, 0)
  return Math.max(Math.min(N, Math.trunc((N * factor) / E)), 4)
}

/** A handle of its own. */
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

/** A handle of its own to an optional tensor, as `convert` gives it to the op. */
function converted(
  op: string,
  name: string,
  value: unknown,
  shape: readonly number[],
  device: Device,
  convert: (handle: Handle) => Handle,
): Handle | null {
  if (value === undefined || value === null) return null
  const tensor = checkTensor(op, name, value)
  checkTensor(op, name, tensor, { shape, dtype: tensor.dtype, device: tensor.device })
  const own = convert(handleOf(tensor))
  return tensor.device === device ? own : consumed(own, () => native.toDevice(own, deviceIndex(op, device)))
}

/**
 * Top-k routing with capacity: x [B, N, D], router weight [E, D] → routing and losses, f32 or f64. The steps are those of
 * docs/semantics.md: logits, Gumbel noise, softmax, the K largest, normalised gates, stochastic thresholds for the
 * choices after the first (the random routing of GShard, arXiv 2006.16668, §2.2), slots in order of choice then token.
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
  checkFloat(op, 'x', x)
  checkTensor(op, 'weight', weight)
  if (x.shape.length !== 3) fail('SHAPE', op, `x must be [B, N, D], got ${showShape(x.shape)}`)
  const [B, N, D] = x.shape
  const { dtype, device } = x
  const E = weight.shape[0] ?? 0
  checkTensor(op, 'weight', weight, { shape: [E, D], dtype, device })
  if (E === 0) fail('SHAPE', op, `weight must have at least one expert, got ${showShape(weight.shape)}`)
  const K = checkInteger(op, 'topN', o.topN, 1, E)
  const C = checkInteger(op, 'capacity', o.capacity ?? expertCapacity(N, E, o.capacityFactor), 0, 2 ** 31 - 1)
  const noisy = o.noiseGates
  const settings = {
    noisy,
    balanceCoef: o.balanceLossCoef,
    zCoef: o.routerZLossCoef,
    densityAssigned: o.balanceDensity === 'assigned',
    training: o.training,
    ...pick(o, routerOptions),
  }
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
    const mask = held(converted(op, 'mask', o.mask, [B, N], device, (handle) => native.tokenMask({ x: handle })))
    const threshold = held(thresholds(op, o.threshold, K, x))!
    const made = drawnOrNot(generator, () => {
      const gumbelDraw = noisy && !gumbelUniforms ? generator.next() : { seed: generator.seed, step: 0 }
      const draw = uniforms ? { seed: gumbelDraw.seed, step: 0 } : generator.next()
      return native.route({
        x: handleOf(x),
        w: handleOf(weight),
        threshold,
        uniforms,
        gumbelUniforms,
        mask,
        K,
        C,
        seed: draw.seed,
        step: draw.step,
        gumbelStep: gumbelDraw.step,
        ...settings,
      })
    })
    const i32 = { shape: [B, N, K], dtype: 'i32', device } as const
    const choices = { shape: [B, N, K], dtype, device }
    const scalar = { shape: [], dtype, device }
    const result = {
      expertIndex: wrap(made.expertIndex, i32),
      gate: wrap(made.gate, choices),
      kept: wrap(made.kept, i32),
      position: wrap(made.position, i32),
      weight: wrap(made.weight, choices),
      capacity: C,
      numExperts: E,
      mask: mask === null ? null : wrap(share(mask), { shape: [B, N], dtype: 'i32', device }),
      balanceLoss: wrap(made.balanceLoss, scalar),
      routerZLoss: wrap(made.zLoss, scalar),
      totalAuxLoss: wrap(made.totalLoss, scalar),
    }
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
        ...(result.mask ? [result.mask] : []),
      ],
      backward: (
        [dweight, dbalance, dz, dtotal],
        [x, w, expertIndex, kept, gate, probs, logits, lse, density, mask = null],
        [needX, needW],
      ) => {
        const saved = { x, w, mask, expertIndex, kept, gate, probs, logits, lse, density }
        const asked = { dx: needX, dw: needW, ...settings }
        const { dx, dw } = native.routeBackward({ dweight, dbalance, dz, dtotal, ...saved, ...asked })
        return [dx, dw]
      },
    })
    return result
  } finally {
    for (const handle of own) native.release(handle)
  }
}
