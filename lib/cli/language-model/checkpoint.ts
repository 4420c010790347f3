import { statSync } from 'node:fs'
import { join } from 'node:path'
import { type CheckpointProgress, type CheckpointTargets, loadCheckpoint, MoeError } from '../../index.js'
import { Failure } from '../errors.js'
import { asFlags } from '../memory.js'
import { type ModelOptions, sizesOf, weightBytes } from './model.js'
import { checkpointIn, runName } from './saved-run.js'

/** Rejects a model larger than the checkpoint of its run, before it allocates memory. */
export function checkHolds(folder: string, model: ModelOptions): void {
  const [file, needed] = [checkpointIn(folder), weightBytes(model)]
  const { size } = statSync(file)
  if (needed <= size) return
  const described = `the model of ${join(folder, runName)} (${asFlags(sizesOf(model))})`
  throw new Failure(`${file} has ${size} bytes, but ${described} has at least ${needed}`)
}

/** Restores a run. Replaces the list of mismatched tensor names with a short error. */
export async function restore(folder: string, targets: CheckpointTargets): Promise<CheckpointProgress> {
  try {
    return await loadCheckpoint(checkpointIn(folder), targets)
  } catch (error) {
    if (!(error instanceof MoeError && error.code === 'STATE_DICT')) throw error
    throw new Failure(`${checkpointIn(folder)} does not contain the model of ${join(folder, runName)}`)
  }
}
