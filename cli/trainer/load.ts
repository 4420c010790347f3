import { CharacterTokenizer, type LanguageModel, loadLanguageModel } from '../../language-model/index.js'
import { MoeError, setNumThreads } from '../../lib/index.js'
import { asFailure, UsageError, useDevice } from '../errors.js'

/** The model of a run folder. */
export async function loadModel(
  folder: string,
  { device, threads }: { device: string; threads: number | null },
): Promise<LanguageModel> {
  if (threads !== null) setNumThreads(threads)
  useDevice(device)
  try {
    return await loadLanguageModel(folder)
  } catch (error) {
    throw asFailure(error)
  }
}

/** The prompt that is given, if the model has tokens for it; by default a new line. */
export function promptFor({ tokenizer }: LanguageModel, given: string | null): string {
  if (given === null)
    return tokenizer instanceof CharacterTokenizer && !tokenizer.vocabulary.includes('\n')
      ? tokenizer.vocabulary[0]
      : '\n'
  try {
    tokenizer.encode(given)
    return given
  } catch (error) {
    if (!(error instanceof MoeError)) throw error
    throw new UsageError(`--prompt${error.message.slice(`[${error.op}] text`.length)}`)
  }
}
