import { callScope, scope, withoutScope } from '../autograd/scope.js'
import { add, mul } from '../ops/binary.js'
import { sum } from '../ops/reduce.js'
import { checkNumber, checkShape, fail, sizeOf } from '../runtime/check.js'
import { allocateArray } from '../runtime/dtype.js'
import { MoeError, show } from '../runtime/errors.js'
import { native } from '../runtime/native.js'
import { Alive } from '../runtime/warn.js'
import { full, tensor } from '../tensor/create.js'
import { handleOf, type Tensor } from '../tensor/tensor.js'
import type { MoEForwardOptions } from './moe-options.js'
import { MoEResult } from './moe-result.js'

/** How f32 and f64 values travel. */
export type FloatArray = Float32Array | Float64Array

/** A routing as plain arrays, [B, N, K] flat. */
export interface RoutingArrays {
  /** The chosen experts, the most probable first. */
  expertIndex: Int32Array
  /** Their probabilities, normalised over the K experts. */
  gate: FloatArray
  /** 1 if dispatched, else 0. */
  kept: Int32Array
  /** The slot, −1 if dropped. */
  position: Int32Array
  /** Slots of one expert for one sequence. */
  capacity: number
}

/**
 * One forward of a layer over plain arrays, with its backward. Holds native memory until `backward` or `dispose`; more than
 * 100 that wait are a warning on standard error.
 */
export interface GradHandle extends Disposable {
  /** A copy, [B, N, D] flat. */
  outputs: FloatArray
  /** As in {@link MoEResult}, like the two others. */
  totalAuxLoss: number
  /** Without its coefficient. */
  balanceLoss: number
  /** Without its coefficient. */
  routerZLoss: number
  /** Where the tokens went. */
  routing: RoutingArrays
  /**
   * Gradient of the input, given those of the outputs and of totalAuxLoss (default 0: the auxiliary loss is not part
   * of the caller's loss). Adds to `grad` of the parameters. Once: a second call is a DISPOSED error, except after an
   * error, which changes nothing.
   */
  backward(dOutputs: FloatArray, dTotalAux?: number): InputGradient
  /** Frees what the backward would have needed. */
  dispose(): void
}

/** What {@link GradHandle.backward} returns. */
export interface InputGradient {
  /** [B, N, D] flat; zeros if a hook of the layer lets no gradient through. */
  dInput: FloatArray
}

interface Layer {
  forward(x: Tensor, options?: MoEForwardOptions): MoEResult
}

export function forwardWithGrad(
  op: string,
  layer: Layer,
  like: Tensor,
  input: FloatArray,
  shape: readonly number[],
  options?: MoEForwardOptions,
): GradHandle {
  const dims = checkShape(op, 'shape', shape)
  checkArray(op, 'input', input, like, sizeOf(dims))
  const { x, result, arrays } = withoutScope(() =>
    callScope(() => {
      const x = tensor(input, dims, { dtype: like.dtype, device: like.device, requiresGrad: true })
      const result: unknown = layer.forward(x, options)
      if (!(result instanceof MoEResult))
        fail('OPTION', op, `a forward hook of the layer must return a MoEResult, got ${show(result)}`)
      return { x, result, arrays: arraysOf(result) }
    }),
  )
  return new Handle(op, x, result, arrays)
}

/** What a {@link GradHandle} copies of a result. */
type Arrays = Pick<GradHandle, 'outputs' | 'totalAuxLoss' | 'balanceLoss' | 'routerZLoss' | 'routing'>

function arraysOf({ outputs, totalAuxLoss, balanceLoss, routerZLoss, routing }: MoEResult): Arrays {
  const { expertIndex, gate, kept, position, capacity } = routing
  return {
    outputs: outputs.dataSync() as FloatArray,
    totalAuxLoss: totalAuxLoss.item(),
    balanceLoss: balanceLoss.item(),
    routerZLoss: routerZLoss.item(),
    routing: {
      expertIndex: expertIndex.dataSync() as Int32Array,
      gate: gate.dataSync() as FloatArray,
      kept: kept.dataSync() as Int32Array,
      position: position.dataSync() as Int32Array,
      capacity,
    },
  }
}

const waiting = new Alive(
  100,
  'more than 100 results of forwardWithGrad wait for their backward, and hold what it needs. Call dispose() of those that ' +
    'get no backward, or forward() in noGrad(() => …).',
)

/** Frees nothing: a handle that nobody holds is no longer alive, and must not be counted. */
const finalizers = new FinalizationRegistry<null>(() => waiting.remove())

class Handle implements GradHandle {
  readonly outputs: FloatArray
  readonly totalAuxLoss: number
  readonly balanceLoss: number
  readonly routerZLoss: number
  readonly routing: RoutingArrays
  readonly #op: string
  readonly #x: Tensor
  readonly #result: MoEResult

  constructor(op: string, x: Tensor, result: MoEResult, arrays: Arrays) {
    this.#op = op
    this.#x = x
    this.#result = result
    this.outputs = arrays.outputs
    this.totalAuxLoss = arrays.totalAuxLoss
    this.balanceLoss = arrays.balanceLoss
    this.routerZLoss = arrays.routerZLoss
    this.routing = arrays.routing
    waiting.add()
    finalizers.register(this, null, this)
  }

  backward(dOutputs: FloatArray, dTotalAux = 0): InputGradient {
    const op = `${this.#op}.backward`
    if (this.#x.disposed)
      throw new MoeError('DISPOSED', op, 'backward has been called before, or this step was disposed')
    const { outputs, totalAuxLoss } = this.#result
    checkArray(op, 'dOutputs', dOutputs, outputs, outputs.size)
    checkNumber(op, 'dTotalAux', dTotalAux)
    const { dtype, device } = outputs
    const dInput = allocateArray(op, dtype, this.#x.size) as FloatArray // before any gradient has changed
    withoutScope(() =>
      scope(() => {
        const weighted = sum(mul(outputs, tensor(dOutputs, outputs.shape, { dtype, device })))
        add(weighted, mul(totalAuxLoss, full([], dTotalAux, { dtype, device }))).backward()
      }),
    )
    const { grad } = this.#x
    if (grad) native.toData(handleOf(grad), dInput)
    this.dispose()
    return { dInput }
  }

  dispose(): void {
    if (this.#x.disposed) return
    finalizers.unregister(this)
    waiting.remove()
    this.#result.dispose()
    this.#x.dispose()
  }

  [Symbol.dispose](): void {
    this.dispose()
  }
}

function checkArray(op: string, name: string, value: unknown, like: Tensor, size: number): void {
  const expected = like.dtype === 'f64' ? Float64Array : Float32Array
  if (!(value instanceof expected)) fail('DTYPE', op, `${name} must be a ${expected.name}, got ${show(value)}`)
  if (value.length !== size) fail('SHAPE', op, `${name} must have ${size} values, got ${value.length}`)
}
