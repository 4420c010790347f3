import { join } from 'node:path'
import { fail, showName } from '../runtime/check.js'
import { show } from '../runtime/errors.js'
import { call, described, runSync, unless } from './files.js'
import { readJson } from './json.js'
import { headerIn } from './tensor-file.js'

/** Names of the tensors in the files of a model: of one file, or of several with an index. */
export interface Contents {
  names: readonly string[]
  /** The files that hold the names that pass. Errors: FILE_FORMAT. */
  filesWith(isWanted: (name: string) => boolean): string[]
}

function exists(op: string, path: string): boolean {
  try {
    return runSync(unless(['ENOENT'], call('stat', path))) !== null
  } catch (error) {
    throw described(op, `cannot read ${path}`, error)
  }
}

/** Reads the index, or the header of the only file. Errors: FILE_FORMAT, FILE_SYSTEM. */
export function contentsOf(op: string, folder: string): Contents {
  const path = join(folder, 'model.safetensors.index.json')
  if (!exists(op, path)) {
    const file = join(folder, 'model.safetensors')
    return { names: runSync(headerIn(op, file)).entries.map(({ name }) => name), filesWith: () => [file] }
  }
  const map = (readJson(op, path) as { weight_map?: unknown } | null)?.weight_map
  if (typeof map !== 'object' || map === null) fail('FILE_FORMAT', op, `${path}: weight_map must be an object`)
  const names = Object.keys(map)
  const fileOf = (name: string): string => {
    const file: unknown = (map as Record<string, unknown>)[name]
    if (typeof file === 'string' && /^[\w.-]+$/.test(file)) return join(folder, file)
    const text = `the file of ${showName(name)} must be a name without a folder, got ${show(file)}`
    return fail('FILE_FORMAT', op, `${path}: ${text}`)
  }
  return { names, filesWith: (isWanted) => [...new Set(names.filter(isWanted).map(fileOf))] }
}

/** Tensors that may be missing before their names are worth a list. */
const listable = 1000

/**
 * Rejects a layer that the model does not have, and sizes that need far more tensors than it has, before their names are
 * made. `names` those of the model, `router` of layer N after `model.layers.{N}.`, `count` what a layer needs. Errors:
 * STATE_DICT.
 */
export function checkLayer(
  op: string,
  folder: string,
  names: readonly string[],
  layer: number,
  router: string,
  count: number,
): void {
  const layers = new Set<number>()
  let held = 0
  for (const name of names) {
    const [, number, rest] = /^model\.layers\.(0|[1-9]\d{0,8})\.(.*)$/s.exec(name) ?? []
    if (rest === router) layers.add(Number(number))
    if (Number(number) === layer) held++
  }
  if (layers.size > 0 && !layers.has(layer))
    fail('STATE_DICT', op, `layer ${layer} of ${folder} has no experts: ${ranges(layers)}`)
  if (count > 2 * held + listable)
    fail(
      'STATE_DICT',
      op,
      `${folder} does not fit: its config.json describes ${count} tensors of layer ${layer}, and it holds ${held}`,
    )
}

const maxRanges = 10

/** Such as `layers 1, 3 to 5 have experts`. */
function ranges(layers: ReadonlySet<number>): string {
  const sorted = [...layers].sort((a, b) => a - b)
  if (sorted.length === 1) return `layer ${sorted[0]} has experts`
  const firsts = sorted.filter((layer) => !layers.has(layer - 1))
  const lasts = sorted.filter((layer) => !layers.has(layer + 1))
  const texts = firsts.map((first, i) => (first === lasts[i] ? `${first}` : `${first} to ${lasts[i]}`))
  const more = texts.length > maxRanges ? ` and ${texts.length - maxRanges} more ranges` : ''
  return `layers ${texts.slice(0, maxRanges).join(', ')}${more} have experts`
}
