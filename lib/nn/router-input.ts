import { add, mul } from '../ops/binary.js'
import { greaterEqual } from '../ops/compare.js'
import { dropout } from '../ops/dropout.js'
import { reshape } from '../ops/reshape.js'
import { perToken } from '../ops/route-options.js'
import { checkRouterInputs } from '../ops/routing.js'
import { concat } from '../ops/strided.js'
import { fail } from '../runtime/check.js'
import type { DType } from '../runtime/dtype.js'
import { boolean, integer, type OptionsOf, optional, rate, type ValuesOf } from '../runtime/options.js'
import { ones, rand } from '../tensor/create.js'
import { checkTensor, type Tensor } from '../tensor/tensor.js'
import type { Linear } from './linear.js'

/** What a router sees of the tokens. */
export const routerInputOptions = {
  /** D', the width of the `routerInput` of a forward, which is then needed. Default: D, and x if there is none. */
  routerDim: optional(integer({ min: 1 })),
  /** A bias [E] of the logits (gpt-oss), uniform in ±1/√D at the start. Default false. */
  routerBias: boolean({ default: false }),
  /** ε in [0, 1): in training the router sees x ⊙ a, a uniform in [1 − ε, 1 + ε] (Switch Transformer, arXiv 2101.03961). Default 0. */
  routerJitter: rate(),
  /** In training the router sees x with {@link ops.dropout} of this probability. Default 0. */
  routerDropout: rate(),
}

export const inputRandomOptions = {
  /** [B, N, D] in [0, 1), of `routerJitter`: a = 1 − ε + 2ε u. */
  jitterUniforms: perToken('B', 'N', 'D'),
  /** [B, N, D] in [0, 1), of `routerDropout`: entries below p are dropped. */
  dropoutUniforms: perToken('B', 'N', 'D'),
}

/** Random numbers of the caller for what a router sees. */
export interface RouterInputRandom extends OptionsOf<typeof inputRandomOptions> {}

/**
 * What gives a router its logits: x, or `routerInput`, as it sees it, and its weight, with another column if there is a
 * bias.
 */
export function routerInputs<D extends DType>(
  op: string,
  x: Tensor<D>,
  { weight, bias }: Linear,
  options: ValuesOf<[typeof routerInputOptions]> & { training: boolean; routerInput: Tensor | undefined },
  random: RouterInputRandom,
): [Tensor<D>, Tensor] {
  const given = inputOf(op, x, options)
  const { B, N, E } = checkRouterInputs(op, given, weight)
  const { dtype, device } = given
  const seen = options.training ? disturbed(op, given, options, random) : given
  if (!bias) return [seen, weight]
  const one = ones([B, N, 1], { dtype, device }) as Tensor<D>
  return [concat([seen, one], 2), concat([weight, reshape(bias, [E, 1])], 1)]
}

function inputOf<D extends DType>(
  op: string,
  x: Tensor<D>,
  { routerInput, routerDim }: { routerInput: Tensor | undefined; routerDim: number | undefined },
): Tensor<D> {
  if (routerInput === undefined) {
    if (routerDim !== undefined) fail('OPTION', op, `routerInput is needed, since routerDim is ${routerDim}`)
    return x
  }
  const shape = [...x.shape.slice(0, 2), routerDim ?? x.shape[2]]
  return checkTensor(op, 'routerInput', routerInput, { shape, dtype: x.dtype, device: x.device }) as Tensor<D>
}

function disturbed<D extends DType>(
  op: string,
  x: Tensor<D>,
  { routerJitter: jitter, routerDropout: p }: ValuesOf<[typeof routerInputOptions]>,
  random: RouterInputRandom,
): Tensor<D> {
  const { shape, dtype, device } = x
  const given = (name: keyof RouterInputRandom): Tensor | undefined => {
    const value = random[name]
    if (value === undefined) return undefined
    checkTensor(op, name, value)
    return checkTensor(op, name, value, { shape, dtype: value.dtype, device: value.device }).to(device)
  }
  let seen = x
  if (jitter > 0) {
    const u = given('jitterUniforms')?.to(dtype) ?? rand(shape, { dtype: dtype as 'f32' | 'f64', device })
    seen = mul(seen, add(mul(u as Tensor<D>, 2 * jitter), 1 - jitter))
  } else if (random.jitterUniforms) fail('OPTION', op, 'jitterUniforms needs routerJitter')
  if (p > 0) {
    const u = given('dropoutUniforms')
    // In f64, in which u and p are what they are.
    seen = u ? mul(seen, mul(greaterEqual(u.to('f64'), p).to(dtype), 1 / (1 - p))) : dropout(seen, p)
  } else if (random.dropoutUniforms) fail('OPTION', op, 'dropoutUniforms needs routerDropout')
  return seen
}
