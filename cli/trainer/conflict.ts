import { kebabCase, LanguageModel, type LanguageModelSizes, languageModelOptions } from '../../language-model/index.js'
import { MoeError } from '../../lib/index.js'

/** Why the model refuses options, with their flags for names, or null. */
export function conflictOf(sizes: LanguageModelSizes): string | null {
  try {
    LanguageModel.checkOptions(sizes)
    return null
  } catch (error) {
    if (!(error instanceof MoeError && error.code === 'OPTION')) throw error
    return error.message
      .slice(`[${error.op}] `.length)
      .replaceAll(/\w+/g, (word) => (Object.hasOwn(languageModelOptions, word) ? `--${kebabCase(word)}` : word))
  }
}
