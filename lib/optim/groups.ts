import { Parameter } from '../nn/parameter.js'
import { checkOptions, fail, listed, showName } from '../runtime/check.js'
import { show } from '../runtime/errors.js'
import { checkTensor } from '../tensor/tensor.js'

/** The parameters of a group. */
export interface GroupMembers {
  /** In the order of the constructor's argument, without duplicates. */
  readonly params: readonly Parameter[]
}

/** Parameters of an optimizer that share options, which may be set between steps: `optimizer.groups[0].lr = …`. */
export type ParameterGroup<O = object> = GroupMembers & O

/** The parameters of a group, as an argument. */
export interface GivenMembers {
  /** Such as `model.parameters()`. */
  params: Iterable<Parameter>
}

/** What an optimizer updates: parameters, or groups of parameters with options of their own. */
export type OptimizerParameters<O = object> = Iterable<Parameter> | Iterable<GivenMembers & O>

/** Checks the options of one group. `prefix` names it in errors. */
export type CheckOptions = (op: string, source: object, prefix: string) => object

/** How errors name an option of group i of `count`. */
export const prefixOf = (i: number, count: number): string => (count === 1 ? '' : `groups[${i}].`)

/** The groups of a constructor's argument; `options` are those that a group does not override. */
export function readGroups(op: string, params: unknown, options: object, check: CheckOptions): ParameterGroup[] {
  const given = entriesOf(op, 'params', 'parameters, such as model.parameters(), or groups of them', params)
  const isGroup = (entry: unknown): entry is { params: unknown } =>
    typeof entry === 'object' && entry !== null && !(entry instanceof Parameter) && Object.hasOwn(entry, 'params')
  if (!given.some(isGroup)) return expectAny(op, [groupOf(distinct(op, '', given), check(op, options, ''))])
  const owner = new Map<Parameter, number>()
  const groups = given.map((entry, i) => {
    const prefix = prefixOf(i, given.length)
    if (!isGroup(entry))
      return fail('OPTION', op, `groups[${i}] must be { params, … } like the others, got ${show(entry)}`)
    const { params, ...own } = checkOptions<Record<string, unknown>>(op, entry, ['params', ...Object.keys(options)])
    const members = distinct(op, prefix, entriesOf(op, `${prefix}params`, 'parameters', params))
    for (const [at, parameter] of members.entries()) {
      const other = owner.get(parameter)
      if (other !== undefined)
        fail('OPTION', op, `${prefix}params[${at}] is in groups[${other}] too: a parameter belongs to one group`)
      owner.set(parameter, i)
    }
    return groupOf(members, check(op, { ...options, ...own }, prefix))
  })
  return expectAny(op, groups)
}

function expectAny(op: string, groups: ParameterGroup[]): ParameterGroup[] {
  if (groups.every(({ params }) => params.length === 0))
    fail(
      'OPTION',
      op,
      'there is no parameter to update. A Module finds layers in its properties, and in arrays, plain objects and Maps there, ' +
        'but not in a Set or a #private field; an iterator returns parameters only once',
    )
  return groups
}

function entriesOf(op: string, name: string, expected: string, value: unknown): unknown[] {
  if (typeof value !== 'object' || value === null || typeof (value as unknown[])[Symbol.iterator] !== 'function')
    fail('OPTION', op, `${name} must be ${expected}, got ${show(value)}`)
  const entries: unknown[] = []
  for (const entry of value as Iterable<unknown>) {
    entries.push(entry)
    if (typeof entry !== 'object' || entry === null) break // an error, also in an iterable without end
  }
  return entries
}

function distinct(op: string, prefix: string, entries: readonly unknown[]): Parameter[] {
  const found = new Set<Parameter>()
  for (const parameter of entries) {
    const name = `${prefix}parameter ${found.size}`
    if (!(parameter instanceof Parameter)) fail('OPTION', op, `${name} must be a Parameter, got ${show(parameter)}`)
    checkTensor(op, name, parameter)
    found.add(parameter)
  }
  return [...found]
}

/** Sealed: a misspelled option is an exception. */
const groupOf = (params: readonly Parameter[], options: object): ParameterGroup =>
  Object.seal(
    Object.defineProperty({ ...options }, 'params', { value: Object.freeze(params), enumerable: true }),
  ) as ParameterGroup

const same = (a: unknown, b: unknown): boolean =>
  Object.is(a, b) ||
  (Array.isArray(a) && Array.isArray(b) && a.length === b.length && a.every((value, i) => Object.is(value, b[i])))

/** Gives `target` an accessor per option: it reads the value that all groups have, and sets that of all. */
export function shareOptions(
  op: string,
  target: object,
  groups: readonly ParameterGroup[],
  names: readonly string[],
): void {
  for (const name of names) {
    const values = () => groups.map((group) => (group as unknown as Record<string, unknown>)[name])
    Object.defineProperty(target, name, {
      enumerable: true,
      get() {
        const [first, ...others] = values()
        if (others.every((value) => same(value, first))) return first
        return fail('OPTION', op, `${name} differs between groups, got ${show(values())}: read groups[i].${name}`)
      },
      set(value: unknown) {
        for (const group of groups) Object.assign(group, { [name]: value })
      },
    })
  }
}

/** What a checkpoint says of groups: the options of each with its number of parameters. */
export const savedGroups = (groups: readonly { params: readonly Parameter[]; options: object }[]): unknown =>
  groups.map(({ params, options }) => ({ parameters: params.length, ...options }))

/**
 * The options of {@link savedGroups} for these groups; `misfit` throws what does not fit. Earlier versions saved the
 * options of a single group alone, without its number of parameters.
 */
export function restoredGroups(
  op: string,
  saved: unknown,
  groups: readonly ParameterGroup[],
  check: CheckOptions,
  misfit: (problems: readonly string[]) => never,
): object[] {
  const counted = Array.isArray(saved)
  const given = counted ? saved : [saved]
  if (given.length !== groups.length)
    return misfit([`options are of ${given.length} groups, the optimizer has ${groups.length}`])
  return given.map((entry: unknown, i) => {
    const prefix = prefixOf(i, groups.length)
    if (typeof entry !== 'object' || entry === null)
      return misfit([`${prefix}options must be an object, got ${show(entry)}`])
    const { parameters, ...own } = entry as Record<string, unknown>
    const { length } = groups[i].params
    if (counted && parameters !== length)
      return misfit([`${prefix}options are of ${show(parameters)} parameters, the group has ${length}`])
    const options = counted ? own : entry
    let checked: object
    try {
      checked = check(op, options, prefix)
    } catch (error) {
      return misfit([`option ${(error as Error).message.slice(op.length + 3)}`])
    }
    const unexpected = Object.keys(options).filter((name) => !Object.hasOwn(checked, name))
    return unexpected.length === 0
      ? checked
      : misfit(unexpected.map((name) => `unexpected: option ${prefix}${showName(name)}`))
  })
}

/** One error of several problems. */
export const misfits = (op: string, what: string, problems: readonly string[]): never =>
  fail('STATE_DICT', op, `${what} does not fit, nothing was changed:${listed(problems)}`)
