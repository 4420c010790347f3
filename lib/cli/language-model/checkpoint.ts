import { statSync } from 'node:fs'
import { join } from 'node:path'
import { type CheckpointProgress, type CheckpointTargets, loadCheckpoint, MoeError } from '../../index.js'
import { Failure } from '../errors.js'
import { asFlags } from '../memory.js'
import { type ModelOptions, weightBytes } from './model.js'
import { checkpointIn, runName } from './saved-run.js'

/** Refuses a model that is larger than the checkpoint of its run, before it takes any memory. */
export function checkHolds(folder: string, model: ModelOptions): void {
  const [file, needed] = [checkpointIn(folder), weightBytes(model)]
  const { size } = statSync(file)
  if (needed <= size) return
  const { layers, dim, experts, context } = model
  const described = `${join(folder, runName)} describes (${asFlags({ layers, dim, experts, context })})`
  throw new Failure(`${file} has ${size} bytes, the model that ${described} at least ${needed}`)
}

/** Restores a run. In an error about another model the names of all tensors would not be read. */
export async function restore(folder: string, targets: CheckpointTargets): Promise<CheckpointProgress> {
  try {
    return await loadCheckpoint(checkpointIn(folder), targets)
  } catch (error) {
    if (!(error instanceof MoeError && error.code === 'STATE_DICT')) throw error
    throw new Failure(`${checkpointIn(folder)} does not hold the model that ${join(folder, runName)} describes`)
  }
}
