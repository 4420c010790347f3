import { kebabCase, type LanguageModelSizes, modelOptions } from '../../language-model/model-options.js'
import { readModelSizes } from '../../language-model/options.js'
import { MoeError } from '../../runtime/errors.js'

/** Why the model refuses options, with their flags for names, or null. */
export function conflictOf(sizes: LanguageModelSizes): string | null {
  const op = 'st-moe train'
  try {
    readModelSizes(op, sizes)
    return null
  } catch (error) {
    if (!(error instanceof MoeError && error.code === 'OPTION')) throw error
    return error.message
      .slice(`[${op}] `.length)
      .replaceAll(/\w+/g, (word) => (Object.hasOwn(modelOptions, word) ? `--${kebabCase(word)}` : word))
  }
}
