/**
 * Small language models with a mixture of experts in every layer: the model that `st-moe train` trains, its tokenizers and
 * folders, and the parts of its training loop. Import every name from `st-moe/language-model`.
 *
 * @packageDocumentation
 */

export { type Batch, Batches, type BatchesOptions, sequencesAt } from './batches.js'
export { BytePairTokenizer, maxMerges } from './byte-pair.js'
export { type Corpus, type CorpusOptions, type CorpusProgress, loadCorpus, type Tokens } from './corpus.js'
export { evaluating, type HeldOutLossOptions, heldOutLoss } from './evaluate.js'
export {
  type LoadLanguageModelOptions,
  loadLanguageModel,
  type SaveLanguageModelOptions,
  saveLanguageModel,
} from './folder.js'
export type { GenerateOptions } from './generate.js'
export { LanguageModel, type LanguageModelLayer, type LanguageModelResult } from './model.js'
export {
  kebabCase,
  type LanguageModelOptions,
  type LanguageModelShape,
  type LanguageModelSizes,
  languageModelOptions,
} from './options.js'
export type { BytePair } from './pair-merges.js'
export {
  type ByteVocabulary,
  type CharacterVocabulary,
  describeTokenizer,
  type ModelDescription,
  RunFolder,
} from './run-folder.js'
export { memoryOptions, trainingBytes, weightBytes } from './sizes.js'
export { maxTextBytes } from './text.js'
export { availableMemory, type TokenArray } from './token-array.js'
export { CharacterTokenizer, type TokenDecoder, type Tokenizer, textOf } from './tokenizer.js'
export { makeOptimizer, makeSchedule, TrainStep } from './train-step.js'
