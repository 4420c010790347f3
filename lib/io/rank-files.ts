import { randomBytes } from 'node:crypto'
import { join } from 'node:path'
import { scope } from '../autograd/scope.js'
import type { StateDict } from '../nn/state.js'
import { allGather } from '../ops/all-gather.js'
import { fail } from '../runtime/check.js'
import { bytesOf } from '../runtime/dtype.js'
import { MoeError, type MoeErrorCode, show } from '../runtime/errors.js'
import type { ProcessGroup } from '../runtime/process-group.js'
import { tensor } from '../tensor/create.js'
import { type NewFile, writeTogether } from './atomic.js'
import { call, quietly, type Routine, run } from './files.js'
import { jsonIn } from './json.js'
import { makeFolder } from './make-folder.js'
import { isRankFile, rankIndexIn, removeSaves } from './rank-folder.js'
import type { LoadedTensors, SafetensorsHeader, TensorInfo } from './safetensors.js'
import { contentsIn, encode, load } from './tensor-file.js'

/**
 * A checkpoint that several ranks write: a file of each, and an index as that of Hugging Face's models, which rank 0 writes
 * last. The names of the files are new each time, so the earlier checkpoint is whole until the index is replaced.
 */

/** What one rank has to say to the others. */
type Said = { error: string; code: MoeErrorCode } | { text: string }

/** What each rank says, and what this one failed with. */
interface Told {
  said: readonly Said[]
  failure?: unknown
}

function tell(group: ProcessGroup, own: () => string): Told {
  let failure: unknown
  let said: Said
  try {
    said = { text: own() }
  } catch (error) {
    failure = error
    said = { error: (error as Error).message, code: error instanceof MoeError ? error.code : 'FILE_SYSTEM' }
  }
  return { said: textsOf(group, JSON.stringify(said)).map((text) => JSON.parse(text) as Said), failure }
}

/** The texts of all ranks. An error of one is an error of all, which names it. */
function textsIn(op: string, { said, failure }: Told): string[] {
  if (failure) throw failure
  return said.map((each, rank) =>
    'error' in each ? fail(each.code, op, `rank ${rank} failed: ${each.error}`) : each.text,
  )
}

function textsOf(group: ProcessGroup, text: string): string[] {
  if (group.size === 1) return [text]
  const bytes = Buffer.from(text)
  return scope(() => {
    const numbers = (values: Int32Array) => tensor(values, [values.length], { device: 'cpu' })
    const splits = [...allGather(numbers(Int32Array.of(bytes.length)), group).dataSync()]
    const all = Buffer.from(allGather(numbers(Int32Array.from(bytes)), group, { splits }).dataSync())
    let at = 0
    return splits.map((length) => {
      at += length
      return all.subarray(at - length, at).toString()
    })
  })
}

interface Collected {
  state: StateDict
  metadata: Record<string, string>
}

/** Each tensor to the rank with the fewest bytes of those that have it. */
function writersOf(lists: readonly Record<string, number>[]): Map<string, number> {
  const loads = lists.map(() => 0)
  const writers = new Map<string, number>()
  for (const name of [...new Set(lists.flatMap((list) => Object.keys(list)))].sort()) {
    const ranks = lists.flatMap((list, rank) => (Object.hasOwn(list, name) ? [rank] : []))
    const writer = ranks.reduce((best, rank) => (loads[rank] < loads[best] ? rank : best))
    loads[writer] += lists[writer][name]
    writers.set(name, writer)
  }
  return writers
}

