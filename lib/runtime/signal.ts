import { fail } from './check.js'
import { show } from './errors.js'
import { optional } from './options.js'

/** What an AbortSignal has, for programs that compile without the types of Node and of browsers. */
export interface AbortSignalLike {
  /** Whether it has been aborted. */
  readonly aborted: boolean
  /** What promises then reject with. */
  readonly reason: unknown
  /** As of an AbortSignal. */
  addEventListener(type: 'abort', listener: () => void, options?: { once?: boolean }): void
  /** As of an AbortSignal. */
  removeEventListener(type: 'abort', listener: () => void): void
}

/**
 * The option of an AbortSignal, which may be absent. Errors: OPTION for anything else.
 *
 * @example
 * ```ts
 * const read = utils.reader({ signal: utils.abortSignal() })
 * console.log(read('wait', { signal: AbortSignal.timeout(1000) }).signal?.aborted) // → false
 * ```
 */
export const abortSignal = () =>
  optional<AbortSignalLike>({
    check: (op, name, value) =>
      value instanceof AbortSignal ? value : fail('OPTION', op, `${name} must be an AbortSignal, got ${show(value)}`),
  })

export function throwIfAborted(signal: AbortSignalLike | undefined): void {
  if (signal?.aborted) throw signal.reason
}
