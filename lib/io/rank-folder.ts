import { join } from 'node:path'
import { call, quietly, type Routine, run } from './files.js'

/** The files of a folder that ranks save. */

const pattern = /^checkpoint-[0-9a-f]{8}-\d{5}-of-\d{5}\.safetensors$/

/** Whether a name is that of the file of a rank. */
export const isRankFile = (name: string): boolean => pattern.test(name)

/**
 * The index of the checkpoint that ranks write to a folder.
 *
 * @example
 * ```ts
 * console.log(utils.rankIndexIn('run')) // → run/checkpoint.safetensors.index.json
 * ```
 */
export const rankIndexIn = (folder: string): string => join(folder, 'checkpoint.safetensors.index.json')

/** Removes the files of ranks, also of saves that did not come to their end, but those of `save`. What cannot be removed stays. */
export const removeSaves = (folder: string, save?: string): Promise<void> => run(quietly(removal(folder, save)))

function* removal(folder: string, save: string | undefined): Routine<void> {
  for (const name of yield* call('readdir', folder))
    if (isRankFile(name.replace(/\.[0-9a-f]{16}\.tmp$/, '')) && !name.includes(`-${save}-`))
      yield* quietly(call('unlink', join(folder, name)))
}

/**
 * Removes the checkpoint that ranks have written to a folder, if there is one, with what saves left that did not come to
 * their end. Files that cannot be removed stay.
 *
 * @example
 * ```ts
 * await utils.removeRankFiles('run')
 * ```
 */
export async function removeRankFiles(folder: string): Promise<void> {
  await run(quietly(call('unlink', rankIndexIn(folder))))
  await removeSaves(folder)
}