/** Writes what ranks collect, each tensor once, and `files` of rank 0 with the index. All ranks call it, and wait for it. */
export async function writeRanks(
  op: string,
  { folder, group, files }: { folder: string; group: ProcessGroup; files: readonly NewFile[] },
  collect: () => Collected,
): Promise<void> {
  const { rank, size } = group
  const made = scope(() => {
    let own: Collected = { state: {}, metadata: {} }
    const told = tell(group, () => {
      own = collect()
      const tensors = Object.fromEntries(Object.entries(own.state).map(([name, value]) => [name, bytesOf(value)]))
      return JSON.stringify({ tensors, save: randomBytes(4).toString('hex') })
    })
    const lists = textsIn(op, told).map((text) => JSON.parse(text) as { tensors: Record<string, number>; save: string })
    const sizes = lists.map(({ tensors }) => tensors)
    const writers = writersOf(sizes)
    const number = (n: number): string => String(n).padStart(5, '0')
    const fileOf = (r: number) => `checkpoint-${lists[0].save}-${number(r + 1)}-of-${number(size)}.safetensors`
    const state = Object.fromEntries(Object.entries(own.state).filter(([name]) => writers.get(name) === rank))
    const total = [...writers].reduce((sum, [name, writer]) => sum + sizes[writer][name], 0)
    const map = Object.fromEntries([...writers].map(([name, writer]) => [name, fileOf(writer)]))
    const index = { metadata: { ...own.metadata, total_size: total }, weight_map: map }
    return {
      file: fileOf(rank),
      save: lists[0].save,
      parts: tried(() => [...encode(op, state, {}).parts]),
      index: JSON.stringify(index, null, 1),
    }
  })
  const path = join(folder, made.file)
  const written = await failureOf(async () => {
    const parts = made.parts()
    makeFolder(folder)
    await writeTogether([{ path, parts }], op)
  })
  const told = tell(group, () => orThrow(written))
  // If a rank is lost instead, this one cannot know whether rank 0 goes on: the file stays.
  if (told.said.some((each) => 'error' in each)) await run(quietly(call('unlink', path)))
  textsIn(op, told)
  const indexed = await failureOf(async () => {
    if (rank !== 0) return
    await writeTogether([...files, { path: rankIndexIn(folder), parts: [Buffer.from(made.index)] }], op)
    await removeSaves(folder, made.save)
  })
  textsIn(
    op,
    tell(group, () => orThrow(indexed)),
  )
}

/** Calls a function now; the returned one returns what it did, or throws what it threw. */
function tried<T>(fn: () => T): () => T {
  try {
    const value = fn()
    return () => value
  } catch (error) {
    return () => {
      throw error
    }
  }
}

/** What a function fails with; undefined if it does not. */
const failureOf = (fn: () => Promise<void>): Promise<unknown> =>
  fn().then(
    () => undefined,
    (error: unknown) => error,
  )

function orThrow(failure: unknown): string {
  if (failure) throw failure
  return ''
}

function* isFolder(path: string): Routine<boolean> {
  try {
    return (yield* call('stat', path)).isDirectory()
  } catch {
    return false
  }
}

/** A checkpoint of several ranks: what is said with it, and its tensors. */
export interface RankFiles {
  metadata: Record<string, string>
  /** What its files say of the tensors. Errors: FILE_FORMAT, FILE_SYSTEM. */
  contents(): Routine<SafetensorsHeader>
  /** Those whose names pass. Errors: FILE_FORMAT, FILE_SYSTEM, STATE_DICT. */
  load(isWanted: (name: string) => boolean): Routine<LoadedTensors>
}

/** Null where the path is not a folder. Errors: FILE_FORMAT, FILE_SYSTEM. */
export function* rankFilesIn(op: string, folder: string): Routine<RankFiles | null> {
  if (!(yield* isFolder(folder))) return null
  const path = rankIndexIn(folder)
  const wrong = (text: string): never => fail('FILE_FORMAT', op, `${path}: ${text}`)
  const { metadata, weight_map: map } = ((yield* jsonIn(op, path)) ?? {}) as {
    metadata?: unknown
    weight_map?: unknown
  }
  const isObject = (value: unknown): value is Record<string, unknown> => typeof value === 'object' && value !== null
  if (!isObject(map) || !isObject(metadata)) return wrong('metadata and weight_map must be objects')
  const texts = Object.entries(metadata).filter((entry): entry is [string, string] => typeof entry[1] === 'string')
  const fileOf = (name: string): string => {
    const file = map[name]
    return typeof file === 'string' && isRankFile(file)
      ? file
      : wrong(`the file of ${show(name)} must be one of this checkpoint, got ${show(file)}`)
  }
  const said = Object.fromEntries(texts)
  const namesOf = (isWanted: (name: string) => boolean): Map<string, string[]> => {
    const names = new Map<string, string[]>()
    for (const name of Object.keys(map).filter(isWanted)) {
      const file = fileOf(name)
      const others = names.get(file)
      if (others) others.push(name)
      else names.set(file, [name])
    }
    return names
  }
  return {
    metadata: said,
    *contents() {
      const tensors: [string, TensorInfo][] = []
      for (const [file, names] of namesOf(() => true)) {
        const found = (yield* contentsIn(op, join(folder, file))).tensors
        for (const name of names)
          tensors.push([name, Object.hasOwn(found, name) ? found[name] : wrong(`${file} has no ${show(name)}`)])
      }
      return { tensors: Object.fromEntries(tensors), metadata: said }
    },
    *load(isWanted) {
      const tensors: LoadedTensors['tensors'] = {}
      try {
        for (const [file, names] of namesOf(isWanted))
          Object.assign(tensors, (yield* load(op, join(folder, file), names)).tensors)
        return { tensors, metadata: said }
      } catch (error) {
        for (const each of Object.values(tensors)) each.dispose()
        throw error
      }
    },
  }
}
