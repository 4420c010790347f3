import { record, share } from '../autograd.js'
import { checkBoolean, checkInteger, checkNumber, checkOneOf, checkOptions, fail, showShape } from '../check.js'
import { type Device, deviceIndex } from '../device.js'
import { type DType, dtypeCode } from '../dtype.js'
import { type Handle, native } from '../native.js'
import { defaultGenerator, Generator } from '../random.js'
import { checkFloat, checkTensor, handleOf, type Tensor, wrap } from '../tensor.js'

/** Where each token goes. Letters as in the docs: B sequences, N tokens, E experts, K choices. */
export interface Routing {
  /** i32 of shape [B, N, K], the chosen experts, the most probable first. */
  expertIndex: Tensor
  /** Shape [B, N, K], probabilities of the chosen, normalised over the K choices, before dropping. */
  gate: Tensor
  /** i32 of shape [B, N, K], 1 where routed and within capacity, else 0. */
  kept: Tensor
  /** i32 of shape [B, N, K], the slot in the expert, −1 where not kept. */
  position: Tensor
  /** Shape [B, N, K], combine weight gate · kept. Differentiable. */
  weight: Tensor
  /** Slots of one expert for one sequence. */
  capacity: number
  numExperts: number
}

export interface RouteResult extends Routing {
  /** [], 0 unless training. Differentiable, like the two others. */
  balanceLoss: Tensor
  routerZLoss: Tensor
  totalAuxLoss: Tensor
}

export interface RouteOptions {
  /** K, choices a token. Default 2. */
  topN?: number
  /** C. Default: that of {@link expertCapacity} for `capacityFactor`. */
  capacity?: number
  /** Default 1.25. */
  capacityFactor?: number
  /** f32 [K], first entry not used; or a number for every choice after the first. Default 0.2. */
  threshold?: Tensor | number
  noiseGates?: boolean
  noiseMult?: number
  differentiableTopk?: boolean
  /** Losses are computed. Default true. */
  training?: boolean
  balanceLossCoef?: number
  routerZLossCoef?: number
  /** 'kept': first choices that found a slot count (st-moe-pytorch); 'assigned': all (Mesh TensorFlow, ST-MoE paper). */
  balanceDensity?: 'kept' | 'assigned'
  eps?: number
  /** [K, B, N] in [0, 1) instead of drawn numbers; row 0 is not used. */
  uniforms?: Tensor
  /** [B, N, E] in [0, 1), with noise. */
  gumbelUniforms?: Tensor
  /** [B, N], 0 for padding: not routed, takes no slot, counts in no loss. */
  mask?: Tensor
  generator?: Generator
}

const names = [
  'topN',
  'capacity',
  'capacityFactor',
  'threshold',
  'noiseGates',
  'noiseMult',
  'differentiableTopk',
  'training',
  'balanceLossCoef',
  'routerZLossCoef',
  'balanceDensity',
  'eps',
  'uniforms',
  'gumbelUniforms',
  'mask',
  'generator',
] as const

/** C = max(min(N, trunc(N · factor / E)), 4), in double precision from left to right. */
export function expertCapacity(N: number, E: number, factor: number): number {
  const op = 'expertCapacity'
  checkInteger(op, 'N', N, 0)
  checkInteger(op, 'E', E, 1)
  checkNumber(op, 'factor', factor, 0)
  return Math.max(Math.min(N, Math.trunc((N * factor) / E)), 4)
}

/** A handle of its own. */
function thresholds(op: string, value: unknown, K: number, like: Tensor): Handle {
  if (typeof value === 'number' || value === undefined) {
    return native.full([K], dtypeCode('f32'), deviceIndex(op, like.device), checkNumber(op, 'threshold', value ?? 0.2))
  }
  return share(handleOf(checkTensor(op, 'threshold', value, { shape: [K], dtype: 'f32', device: like.device })))
}

/** A handle of its own to an optional tensor, in the dtype that the op reads. */
function converted(
  op: string,
  name: string,
  value: unknown,
  shape: readonly number[],
  dtype: DType,
  device: Device,
): Handle | null {
  if (value === undefined || value === null) return null
  const tensor = checkTensor(op, name, value)
  checkTensor(op, name, tensor, { shape, dtype: tensor.dtype, device: tensor.device })
  const own = native.convert(handleOf(tensor), dtypeCode(dtype))
  if (tensor.device === device) return own
  try {
    return native.toDevice(own, deviceIndex(op, device))
  } finally {
    native.release(own)
  }
}

/**
 * Top-k routing with capacity: x [B, N, D], router weight [E, D] → routing and losses. The steps are those of
 * docs/semantics.md: logits, Gumbel noise, softmax, the K largest, normalised gates, stochastic thresholds for the
 * choices after the first, slots in order of choice then token. f32 or f64.
 */
