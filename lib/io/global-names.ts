import type { Module } from '../nn/module.js'
import type { Parameter } from '../nn/parameter.js'
import { sharedOut } from '../nn/shared-out.js'
import { entriesOf, type StateDict } from '../nn/state.js'
import { reshape } from '../ops/reshape.js'
import { concat, slice } from '../ops/strided.js'
import { isOwn } from '../optim/shared-updates.js'
import { fail } from '../runtime/check.js'
import type { Tensor } from '../tensor/tensor.js'

/**
 * Names that do not depend on how ranks share out a model. What belongs to a parameter, such as a moment of an optimizer, has
 * in one process the number or the path of the parameter, and for stacked experts a slice for each. Its global name is that of
 * the parameter in the state of the whole model, with a slice of its own for each expert.
 */

/** The parameters that tensors of a state belong to, by the names there. */
export interface StateOf {
  parameters: readonly (readonly [name: string, parameter: Parameter])[]
  /** Whether there are several of each, `{name}.{kind}`. */
  hasKinds: boolean
}

interface Place {
  /** In the state of the whole model; of stacked experts one for each. */
  names: string[]
  isStacked: boolean
}

/** One count for all slices. */
const isCount = (kind: string): boolean => kind === 'step'

export class GlobalNames {
  readonly #op: string
  readonly #places = new Map<Tensor, Place>()
  /** How the names of experts of other ranks begin. */
  readonly #elsewhere: readonly string[]
  /** The names of parameters that other ranks update: the states of optimizers are there. */
  readonly #updatedElsewhere: ReadonlySet<string>
  /** Of stacked experts that ranks share out: the number of the first one here. */
  readonly #first = new Map<Parameter, number>()

  constructor(op: string, model: Module) {
    this.#op = op
    this.#elsewhere = [...model.stateElsewhere()]
    for (const { name, tensor, index } of entriesOf(op, model)) {
      const place = this.#places.get(tensor) ?? { names: [], isStacked: index !== undefined }
      place.names[index ?? place.names.length] = name
      this.#places.set(tensor, place)
    }
    const notOwn = model.parameters().filter((parameter) => !isOwn(parameter))
    this.#updatedElsewhere = new Set(notOwn.flatMap((parameter) => this.#places.get(parameter)?.names ?? []))
    for (const { module, share } of sharedOut(model))
      for (const parameter of module.parameters()) this.#first.set(parameter, share.first)
  }

  /** Whether a name of a state, of the model or `of` what belongs to its parameters, is of this rank. */
  isHere(name: string, of?: StateOf): boolean {
    if (this.#elsewhere.some((begin) => name.startsWith(begin))) return false
    return !of?.hasKinds || !this.#updatedElsewhere.has(divided(name)[0])
  }

  /** A state under global names. Errors: OPTION for a parameter that the model does not have. */
  toGlobal({ parameters, hasKinds }: StateOf, state: StateDict): StateDict {
    const byName = new Map(parameters)
    for (const [name, parameter] of parameters) this.#placeOf(name, parameter)
    const entries = Object.entries(state).flatMap(([key, value]): [string, Tensor][] => {
      const [name, kind] = hasKinds ? divided(key) : [key, '']
      const parameter = byName.get(name)!
      const { names, isStacked } = this.#placeOf(name, parameter)
      const ending = hasKinds ? `.${kind}` : ''
      if (!isStacked) return [[names[0] + ending, value]]
      if (isCount(kind)) return names.map((each) => [each + ending, value])
      const isEach = value.shape.length === parameter.shape.length || parameter.shape.length > 2
      if (!isEach || value.shape[0] !== names.length)
        fail('UNSUPPORTED', this.#op, `${key} has no part for each expert, which a checkpoint of several ranks needs`)
      return names.map((each, i) => [each + ending, reshape(slice(value, 0, i, i + 1), value.shape.slice(1))])
    })
    return Object.fromEntries(entries)
  }

  /** The opposite. Names that are not of it stay. */
  toLocal({ parameters, hasKinds }: StateOf, state: StateDict): StateDict {
    const kinds = new Map<string, string[]>()
    for (const key of Object.keys(state)) {
      const [name, kind] = hasKinds ? divided(key) : [key, '']
      kinds.set(name, [...(kinds.get(name) ?? []), kind])
    }
    const local: StateDict = {}
    const known = new Set<string>()
    for (const [name, parameter] of parameters) {
      const { names, isStacked } = this.#placeOf(name, parameter)
      for (const kind of kinds.get(names[0]) ?? []) {
        const ending = hasKinds ? `.${kind}` : ''
        const values = (isStacked ? names : names.slice(0, 1)).map((each) => state[each + ending])
        for (const each of names) known.add(each + ending)
        if (values.includes(undefined as never)) continue
        local[name + ending] =
          isStacked && !isCount(kind)
            ? concat(
                values.map((value) => reshape(value, [1, ...value.shape])),
                0,
              )
            : values[0]
      }
    }
    const others = Object.entries(state).filter(([key]) => !known.has(key))
    return { ...local, ...Object.fromEntries(others) }
  }

  /** Of the state that one process has saved, the slices of the experts of this rank. */
  ownSlices({ parameters, hasKinds }: StateOf, state: StateDict): StateDict {
    if (this.#first.size === 0) return state
    const byName = new Map(parameters)
    const own = (key: string, value: Tensor): Tensor => {
      const parameter = byName.get(hasKinds ? divided(key)[0] : key)
      const place = parameter && this.#places.get(parameter)
      const first = parameter && this.#first.get(parameter)
      if (!place?.isStacked || first === undefined || value.shape.length === 0) return value
      const end = first + place.names.length
      return value.shape[0] >= end ? slice(value, 0, first, end) : value
    }
    return Object.fromEntries(Object.entries(state).map(([key, value]) => [key, own(key, value)]))
  }

  #placeOf(name: string, parameter: Parameter): Place {
    return (
      this.#places.get(parameter) ??
      fail('OPTION', this.#op, `parameter ${name} must be one of the model, which gives it its name in the checkpoint`)
    )
  }
}

/** `a.b.kind` → a.b and kind */
function divided(key: string): [name: string, kind: string] {
  const at = key.lastIndexOf('.')
  return [key.slice(0, Math.max(0, at)), key.slice(at + 1)]
}
