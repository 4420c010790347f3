import { join } from 'node:path'
import { type CheckpointProgress, type CheckpointTargets, loadCheckpoint, MoeError } from '../../index.js'
import { Failure } from '../errors.js'
import { checkpointIn, runName } from './saved-run.js'

/** Restores a run. In an error about another model the names of all tensors would not be read. */
export async function restore(folder: string, targets: CheckpointTargets): Promise<CheckpointProgress> {
  const file = checkpointIn(folder)
  try {
    return await loadCheckpoint(file, targets)
  } catch (error) {
    if (!(error instanceof MoeError && error.code === 'STATE_DICT')) throw error
    throw new Failure(`${file} does not hold the model that ${join(folder, runName)} describes`)
  }
}
