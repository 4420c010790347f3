import { scope } from '../autograd/scope.js'
import { combine } from '../ops/combine.js'
import { dispatch } from '../ops/dispatch.js'
import type { RouteResult, Routing } from '../ops/routing.js'
import { copyArray, fail, sameShape, showShape } from '../runtime/check.js'
import type { DType } from '../runtime/dtype.js'
import { show } from '../runtime/errors.js'
import { checkTensor, isTensor, type Tensor } from '../tensor/tensor.js'
import { type ExpertShare, eachExpert } from './expert-share.js'
import { checkModule, type Module } from './module.js'
import { copyInputs, type ExpertsCall, type Routed, RoutedExperts, runExperts } from './routed-experts.js'

type Expert = Module & { forward(...inputs: Tensor[]): unknown }

/**
 * Custom experts, under the names `experts.{i}.…`. {@link MoE} makes it from its option `experts`.
 *
 * @example
 * ```ts
 * const moe = new MoE({ dim: 32, experts: [new Linear(32, 32), new FeedForward(32)] })
 * console.log(moe.forward(randn([1, 8, 32])).outputs.shape) // → [ 1, 8, 32 ]
 * ```
 */
export class UserExperts extends RoutedExperts {
  /** E modules, [B, C, D] → [B, C, D]; null for experts of other ranks. */
  readonly experts: readonly (Module | null)[]

  /** Errors: OPTION; they name `op`. */
  constructor(op: string, experts: unknown, count: number, share: ExpertShare | null) {
    super(share)
    const list = copyArray(op, 'experts', experts, 2 ** 20)
    if (list.length !== count) fail('OPTION', op, `experts must hold numExperts = ${count} modules, got ${list.length}`)
    const elsewhere = new Set(share?.elsewhere())
    this.experts = list.map((expert, i) => {
      if (elsewhere.has(i)) return null
      const module = checkModule(op, `experts[${i}]`, expert)
      if (typeof (module as { forward?: unknown }).forward !== 'function')
        fail('OPTION', op, `experts[${i}] must have a forward method`)
      return module
    })
  }

  /** @internal */
  override checkInputs(op: string, { shape, dtype, device }: Tensor, inputs: unknown): readonly Tensor[] {
    return copyInputs(op, inputs).map((input, i) => {
      const name = `expertInputs[${i}]`
      const last = checkTensor(op, name, input).shape[2] ?? 0
      return checkTensor(op, name, input, { shape: [...shape.slice(0, 2), last], dtype, device })
    })
  }

  /** @internal */
  override run<D extends DType>(x: Tensor<D>, choice: RouteResult<D>, call: ExpertsCall): Routed<D> {
    return runExperts(x, choice, call, (x, routing, inputs, straightThrough) =>
      this.#apply(x, routing, inputs, straightThrough),
    )
  }

  /** x [B, N, D] and more of its tokens [B, N, …] → Σ weight · expert(x, …). */
  #apply<D extends DType>(
    x: Tensor<D>,
    routing: Routing<D>,
    more: readonly Tensor[],
    straightThrough: boolean,
  ): Tensor<D> {
    return scope(() => {
      const inputs = [
        dispatch(x, routing, { straightThrough }),
        ...more.map((input) => dispatch(input, routing, { straightThrough: false })),
      ]
      const at = { op: 'MoE.forward', share: this.share, N: x.shape[1] }
      const [y] = eachExpert(at, inputs as Tensor<D>[], [x.shape[2]], (e, rows) => [this.#call(e, rows)])
      return combine(y, routing)
    })
  }

  /** Expert e with its rows [B, C, …] of each input. */
  #call<D extends DType>(e: number, rows: readonly Tensor<D>[]): Tensor<D> {
    const y = (this.experts[e] as Expert).forward(...rows)
    const { shape } = rows[0]
    if (!isTensor(y) || !sameShape(y.shape, shape))
      fail(
        'SHAPE',
        'MoE.forward',
        `expert ${e} must return a tensor ${showShape(shape)}, got ${isTensor(y) ? showShape(y.shape) : show(y)}`,
      )
    return checkTensor('MoE.forward', `the result of expert ${e}`, y, rows[0]) as Tensor<D>
  }
}