export function route(x: Tensor, weight: Tensor, options?: RouteOptions): RouteResult {
  const op = 'route'
  const o = checkOptions<RouteOptions>(op, options, names)
  checkFloat(op, 'x', x)
  checkTensor(op, 'weight', weight)
  if (x.shape.length !== 3) fail('SHAPE', op, `x must be [B, N, D], got ${showShape(x.shape)}`)
  const [B, N, D] = x.shape
  const { dtype, device } = x
  const E = weight.shape[0] ?? 0
  checkTensor(op, 'weight', weight, { shape: [E, D], dtype, device })
  if (E === 0) fail('SHAPE', op, `weight must have at least one expert, got ${showShape(weight.shape)}`)
  const K = checkInteger(op, 'topN', o.topN ?? 2, 1, E)
  const C = checkInteger(
    op,
    'capacity',
    o.capacity ?? expertCapacity(N, E, checkNumber(op, 'capacityFactor', o.capacityFactor ?? 1.25, 0)),
    0,
    2 ** 31 - 1,
  )
  const noisy = checkBoolean(op, 'noiseGates', o.noiseGates ?? false)
  const differentiableTopk = checkBoolean(op, 'differentiableTopk', o.differentiableTopk ?? false)
  const training = checkBoolean(op, 'training', o.training ?? true)
  const assigned = checkOneOf(op, 'balanceDensity', o.balanceDensity ?? 'kept', ['kept', 'assigned']) === 'assigned'
  const noiseMult = checkNumber(op, 'noiseMult', o.noiseMult ?? 1)
  const balanceLossCoef = checkNumber(op, 'balanceLossCoef', o.balanceLossCoef ?? 1e-2)
  const routerZLossCoef = checkNumber(op, 'routerZLossCoef', o.routerZLossCoef ?? 1e-3)
  const eps = checkNumber(op, 'eps', o.eps ?? 1e-9, 0)
  const generator = o.generator ?? defaultGenerator
  if (!Generator.isGenerator(generator)) fail('OPTION', op, 'generator must be a Generator')
  const own: Handle[] = []
  const held = (handle: Handle | null): Handle | null => {
    if (handle !== null) own.push(handle)
    return handle
  }
  try {
    const uniforms = held(converted(op, 'uniforms', o.uniforms, [K, B, N], dtype, device))
    const gumbelUniforms = held(converted(op, 'gumbelUniforms', o.gumbelUniforms, [B, N, E], dtype, device))
    const mask = held(converted(op, 'mask', o.mask, [B, N], 'i32', device))
    const threshold = held(thresholds(op, o.threshold, K, x))!
    const gumbelDraw = noisy && !gumbelUniforms ? generator.next() : { seed: generator.seed, step: 0 }
    const draw = uniforms ? { seed: gumbelDraw.seed, step: 0 } : generator.next()

    const handles = native.route(
      handleOf(x),
      handleOf(weight),
      threshold,
      uniforms,
      gumbelUniforms,
      mask,
      K,
      C,
      draw.seed,
      draw.step,
      gumbelDraw.step,
      noiseMult,
      eps,
      balanceLossCoef,
      routerZLossCoef,
      noisy,
      training,
      differentiableTopk,
      assigned,
    )
    const [expertIndexH, keptH, positionH, gateH, weightH, balanceH, zH, totalH, probs, logits, lse, density] = handles
    const i32 = { shape: [B, N, K], dtype: 'i32', device } as const
    const choices = { shape: [B, N, K], dtype, device }
    const scalar = { shape: [], dtype, device }
    const result = {
      expertIndex: wrap(expertIndexH, i32),
      gate: wrap(gateH, choices),
      kept: wrap(keptH, i32),
      position: wrap(positionH, i32),
      weight: wrap(weightH, choices),
      capacity: C,
      numExperts: E,
      balanceLoss: wrap(balanceH, scalar),
      routerZLoss: wrap(zH, scalar),
      totalAuxLoss: wrap(totalH, scalar),
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
        probs,
        logits,
        lse,
        density,
        ...(mask === null ? [] : [share(mask)]),
      ],
      backward: ([dweight, dbalance, dz, dtotal], [xv, w, index, kept, gate, s, l, logSum, f, maskv], [needX, needW]) =>
        native.routeBackward(
          dweight,
          dbalance,
          dz,
          dtotal,
          xv,
          w,
          maskv ?? null,
          index,
          kept,
          gate,
          s,
          l,
          logSum,
          f,
          eps,
          balanceLossCoef,
          routerZLossCoef,
          noisy,
          training,
          differentiableTopk,
          needX,
          needW,
        ),
    })
    return result
  } finally {
    for (const handle of own) native.release(handle)
  }
}
