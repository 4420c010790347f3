import { within } from '../runtime/errors.js'
import { type Handle, native } from '../runtime/native.js'
import { type ReplayRow, replayRow } from '../runtime/native-ops.js'
import { checkValues, type DeclaredOptions, type Needed, type OptionsOf, reader } from '../runtime/options.js'
import { releaseAll } from '../tensor/handles.js'
import { handleOf, type Tensor } from '../tensor/tensor.js'
import type { OptimizerParameters } from './groups.js'
import { Optimizer, type ParameterUpdate } from './optimizer.js'
import type { ReadOnlyOption } from './option-kinds.js'
import type { StateTensors, StateValues } from './state.js'

/** The ops that update parameters by their gradients. */
type UpdateOp = Exclude<keyof typeof replayRow, 'sample' | 'ema'>
/** The numbers of an update. */
type Numbers<Op extends UpdateOp> = Omit<Parameters<(typeof replayRow)[Op]>[0], 'step'>
type Item<Op extends UpdateOp> = Parameters<(typeof native)[Op]>[0][number]
/** The arguments of an op that are tensors of the state. */
type StateArguments<Op extends UpdateOp> = Exclude<keyof Item<Op>, 'p' | 'g' | 'norm' | 'step' | keyof Numbers<Op>>

type Value<O> = O extends Needed<infer V> ? V : never
type ReadOnlyNames<O> = { [N in keyof O]: O[N] extends ReadOnlyOption<unknown> ? N : never }[keyof O]
type Settable<O, N extends keyof O> = { [K in N]: Value<O[K]> }
type Fixed<O, N extends keyof O> = { readonly [K in N]: Value<O[K]> }

/** The options of a group, with the doc comments of their declaration. */
export type GroupValues<O> = Settable<O, Exclude<keyof O, ReadOnlyNames<O>>> & Fixed<O, ReadOnlyNames<O>>

/** A tensor of a parameter's state. */
interface DeclaredTensor<V> {
  /** Its name in state dicts. */
  name: string
  /** Its allowed values. Default 'any'. */
  values?: StateValues
  /** Its shape, from that of the parameter. Default: the same. */
  shape?: (shape: readonly number[]) => readonly number[]
  /** Whether a parameter of this shape has it. Default: always. */
  when?: (options: V, shape: readonly number[]) => boolean
}

/** What an optimizer adds to its op, which native/core/ops/optimizers.inc declares. */
interface Declaration<Op extends UpdateOp, O extends DeclaredOptions> {
  options: O
  /** By the arguments of the op, in the order of state dicts. */
  state: Readonly<Record<StateArguments<Op>, DeclaredTensor<GroupValues<O>>>>
  /** The numbers of update number `step` of a parameter. */
  numbers: (options: GroupValues<O>, step: number) => Numbers<Op>
  /** The op takes matrices: a parameter with fewer axes is passed as one row. */
  matrices?: boolean
}

/** @internal A declaration of any types, with its op. */
export interface DeclaredUpdate {
  op: UpdateOp
  options: DeclaredOptions
  state: Readonly<Record<string, DeclaredTensor<object>>>
  numbers: (options: object, step: number) => Readonly<Record<string, number>>
  matrices?: boolean
}

/**
 * Base of the optimizers that the package has, each with its options as properties.
 *
 * @example
 * ```ts
 * const optimizer: DeclaredOptimizer<AdamWValues> = new AdamW(new Linear(4, 1).parameters())
 * console.log(optimizer.groups[0].betas) // → [ 0.9, 0.999 ]
 * ```
 */
export class DeclaredOptimizer<V extends object> extends Optimizer<V> {
  /** @internal On the prototype, because the constructor of Optimizer reads it. */
  declare protected readonly declared: DeclaredUpdate

  protected override checkedOptions(op: string, source: object, prefix: string): V {
    return checkValues(op, source, this.declared.options, prefix) as V
  }

  protected override stateTensors(options: V, shape: readonly number[]): StateTensors {
    const own = Object.values(this.declared.state).filter(({ when }) => !when || when(options, shape))
    return Object.fromEntries(
      own.map(({ name, values = 'any', shape: shapeFor }) => [
        name,
        shapeFor ? { values, shape: shapeFor(shape) } : values,
      ]),
    )
  }

  /** @internal */
  protected override replayRow(step: number, options: V): ReplayRow {
    const { op, numbers } = this.declared
    const row = replayRow[op] as (given: object) => ReplayRow
    return row({ step, ...numbers(options, step) })
  }

  protected override update(updates: readonly ParameterUpdate<V>[], norm: Tensor | null): void {
    const { op, state, numbers, matrices } = this.declared
    const stateEntries = Object.entries(state)
    const views: Handle[] = []
    const asRow = (tensor: Tensor): Handle => {
      const view = native.reshape(handleOf(tensor), [1, tensor.size])
      views.push(view)
      return view
    }
    const item: Record<string, Handle | number | null> = { norm: norm && handleOf(norm) }
    function* items() {
      let of: V | undefined
      for (const { parameter, grad, step, tensors, options } of updates) {
        const handle = matrices && parameter.shape.length < 2 ? asRow : handleOf
        item.p = handle(parameter)
        item.g = handle(grad)
        for (const [argument, { name }] of stateEntries) item[argument] = tensors[name] ? handle(tensors[name]) : null
        if (options !== of || step !== item.step) Object.assign(item, { step }, numbers(options, step))
        of = options
        yield item
      }
    }
    const run = native[op] as unknown as (items: Iterable<object> & { length: number }) => void
    try {
      // it reads an item before it takes the next
      within(`${this.constructor.name}.step`, () => run({ length: updates.length, [Symbol.iterator]: items }))
    } finally {
      releaseAll(views)
    }
  }
}

/** The class that an optimizer extends: each option is a property of it. */
export type OptimizerClass<O extends DeclaredOptions> = {
  /** Parameters, or groups of them with options of their own. Errors: OPTION, DISPOSED. */
  new (
    params: OptimizerParameters<OptionsOf<O>>,
    options?: OptionsOf<O>,
  ): DeclaredOptimizer<GroupValues<O>> & GroupValues<O>
}

/** The base of the class `name`, whose op is that name in small letters. */
export function declaredOptimizer<Name extends string, const O extends DeclaredOptions>(
  name: Name,
  declaration: Declaration<Lowercase<Name> & UpdateOp, O>,
): OptimizerClass<O> {
  const read = reader(declaration.options) as (op: string, passed: unknown) => object
  class Declared extends DeclaredOptimizer<object> {
    constructor(params: OptimizerParameters<object>, options?: object) {
      super(name, params, read(name, options))
    }
  }
  Object.assign(Declared.prototype, { declared: { op: name.toLowerCase(), ...declaration } })
  return Declared as unknown as OptimizerClass<O>
}
