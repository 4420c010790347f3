import { mkdtempSync, readdirSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { describe, expect, test } from 'vitest'
import { loadSafetensorsSync } from '../../lib/index.js'
import { checkMeshCase } from '../support/mesh-case.js'
import { runSeed } from '../support/numbers.js'
import { pythonPatience, pythonWith, runScript } from '../support/python.js'

const folder = fileURLToPath(new URL('../golden/mesh', import.meta.url))
const files = readdirSync(folder)
const dtypes = ['f32', 'f64'] as const

test('there are cases', () => expect(files.length).toBe(67))

describe.each(files)('%s', (file) => {
  test.each(dtypes)('%s', (dtype) => {
    const findings = checkMeshCase(join(folder, file), dtype)
    expect(findings.length).toBeGreaterThan(4)
    expect(findings.filter(({ error, limit }) => !(error <= limit))).toEqual([])
  })
})

// Against the package itself: ST_MOE_PYTHON names a Python that has test/python/mesh-requirements.txt.
const seed = runSeed()
const samples = 40

test(`${samples} random configurations (seed ${seed})`, { timeout: pythonPatience }, (context) => {
  const found = pythonWith(['tensorflow', 'mesh_tensorflow', 'gin', 'safetensors'])
  if ('reason' in found) return context.skip(found.reason)
  const sampled = mkdtempSync(join(tmpdir(), 'st-moe-mesh-'))
  try {
    runScript(found.python, 'mesh.py', sampled, '--samples', String(samples), '--seed', String(seed))
    expect(readdirSync(sampled).length).toBe(samples)
    for (const file of readdirSync(sampled))
      for (const dtype of dtypes) {
        const bad = checkMeshCase(join(sampled, file), dtype).filter(({ error, limit }) => !(error <= limit))
        const { mode, config } = loadSafetensorsSync(join(sampled, file)).metadata
        expect(bad, `${file} ${dtype} ${mode} ${config}`).toEqual([])
      }
  } finally {
    rmSync(sampled, { recursive: true })
  }
})
