import { type MoEOptions, readOptions as readLayerOptions } from '../nn/moe-options.js'
import { fail } from '../runtime/check.js'
import { MoeError } from '../runtime/errors.js'
import { pick, reader, unchecked } from '../runtime/options.js'
import {
  type LanguageModelOptions,
  type LanguageModelShape,
  type LanguageModelSizes,
  modelOptions,
} from './model-options.js'
import { checkTokenizer, type Tokenizer } from './tokenizer.js'

const readSizes = reader(modelOptions)
const readAll = reader(modelOptions, { tokenizer: unchecked<Tokenizer>() })

export type Sizes = LanguageModelShape

/** Checked, with defaults. Errors: OPTION. */
export function readModelSizes(op: string, given: LanguageModelSizes): Sizes {
  const sizes = readSizes(op, given)
  checkTogether(op, sizes)
  return sizes
}

export function readModelOptions(op: string, given: LanguageModelOptions): Sizes & { tokenizer: Tokenizer } {
  const { tokenizer, ...sizes } = readAll(op, given)
  checkTogether(op, sizes)
  return { ...sizes, tokenizer: checkTokenizer(op, tokenizer) }
}

function checkTogether(op: string, sizes: Sizes): void {
  const { dim, heads, experts, topN, router } = sizes
  if (dim % heads !== 0) fail('OPTION', op, `dim must be a multiple of heads, got ${dim} and ${heads}`)
  if (router === 'topk' && topN > experts)
    fail('OPTION', op, `topN must be at most experts, got ${topN} and ${experts}`)
  if (router === 'expertChoice')
    fail(
      'OPTION',
      op,
      'router expertChoice is not for a language model: what a token visits would depend on later tokens',
    )
  try {
    readLayerOptions(op, moeOptions(sizes))
  } catch (error) {
    if (!(error instanceof MoeError)) throw error
    const text = error.message.slice(`[${op}] `.length).replaceAll(/\w+/g, (word) => ofLayer[word] ?? word)
    throw new MoeError(error.code, op, text)
  }
}

/** Options of {@link MoE} under other names. */
const ofLayer: Readonly<Record<string, string>> = Object.assign(Object.create(null), {
  gatingTopN: 'topN',
  numExperts: 'experts',
  secondPolicyTrain: 'secondPolicy',
})

/** K, experts per token: other routers than 'topk' have one. */
export const expertsPerToken = ({ router, topN }: Pick<Sizes, 'router' | 'topN'>): number =>
  router === 'topk' ? topN : 1

const passedOn = {
  dim: modelOptions.dim,
  computeDtype: modelOptions.computeDtype,
  router: modelOptions.router,
  dropless: modelOptions.dropless,
  scoreFunction: modelOptions.scoreFunction,
  activation: modelOptions.activation,
  expertHiddenDim: modelOptions.expertHiddenDim,
  sharedExperts: modelOptions.sharedExperts,
}

/** The options of the experts of a layer. */
export function moeOptions(sizes: Sizes): MoEOptions {
  const { experts, topN, router, dropless, secondPolicy } = sizes
  return {
    ...pick(sizes, passedOn),
    numExperts: experts,
    gatingTopN: topN,
    secondPolicyTrain: secondPolicy,
    secondPolicyEval: secondPolicy,
    // Routing in evaluation depends neither on random numbers, nor, with C = N, on other tokens.
    ...(router === 'topk' && secondPolicy === 'random' && { thresholdEval: 0 }),
    // Two experts per token need twice the capacity of one.
    ...(!dropless && { capacityFactorTrain: expertsPerToken(sizes), capacityFactorEval: experts }),
  }
}
