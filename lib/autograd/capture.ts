import { checkFunction, checkOptions, fail } from '../runtime/check.js'
import { checkDevice, type Device, deviceIndex, getDefaultDevice } from '../runtime/device.js'
import { native } from '../runtime/native.js'
import { putGrad, type Tensor } from '../tensor/tensor.js'
import { currentRecorder, recordWith } from './context.js'
import { Recorder } from './recorder.js'
import { keep, madeBy } from './scope.js'

/** A captured step of {@link captureStep}. */
export interface CapturedStep<T> {
  /** The device of the step. */
  readonly device: Device
  /** Whether `dispose` has been called. */
  readonly disposed: boolean
  /**
   * Runs the step once and returns the result of `fn`. Its tensors hold the values of this replay until the next one.
   */
  replay(): T
  /** Frees the step and the tensors that `fn` returned. A second call does nothing. */
  dispose(): void
  /** The same, for `using`. */
  [Symbol.dispose](): void
}

/**
 * Captures the ops of `fn`. Each replay runs them without JavaScript in between, on a CUDA device as one launch of a
 * CUDA graph, and N replays return the same bits as N calls of `fn`; on a GPU with uneven loads (docs/cuda.md) the
 * same to rounding. `captureStep` itself executes nothing: counters, generators and parameters do not change, and the
 * tensors that `fn` returns hold NaN until the first `replay()`.
 *
 * `fn` is called once. Its inputs are tensors from outside, whose values {@link Tensor.copyFrom} can replace between
 * replays; their shapes are fixed. Random numbers (routing, dropout, `randn`), the step counts and numeric options of optimizers
 * and the decay of an `EMA` advance with each replay. Everything else that JavaScript decides (branches,
 * `train()`, hooks) is fixed at capture.
 *
 * `fn` must not wait for the device (`item`, `dataSync`, `to('cpu')`, `clipGradNorm` without `wait: false`), create tensors from host data,
 * or leave a gradient that it does not clear at its start (`zeroGrad`). Any error ends the capture and changes nothing.
 * `device` defaults to the default device.
 *
 * On the CPU `replay` may be called in {@link trainStepAsync} and `forwardAsync`, unless `fn` has `onNonFinite: 'skip'`.
 *
 * Errors: UNSUPPORTED for what cannot be captured, and by `replay` on a GPU in an asynchronous call; DISPOSED by `replay`
 * if the step, a parameter or another tensor from outside was disposed, and the errors of the ops. `dispose` is UNSUPPORTED
 * in an asynchronous call.
 *
 * @example
 * ```ts
 * using model = new Linear(8, 1)
 * using optimizer = new AdamW(model.parameters(), { lr: 1e-2 })
 * using x = zeros([16, 8])
 * using y = zeros([16, 1])
 * using step = captureStep(() => {
 *   optimizer.zeroGrad()
 *   const loss = mseLoss(model.forward(x), y)
 *   loss.backward()
 *   optimizer.step()
 *   return { loss }
 * })
 * for (let i = 0; i < 3; i++) {
 *   x.copyFrom(new Float32Array(16 * 8).fill(i))
 *   step.replay()
 * }
 * console.log(step.replay().loss.item() > 0) // → true
 * ```
 */
export function captureStep<T>(fn: () => T, options?: { device?: Device }): CapturedStep<T> {
  const op = 'captureStep'
  checkFunction(op, 'fn', fn)
  const o = checkOptions<{ device: Device }>(op, options, ['device'])
  const device = checkDevice(op, o.device ?? getDefaultDevice())
  const number = deviceIndex(op, device)
  if (currentRecorder()) fail('UNSUPPORTED', op, 'a step is being captured already')
  const recorder = new Recorder()
  native.captureBegin(number)
  let recording = true
  let result: Run<T> | undefined
  try {
    result = recordWith(recorder, () => run(op, fn))
    recorder.checkGrads(op)
    recording = false
    const step = native.captureEnd(true)!
    recorder.settle()
    return new Step(device, step, recorder, result)
  } catch (error) {
    for (const tensor of result?.made ?? []) tensor.dispose()
    recorder.undo(putGrad)
    if (recording) native.captureEnd(false)
    throw error
  }
}

/** The result of `fn`. Tensors that it created and returned belong to the step and have no history. */
interface Run<T> {
  value: T
  made: Tensor[]
}

function run<T>(op: string, fn: () => T): Run<T> {
  const result = madeBy(op, fn)
  for (const tensor of result.made) {
    keep(tensor)
    tensor.requiresGrad = false
  }
  return result
}

/** Only a safety net, as for tensors. */
const finalizers = new FinalizationRegistry<number>((step) => native.releaseCapture(step))

class Step<T> implements CapturedStep<T> {
  readonly device: Device
  readonly #step: number
  readonly #recorder: Recorder
  readonly #result: Run<T>
  #disposed = false

  constructor(device: Device, step: number, recorder: Recorder, result: Run<T>) {
    this.device = device
    this.#step = step
    this.#recorder = recorder
    this.#result = result
    finalizers.register(this, step, this)
  }

  get disposed(): boolean {
    return this.#disposed
  }

  replay(): T {
    if (this.#disposed) fail('DISPOSED', 'CapturedStep.replay', 'the step has been disposed')
    if (currentRecorder()) fail('UNSUPPORTED', 'CapturedStep.replay', 'a step is being captured')
    this.#recorder.replay('CapturedStep.replay', (numbers) => native.replay(this.#step, numbers))
    return this.#result.value
  }

  dispose(): void {
    if (this.#disposed) return
    native.releaseCapture(this.#step) // not in an asynchronous call: it waits
    this.#disposed = true
    finalizers.unregister(this)
    this.#recorder.dispose()
    for (const tensor of this.#result.made) tensor.dispose()
  }

  [Symbol.dispose](): void {
    this.dispose()
  }
}
