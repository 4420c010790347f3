import { readdirSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import type { TestContext } from 'vitest'
import { loadSafetensorsSync } from '../../lib/index.js'
import { checkCase, type Finding, type Float } from './golden-case.js'
import { checkMeshCase } from './mesh-case.js'
import { long } from './numbers.js'
import { checkOptimizerCase } from './optimizer-case.js'
import { pythonFor, pythonWith, referencePython } from './python.js'
import type { RunScript } from './python-scripts.js'
import { checkPrinted, checkTorchCase } from './torch-case.js'
import { checkTransformersCase } from './transformers-case.js'

// What programs in Python compute, file by file: test/golden/README.md.

export interface Answers {
  /** Whose they are. */
  name: string
  /** A script of test/python: `draw SEED COUNT FOLDER` writes new files, `golden FOLDER` the committed ones. */
  script: string
  /** New files of one seed. */
  samples: number
  /** Whether the script always writes that many: its command is `draw SEED FOLDER`. */
  fixed?: boolean
  /** Seeds in a row that are drawn; 1 if not set. */
  seeds?: number
  /** Modules that are too large to be installed for a test: without them there are no new files, not even in CI. */
  modules?: string[]
  /** The files in the repository. */
  committed?: { folder: string; count: number }
  /** Comparisons that every file has at least. */
  least: number
  check(path: string, dtype: Float): Finding[]
}

const golden = (name: string) => fileURLToPath(new URL(`../golden/${name}`, import.meta.url))

export const answers: Answers[] = [
  {
    name: 'st-moe-pytorch',
    script: 'st_moe.py',
    samples: 60,
    committed: { folder: golden(''), count: 23 },
    least: 5,
    check: checkCase,
  },
  { name: 'soft-moe-pytorch', script: 'soft_moe.py', samples: 60, least: 5, check: checkCase },
  {
    name: 'Mesh TensorFlow',
    script: 'mesh.py',
    samples: 40,
    modules: ['tensorflow', 'mesh_tensorflow', 'gin', 'safetensors'],
    committed: { folder: golden('mesh'), count: 67 },
    least: 5,
    check: checkMeshCase,
  },
  {
    name: 'layers of transformers',
    script: 'open_models.py',
    samples: 8,
    fixed: true,
    seeds: long ? 2 : 1,
    committed: { folder: golden('transformers'), count: 16 },
    least: 5,
    check: checkTransformersCase,
  },
  {
    name: 'losses and attention of PyTorch',
    script: 'torch_ops.py',
    samples: 51,
    fixed: true,
    least: 2,
    check: checkTorchCase,
  },
  { name: 'printed tensors of PyTorch', script: 'printed.py', samples: 32, fixed: true, least: 1, check: checkPrinted },
  {
    name: 'schedules and Adafactor of PyTorch and transformers',
    script: 'optimizers.py',
    samples: 13,
    fixed: true,
    least: 2,
    check: checkOptimizerCase,
  },
]

export const dtypes = ['f32', 'f64'] as const

export const filesIn = (folder: string): string[] => readdirSync(folder).filter((name) => name.endsWith('.safetensors'))

/** The Python of a row; without one the test is skipped, or fails: see `pythonFor`. */
export function pythonOf({ modules }: Answers, context: TestContext): string {
  if (!modules) return pythonFor(context, referencePython())
  const found = pythonWith(modules)
  return 'python' in found ? found.python : context.skip(found.reason)
}

/** Writes the new files of a seed. */
export async function drawAnswers(
  { script, samples, fixed, seeds = 1 }: Answers,
  run: RunScript,
  python: string,
  seed: number,
  folder: string,
) {
  for (let i = 0; i < seeds; i++)
    await run(python, script, 'draw', String(seed + i), ...(fixed ? [] : [String(samples)]), folder)
}

/** Findings above their limits. */
export function wrongIn({ check, least }: Answers, path: string, dtype: Float): Finding[] {
  const findings = check(path, dtype)
  if (findings.length < least)
    return [{ name: 'comparisons that are missing', error: least - findings.length, limit: 0 }]
  return findings.filter(({ error, limit }) => !(error <= limit))
}

/** What a file is about: its metadata but for descriptions. */
export function aboutOf(path: string): string {
  const { kind, mode, name, op, config, options, forward_options } = loadSafetensorsSync(path).metadata
  return [kind, mode, name, op, config, options, forward_options].filter(Boolean).join(' ')
}
