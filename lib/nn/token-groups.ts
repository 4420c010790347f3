import { reshape } from '../ops/reshape.js'
import { type PerToken, randomOptions } from '../ops/route-options.js'
import { fail } from '../runtime/check.js'
import type { DType } from '../runtime/dtype.js'
import { checkTensor, isTensor, type Tensor } from '../tensor/tensor.js'
import { type GatingForwardOptions, readRandom, tokenInputOptions } from './gating.js'
import { inputRandomOptions } from './router-input.js'

interface Grouped<D extends DType> {
  x: Tensor<D>
  gating: GatingForwardOptions
  inputs: readonly Tensor[]
}

/**
 * x [B, N, D] and every tensor with values per token, as [B · N / G, G, …]: those of the router's options, by their
 * declarations, and further inputs. `sizes`: of E and of the rows that the router sees.
 */
export function inGroups<D extends DType>(
  op: string,
  { x, gating, inputs }: Grouped<D>,
  G: number | undefined,
  sizes: { E: number; D: number },
): Grouped<D> {
  const [B, N, D] = x.shape
  if (G === undefined || G === N) return { x, gating, inputs }
  if ((B * N) % G !== 0) fail('SHAPE', op, `groupSize = ${G} must divide the ${B} · ${N} tokens of x`)
  const groups = [(B * N) / G, G]
  const cut = (name: string, dims: PerToken['dims'], tensor: unknown) => {
    if (!isTensor(tensor)) return tensor
    const before = tensor.shape.slice(0, dims.indexOf('B')) // K, which the router checks
    const after = dims.slice(dims.indexOf('N') + 1).map((dim) => sizes[dim as keyof typeof sizes])
    checkTensor(op, name, tensor, { dtype: tensor.dtype, device: tensor.device, shape: [...before, B, N, ...after] })
    return reshape(tensor, [...before, ...groups, ...after])
  }
  const cutAll = <O extends Record<string, PerToken>>(declared: O, values: { [N in keyof O]?: unknown }) =>
    Object.fromEntries(Object.entries(declared).map(([name, { dims }]) => [name, cut(name, dims, values[name])]))
  const given = readRandom(op, gating.random)
  return {
    x: reshape(x, [...groups, D]),
    gating: {
      ...gating,
      random: gating.random && cutAll({ ...randomOptions, ...inputRandomOptions }, given),
      ...cutAll(tokenInputOptions, gating),
    },
    inputs: inputs.map((input) => reshape(input, [...groups, input.shape[2]])),
  }
}
