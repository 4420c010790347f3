import type { HookHandle } from '../autograd/context.js'
import type { Parameter } from '../nn/parameter.js'

/** Parameters of which each has one process that updates it. */
export interface SharedUpdates {
  /** Whether this process updates a parameter. */
  owns(parameter: Parameter): boolean
  /** After an update: gives every process all parameters. */
  share(): void
}

const shared = new WeakMap<Parameter, SharedUpdates>()

/** From now on the step of an optimizer updates a parameter in one process alone. */
export function shareUpdates(parameter: Parameter, updates: SharedUpdates): HookHandle {
  shared.set(parameter, updates)
  return { remove: () => void shared.delete(parameter) }
}

/** Whether this process updates a parameter. */
export const isOwn = (parameter: Parameter): boolean => shared.get(parameter)?.owns(parameter) ?? true

/** Those of some parameters, in order, each once. */
export const sharedUpdatesOf = (parameters: readonly Parameter[]): SharedUpdates[] => [
  ...new Set(parameters.flatMap((parameter) => shared.get(parameter) ?? [])),
]
