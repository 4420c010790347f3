import { computeDtypeFlag, deviceFlag, number, threadsFlag, type Values } from '../flags.js'
import type { ModelOptions } from './model.js'

/** The options of a run; a resumed run reads them from its folder. */
export const runFlags = {
  steps: number({ help: 'training steps', default: 2000, min: 1 }),
  minutes: number({ help: 'stop after this time, to resume later; 0: no limit', default: 0, min: 0, real: true }),
  seed: number({ help: 'random seed of initialization, data order and routing', default: 1, min: 0 }),
  device: deviceFlag,
  threads: threadsFlag,
  'compute-dtype': computeDtypeFlag,
  layers: number({ help: 'transformer layers', default: 3, min: 1, max: 1024 }),
  dim: number({ help: 'model dimension (also --width), a multiple of --heads', default: 128, min: 1, alias: 'width' }),
  heads: number({ help: 'attention heads', default: 4, min: 1 }),
  experts: number({ help: 'experts per layer', default: 8, min: 1, max: 4096 }),
  'top-n': number({ help: 'experts per character (top-k)', default: 2, min: 1 }),
  context: number({ help: 'characters per sequence', default: 128, min: 4 }),
  batch: number({ help: 'sequences per step', default: 16, min: 1 }),
  lr: number({ help: 'highest learning rate', default: 4e-3, min: 0, real: true }),
  'evaluate-every': number({ help: 'steps between evaluations on the held-out text', default: 200, min: 1 }),
}

export type RunOptions = Values<typeof runFlags>

/** Options that may change when a run is resumed. More steps stretch the rest of the learning rate schedule. */
export const mayChange: ReadonlySet<string> = new Set(['steps', 'minutes', 'threads', 'evaluate-every', 'device'])

/** Why options conflict, or null. */
export function conflictOf({ dim, heads, experts, 'top-n': topN }: RunOptions): string | null {
  if (dim % heads !== 0) return `--dim must be a multiple of --heads, got ${dim} and ${heads}`
  if (topN > experts) return `--top-n must be at most --experts, got ${topN} and ${experts}`
  return null
}

export const modelOptions = (options: RunOptions, vocabulary: number): ModelOptions => ({
  ...options,
  vocabulary,
  topN: options['top-n'],
  computeDtype: options['compute-dtype'],
})
