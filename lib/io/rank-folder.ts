import { readdirSync, rmSync } from 'node:fs'
import { join } from 'node:path'

/** The names of files in a folder that ranks save. */

const pattern = /^checkpoint-[0-9a-f]{8}-\d{5}-of-\d{5}\.safetensors$/

/** Whether a name is that of the file of a rank. */
export const isRankFile = (name: string): boolean => pattern.test(name)

/** Whether it is that, or of what a save leaves that did not come to its end. */
export const isLeft = (name: string): boolean => isRankFile(name.replace(/\.[0-9a-f]{16}\.tmp$/, ''))

/**
 * The index of the checkpoint that ranks write to a folder.
 *
 * @example
 * ```ts
 * console.log(utils.rankIndexIn('run')) // → run/checkpoint.safetensors.index.json
 * ```
 */
export const rankIndexIn = (folder: string): string => join(folder, 'checkpoint.safetensors.index.json')

/**
 * Removes the checkpoint that ranks have written to a folder, if there is one, with what saves left that did not come to
 * their end. Files that cannot be removed stay.
 *
 * @example
 * ```ts
 * utils.removeRankFilesSync('run')
 * ```
 */
export function removeRankFilesSync(folder: string): void {
  try {
    rmSync(rankIndexIn(folder), { force: true })
    for (const name of readdirSync(folder)) if (isLeft(name)) rmSync(join(folder, name), { force: true })
  } catch {}
}
