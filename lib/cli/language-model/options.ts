import { sharedOptions } from '../../nn/shared-options.js'
import { activationOptions } from '../../ops/activation.js'
import { routeOptions, routerOptions, topkOptions } from '../../ops/route-options.js'
import {
  computeDtypeFlag,
  deviceFlag,
  integerOf,
  number,
  optionalNumber,
  threadsFlag,
  toggle,
  type Values,
  wordOf,
} from '../flags.js'
import type { ModelOptions } from './model.js'

/** Options of the layers, as {@link MoEOptions} declares them. */
export const layerFlags = {
  router: wordOf(routerOptions.router, { help: 'how characters get their experts', refused: ['expertChoice'] }),
  'second-policy': wordOf(routeOptions.secondPolicy, { help: 'which second and later experts of topk are used' }),
  'score-function': wordOf(topkOptions.scoreFunction, { help: 'what gates are made of' }),
  dropless: toggle('no capacity: nothing is dropped'),
  activation: wordOf(activationOptions.activation, { help: 'of the experts' }),
  'expert-hidden-dim': optionalNumber({ help: 'hidden size of an expert', shown: '8/3 of --dim', min: 1 }),
  'shared-experts': integerOf(sharedOptions.sharedExperts, { help: 'experts that every character visits', max: 4096 }),
}

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
  'top-n': number({ help: 'experts per character of topk', default: 2, min: 1 }),
  ...layerFlags,
  context: number({ help: 'characters per sequence', default: 128, min: 4 }),
  batch: number({ help: 'sequences per step', default: 16, min: 1 }),
  lr: number({ help: 'highest learning rate', default: 4e-3, min: 0, real: true }),
  'evaluate-every': number({ help: 'steps between evaluations on the held-out text', default: 200, min: 1 }),
}

export type RunOptions = Values<typeof runFlags>

/** Options that may change when a run is resumed. More steps stretch the rest of the learning rate schedule. */
export const mayChange: ReadonlySet<string> = new Set(['steps', 'minutes', 'threads', 'evaluate-every', 'device'])

/** Options of `--router topk` alone. */
const ofTopk: ReadonlySet<string> = new Set(['top-n', 'second-policy'])

/** The options that the model has. */
export const usedOptions = ({ router }: Pick<RunOptions, 'router'>): string[] =>
  Object.keys(runFlags).filter((name) => router === 'topk' || !ofTopk.has(name))

/** Why options conflict, or null; those within a layer are in layer-options.ts. */
export function conflictOf({ dim, heads, experts, 'top-n': topN, router }: RunOptions): string | null {
  if (dim % heads !== 0) return `--dim must be a multiple of --heads, got ${dim} and ${heads}`
  if (router === 'topk' && topN > experts) return `--top-n must be at most --experts, got ${topN} and ${experts}`
  if (router === 'expertChoice')
    return '--router expertChoice is not for a language model: the experts of a character would depend on later characters'
  return null
}

export const modelOptions = (options: RunOptions, vocabulary: number): ModelOptions => ({
  ...options,
  vocabulary,
  topN: options['top-n'],
  computeDtype: options['compute-dtype'],
  secondPolicy: options['second-policy'],
  scoreFunction: options['score-function'],
  expertHiddenDim: options['expert-hidden-dim'] ?? undefined,
  sharedExperts: options['shared-experts'],
})
