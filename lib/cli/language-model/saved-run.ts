import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { Failure } from '../errors.js'
import { type RunOptions, runFlags } from './options.js'

/** What a folder tells about its run, besides the checkpoint. */
export interface SavedRun {
  options: RunOptions
  text: { path: string; name: string; digest: string; vocabulary: string[] }
}

const checkpointName = 'checkpoint.safetensors'
export const runName = 'run.json'

export const checkpointIn = (folder: string): string => join(folder, checkpointName)

/** What is known of the run in a folder that has a checkpoint. */
export function readRun(folder: string): SavedRun {
  if (!existsSync(checkpointIn(folder))) throw new Failure(`there is no run in ${folder}: st-moe train makes one`)
  const file = join(folder, runName)
  let saved: unknown
  try {
    saved = JSON.parse(readFileSync(file, 'utf8'))
  } catch (error) {
    throw new Failure(`${file} cannot be read: ${(error as Error).message}`)
  }
  if (!isSavedRun(saved)) throw new Failure(`${file} does not describe a run of this version of st-moe train`)
  return saved
}

function isSavedRun(value: unknown): value is SavedRun {
  const { options, text } = (value ?? {}) as Partial<SavedRun>
  const isOption = (name: string): boolean => {
    const [saved, usual] = [options?.[name as keyof RunOptions], runFlags[name as keyof RunOptions].default]
    return typeof saved === typeof usual || (usual === null && typeof saved === 'number')
  }
  const isText = (word: unknown): boolean => typeof word === 'string'
  return (
    Object.keys(runFlags).every(isOption) &&
    [text?.path, text?.name, text?.digest].every(isText) &&
    Array.isArray(text?.vocabulary) &&
    text.vocabulary.every(isText)
  )
}
