import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, test } from 'vitest'
import { runSeed } from '../support/numbers.js'
import { pythonPatience } from '../support/python.js'
import { aboutOf, answers, drawAnswers, dtypes, filesIn, pythonOf, wrongIn } from '../support/python-answers.js'
import { scriptRunner } from '../support/python-scripts.js'

// New answers of Python; ST_MOE_SEED=<n> draws others. test/nn/answers.test.ts compares with those in the repository.

const seed = runSeed()
const runScript = scriptRunner()
/** Large modules are not mixed with those of the others. */
const runWithModules = scriptRunner()

test.for(answers)(`$name: $samples samples (seed ${seed})`, { timeout: pythonPatience }, async (row, context) => {
  const python = pythonOf(row, context)
  const folder = mkdtempSync(join(tmpdir(), 'st-moe-answers-'))
  try {
    await drawAnswers(row, row.modules ? runWithModules : runScript, python, seed, folder)
    const files = filesIn(folder)
    expect(files.length).toBe(row.samples * (row.seeds ?? 1))
    for (const file of files)
      for (const dtype of dtypes) {
        const path = join(folder, file)
        expect(wrongIn(row, path, dtype), `${file} ${dtype} ${aboutOf(path)}`).toEqual([])
      }
  } finally {
    rmSync(folder, { recursive: true })
  }
})
