import { checkFunction } from '../runtime/check.js'
import { hasHostMemory } from '../runtime/device.js'
import { allocateArray, type DType, type DTypeArrays } from '../runtime/dtype.js'
import { MoeError } from '../runtime/errors.js'
import { native } from '../runtime/native.js'
import { type OptionsOf, reader } from '../runtime/options.js'
import { type AbortSignalLike, abortSignal, throwIfAborted } from '../runtime/signal.js'
import { nextTurn, turnIfDue } from '../runtime/turn.js'
import { share } from '../tensor/handles.js'
import { asMethods } from '../tensor/methods.js'
import { checkTensor, handleOf, isTensor, type Tensor } from '../tensor/tensor.js'
import { asyncWith, refuseInCapture } from './context.js'
import { defaultGenerator, restoringOnError } from './random.js'
import { madeBy } from './scope.js'

const asyncOptions = {
  /** Aborts the call: the promise rejects with its reason. */
  signal: abortSignal(),
}

/** Options of asynchronous calls. */
export interface AsyncOptions extends OptionsOf<typeof asyncOptions> {}

const readAsyncOptions = reader(asyncOptions)

/** Takes the option `signal` out of the last input, and the input away if nothing is left of it. */
export function withoutSignal(op: string, inputs: readonly unknown[]): { given: unknown[]; signal?: AbortSignalLike } {
  const given = [...inputs]
  const options = given.at(-1)
  if (typeof options !== 'object' || options === null || isTensor(options) || !Object.hasOwn(options, 'signal'))
    return { given }
  const { signal, ...rest } = options as AsyncOptions
  given.pop()
  if (Object.keys(rest).length > 0) given.push(rest)
  return { given, ...readAsyncOptions(op, { signal }) }
}

let last: Promise<unknown> = Promise.resolve()

/** Calls `run` when the calls before it have ended. Until then `signal` rejects the promise at once. */
function inTurn<T>(signal: AbortSignalLike | undefined, run: () => Promise<T>): Promise<T> {
  let begun = false
  const turn = last.then(() => {
    throwIfAborted(signal)
    begun = true
    return run()
  })
  last = turn.then(nextTurn, nextTurn) // the event loop, and whoever awaits this call, come before the next
  if (!signal) return turn
  return new Promise((resolve, reject) => {
    const abort = () => {
      if (!begun) reject(signal.reason)
    }
    signal.addEventListener('abort', abort, { once: true })
    if (signal.aborted) abort()
    turn.then(resolve, reject).finally(() => signal.removeEventListener('abort', abort))
  })
}

/** Whether the error is one that a device reported when all ops had run. */
const hasRun = (error: unknown): boolean => error instanceof MoeError && error.op === 'asyncEnd'

/** Calls `fn` now; its ops run on the thread of the addon, and the promise waits for them. */
async function perform<T>(op: string, fn: () => T, interruptedBy?: AbortSignalLike): Promise<T> {
  const restores: (() => void)[] = []
  const before = { seed: defaultGenerator.seed, step: defaultGenerator.step }
  let result: ReturnType<typeof madeBy<T>> | undefined
  const cancel = () => native.asyncCancel()
  native.asyncBegin()
  try {
    result = asyncWith(restores, () => restoringOnError(defaultGenerator, () => madeBy(op, fn)))
    const { seed, step } = defaultGenerator
    restores.push(() => {
      if (defaultGenerator.seed === seed && defaultGenerator.step === step) defaultGenerator.setState(before)
    })
    const done = native.asyncEnd(interruptedBy !== undefined)
    interruptedBy?.addEventListener('abort', cancel, { once: true })
    if (!(await done)) throw interruptedBy?.reason
    return result.value
  } catch (error) {
    native.asyncDrop()
    for (const tensor of result?.made ?? []) tensor.dispose()
    if (!hasRun(error)) for (const restore of restores.reverse()) restore()
    throw error
  } finally {
    interruptedBy?.removeEventListener('abort', cancel)
  }
}

