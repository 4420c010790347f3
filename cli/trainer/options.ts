import { kebabCase, type LanguageModelSizes, languageModelOptions, maxMerges } from '../../language-model/index.js'
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

/** Options of the layers, as MoEOptions declares them. */
export const layerFlags = {
  router: wordOf(languageModelOptions.router, { help: 'how tokens get their experts', refused: ['expertChoice'] }),
  'second-policy': wordOf(languageModelOptions.secondPolicy, {
    help: 'which second and later experts of topk are used',
  }),
  'score-function': wordOf(languageModelOptions.scoreFunction, { help: 'what gates are made of' }),
  dropless: toggle('no capacity: nothing is dropped'),
  activation: wordOf(languageModelOptions.activation, { help: 'of the experts' }),
  'expert-hidden-dim': optionalNumber({ help: 'hidden size of an expert', shown: '8/3 of --dim', min: 1 }),
  'shared-experts': integerOf(languageModelOptions.sharedExperts, { help: 'experts that every token visits' }),
}

/** The options of a run; a resumed run reads them from its folder. */
export const runFlags = {
  steps: number({ help: 'training steps', default: 2000, min: 1 }),
  minutes: number({ help: 'stop after this time, to resume later; 0: no limit', default: 0, min: 0, real: true }),
  seed: number({ help: 'random seed of initialization, data order and routing', default: 1, min: 0 }),
  device: deviceFlag,
  threads: threadsFlag,
  'compute-dtype': computeDtypeFlag,
  layers: integerOf(languageModelOptions.layers, { help: 'transformer layers' }),
  dim: integerOf(languageModelOptions.dim, {
    help: 'model dimension (also --width), a multiple of --heads',
    alias: 'width',
  }),
  heads: integerOf(languageModelOptions.heads, { help: 'attention heads' }),
  experts: integerOf(languageModelOptions.experts, { help: 'experts per layer' }),
  'top-n': integerOf(languageModelOptions.topN, { help: 'experts per token of topk' }),
  ...layerFlags,
  'vocab-size': optionalNumber({
    help: 'byte-pair tokens, trained on the text',
    shown: 'each character a token',
    min: 257,
    max: 256 + maxMerges,
  }),
  context: integerOf(languageModelOptions.context, { help: 'tokens per sequence' }),
  batch: number({ help: 'sequences per step', default: 16, min: 1 }),
  lr: number({ help: 'highest learning rate', default: 4e-3, min: 0, real: true }),
  'evaluate-every': number({ help: 'steps between evaluations on the held-out text', default: 200, min: 1 }),
}

export type RunOptions = Values<typeof runFlags>

/** Options that may change when a run is resumed. More steps stretch the rest of the learning rate
 * schedule, and a new --lr is its highest rate from then on. */
export const mayChange: ReadonlySet<string> = new Set(['steps', 'minutes', 'lr', 'threads', 'evaluate-every', 'device'])

/** Options of `--router topk` alone. */
const ofTopk: ReadonlySet<string> = new Set(['top-n', 'second-policy'])

/** The options that the model has. */
export const usedOptions = ({ router }: Pick<RunOptions, 'router'>): string[] =>
  Object.keys(runFlags).filter((name) => router === 'topk' || !ofTopk.has(name))

/** The batches of a run. */
export const batchesOptions = ({ seed, context, batch }: Pick<RunOptions, 'seed' | 'context' | 'batch'>) => ({
  seed,
  context,
  batch,
})

/** The model of a run. */
export const modelSizes = (options: RunOptions): LanguageModelSizes =>
  Object.fromEntries(
    Object.keys(languageModelOptions).map((name) => [name, options[kebabCase(name) as keyof RunOptions] ?? undefined]),
  )
