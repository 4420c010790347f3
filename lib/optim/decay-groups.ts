import { Embedding } from '../nn/embedding.js'
import { checkModule, type Module } from '../nn/module.js'
import type { Parameter } from '../nn/parameter.js'
import { checkFunction } from '../runtime/check.js'
import { boolean, type OptionsOf, reader, unchecked } from '../runtime/options.js'

const decayOptions = {
  /** Weights of {@link Embedding} do not decay either. Default false. */
  excludeEmbeddings: boolean({ default: false }),
  /** Returns true for further parameters that do not decay, by their name in `model.namedParameters()`. */
  exclude: unchecked<(name: string, parameter: Parameter) => boolean>(),
}

/** Options of {@link decayGroups}. */
export interface DecayGroupsOptions extends OptionsOf<typeof decayOptions> {}

/** A group of {@link decayGroups}. */
export interface DecayGroup {
  /** Its parameters. */
  params: Parameter[]
  /** Of those that do not decay. */
  weightDecay?: 0
}

const readOptions = reader(decayOptions)

/** `bias`; of stacked experts, whose biases have two axes, `b1`, `b2` and `multBias`. */
const biasName = /(^|\.)(bias|b[12]|multBias)$/

/**
 * Two groups for an optimizer: the parameters of a model that decay, and with `weightDecay: 0` those that usually do
 * not: biases, weights of norms, and all others with fewer than two axes. A parameter with several names decays if all
 * of them do. Errors: OPTION.
 *
 * @example
 * ```ts
 * const block = new SparseMoEBlock(new MoE({ dim: 16, numExperts: 4 }))
 * const optimizer = new AdamW(decayGroups(block), { weightDecay: 0.1 })
 * console.log(optimizer.groups.map(({ weightDecay }) => weightDecay)) // → [ 0.1, 0 ]
 * ```
 */
export function decayGroups(model: Module, options?: DecayGroupsOptions): [decayed: DecayGroup, rest: DecayGroup] {
  const op = 'decayGroups'
  checkModule(op, 'model', model)
  const { excludeEmbeddings, exclude } = readOptions(op, options)
  if (exclude !== undefined) checkFunction(op, 'exclude', exclude)
  const rest = new Set<Parameter>()
  if (excludeEmbeddings) for (const module of model.modules()) if (module instanceof Embedding) rest.add(module.weight)
  const named = [...model.namedParameters()]
  for (const [name, parameter] of named)
    if (parameter.shape.length < 2 || biasName.test(name) || exclude?.(name, parameter)) rest.add(parameter)
  const decayed = new Set(named.map(([, parameter]) => parameter).filter((parameter) => !rest.has(parameter)))
  return [{ params: [...decayed] }, { params: [...rest], weightDecay: 0 }]
}