/** Calls `fn` in turn as an asynchronous call, which an abort interrupts. */
export const callAsync = <T>(op: string, fn: () => T, signal: AbortSignalLike | undefined): Promise<T> =>
  inTurn(signal, () => perform(op, fn, signal))

/**
 * Calls `fn`, a training step, and computes it on a thread of the addon while the event loop goes on; the promise
 * resolves with what `fn` returns when all of it has been computed. `fn` is called when the asynchronous calls before
 * have ended: they run one at a time, in order, and JavaScript needs them only for a moment each. As in
 * {@link scope}, tensors that `fn` creates are freed, except those that it returns.
 *
 * `fn` must not wait for values (`item`, `dataSync`, `clipGradNorm` without `wait: false`): return the tensors and read
 * them afterwards. Functions that are not asynchronous wait for the running call if they need values of tensors; making
 * tensors from data on the CPU and reading tensors that the call does not use does not wait. An abort before `fn` is
 * called keeps it from being called; a step that has begun is finished.
 *
 * If the promise rejects, parameters, optimizers, schedules, the default generator and other tensors that the step has
 * updated in place are as before it, and gradients that it has set are null; but what a GPU finds while it computes, such
 * as an index out of range, it reports when the step has been taken. Errors: those of `fn` and of its operations; OPTION
 * if it is async; UNSUPPORTED if it waits for values, makes parameters or swaps those of an EMA.
 *
 * @example
 * ```ts
 * const model = new Linear(8, 1)
 * const optimizer = new SGD(model.parameters(), { lr: 0.1 })
 * const [x, y] = [randn([16, 8]), zeros([16, 1])]
 * const loss = await trainStepAsync(() => {
 *   optimizer.zeroGrad()
 *   const loss = mseLoss(model.forward(x), y)
 *   loss.backward()
 *   optimizer.step()
 *   return loss
 * })
 * console.log(loss.item() > 0) // → true
 * ```
 */
export async function trainStepAsync<T>(fn: () => T, options?: AsyncOptions): Promise<T> {
  const op = 'trainStepAsync'
  checkFunction(op, 'fn', fn)
  const { signal } = readAsyncOptions(op, options)
  return inTurn(signal, () => perform(op, fn))
}

async function dataAsync(tensor: Tensor, options?: AsyncOptions): Promise<DTypeArrays[DType]> {
  const op = 'Tensor.dataAsync'
  const { signal } = readAsyncOptions(op, options)
  const { dtype, size, device } = checkTensor(op, 'this', tensor)
  refuseInCapture(op, 'it waits for the device')
  const handle = share(handleOf(tensor))
  const read = () => {
    const data = allocateArray(op, dtype, size)
    native.toData(handle, data)
    return data
  }
  try {
    throwIfAborted(signal)
    if (hasHostMemory(device) && native.isSettled(handle)) {
      const data = read()
      await turnIfDue()
      return data
    }
    return await inTurn(signal, async () => {
      if (!hasHostMemory(device)) await perform(op, () => {}, signal)
      return read()
    })
  } finally {
    native.release(handle)
  }
}

declare module '../tensor/tensor.js' {
  interface Tensor<D extends DType> {
    /**
     * A copy of the values, as {@link Tensor.dataSync}, without keeping the event loop waiting: at once if they are
     * there, else after the asynchronous calls before. Errors: DISPOSED, also if the call that computes them failed;
     * OUT_OF_MEMORY.
     *
     * @example
     * ```ts
     * const y = await new Linear(4, 2).forwardAsync(ones([1, 4]))
     * console.log((await y.dataAsync()).length) // → 2
     * ```
     */
    dataAsync(options?: AsyncOptions): Promise<DTypeArrays[D]>
  }
}

asMethods({ dataAsync: dataAsync as Parameters<typeof asMethods<'dataAsync'>>[0]['dataAsync'] })
