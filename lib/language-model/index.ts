export { type BytePair, BytePairTokenizer } from './byte-pair.js'
export {
  type LoadLanguageModelOptions,
  loadLanguageModel,
  type SaveLanguageModelOptions,
  saveLanguageModel,
} from './folder.js'
export type { GenerateOptions } from './generate.js'
export { LanguageModel, type LanguageModelLayer, type LanguageModelResult } from './model.js'
export type { LanguageModelOptions, LanguageModelShape, LanguageModelSizes } from './model-options.js'
export { CharacterTokenizer, type TokenDecoder, type Tokenizer } from './tokenizer.js'
