import { MoE, type MoEOptions, MoeError, moeOptions, type ProcessGroup, utils } from '../lib/index.js'
import { checkTokenizer, type Tokenizer } from './tokenizer.js'

const { boolean, integer, optional } = utils

/**
 * Every option of a {@link LanguageModel} but its tokenizer, as data: default, range or words, and check. They are of the
 * transformer, and of {@link MoE} in each of its layers.
 *
 * @example
 * ```ts
 * console.log(languageModelOptions.experts.default, languageModelOptions.experts.max) // → 8 4096
 * ```
 */
export const languageModelOptions = {
  /** Tokens that the model sees at once. Default 128. */
  context: integer({ min: 4, default: 128 }),
  /** Layers of attention and experts. Default 3. */
  layers: integer({ min: 1, max: 1024, default: 3 }),
  /** D, a multiple of `heads`. Default 128. */
  dim: integer({ min: 1, default: 128 }),
  /** Heads of attention. Default 4. */
  heads: integer({ min: 1, default: 4 }),
  /** Experts per layer. Default 8. */
  experts: integer({ min: 1, max: 4096, default: 8 }),
  /** Experts per token of `router: 'topk'`. Default 2. */
  topN: integer({ min: 1, default: 2 }),
  /** As of {@link MoE}, without 'expertChoice', whose experts choose by later tokens. Default 'topk'. */
  router: moeOptions.router,
  /** Which second and later experts of 'topk' are used, in training and evaluation. Default 'random'. */
  secondPolicy: moeOptions.secondPolicyTrain,
  /** As of {@link MoE}. Default 'softmax'. */
  scoreFunction: moeOptions.scoreFunction,
  /** As of {@link MoE}. Default false. */
  dropless: boolean({ default: false }),
  /** As of {@link MoE}. Default 'geglu'. */
  activation: utils.oneOf(moeOptions.activation.allowed, { default: moeOptions.activation.default }),
  /** As of {@link MoE}. Default: 8/3 of `dim`. */
  expertHiddenDim: optional(integer({ min: 1 })),
  /** As of {@link MoE}, at most 4096. Default 0. */
  sharedExperts: integer({ min: moeOptions.sharedExperts.min, max: 4096, default: 0 }),
  /** 'bf16', 'bf16x3' or 'f16' rounds the operands of GEMMs. Default 'f32'. */
  computeDtype: utils.oneOf(['f32', 'bf16', 'bf16x3', 'f16'], { default: 'f32' }),
}

/** What a {@link LanguageModel} is made of, besides its tokens. */
export interface LanguageModelSizes extends utils.OptionsOf<typeof languageModelOptions> {}

/** {@link LanguageModelSizes} with their defaults. */
export interface LanguageModelShape extends utils.ValuesOf<[typeof languageModelOptions]> {}

/** Options of {@link LanguageModel}. */
export interface LanguageModelOptions extends LanguageModelSizes {
  /** How text becomes tokens. */
  tokenizer: Tokenizer
  /** As of {@link MoE}: its ranks share out the experts of each layer, and all call the model. By default one process has all. */
  processGroup?: ProcessGroup
}

/**
 * The name of an option in run.json, and of its flag.
 *
 * @example
 * ```ts
 * console.log(kebabCase('expertHiddenDim')) // → expert-hidden-dim
 * ```
 */
export const kebabCase = (name: string): string => name.replaceAll(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)

const readSizes = utils.reader(languageModelOptions)
const readAll = utils.reader(languageModelOptions, {
  tokenizer: utils.unchecked<Tokenizer>(),
  processGroup: moeOptions.processGroup,
})

/** Checked, with defaults. Errors: OPTION. */
export function readModelSizes(op: string, given: LanguageModelSizes): LanguageModelShape {
  const sizes = readSizes(op, given)
  checkTogether(op, sizes)
  return sizes
}

export function readModelOptions(
  op: string,
  given: LanguageModelOptions,
): { sizes: LanguageModelShape; tokenizer: Tokenizer; processGroup?: ProcessGroup } {
  const { tokenizer, processGroup, ...sizes } = readAll(op, given)
  checkTogether(op, sizes)
  return { sizes, tokenizer: checkTokenizer(op, tokenizer), processGroup }
}

function checkTogether(op: string, sizes: LanguageModelShape): void {
  const { dim, heads, experts, topN, router } = sizes
  if (dim % heads !== 0) utils.fail('OPTION', op, `dim must be a multiple of heads, got ${dim} and ${heads}`)
  if (router === 'topk' && topN > experts)
    utils.fail('OPTION', op, `topN must be at most experts, got ${topN} and ${experts}`)
  if (router === 'expertChoice')
    utils.fail(
      'OPTION',
      op,
      'router expertChoice is not for a language model: what a token visits would depend on later tokens',
    )
  try {
    MoE.checkOptions(layerOptions(sizes))
  } catch (error) {
    if (!(error instanceof MoeError)) throw error
    const text = error.message.slice(`[${error.op}] `.length).replaceAll(/\w+/g, (word) => ofLayer[word] ?? word)
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
export const expertsPerToken = ({ router, topN }: Pick<LanguageModelShape, 'router' | 'topN'>): number =>
  router === 'topk' ? topN : 1

const passedOn = {
  dim: languageModelOptions.dim,
  computeDtype: languageModelOptions.computeDtype,
  router: languageModelOptions.router,
  dropless: languageModelOptions.dropless,
  scoreFunction: languageModelOptions.scoreFunction,
  activation: languageModelOptions.activation,
  expertHiddenDim: languageModelOptions.expertHiddenDim,
  sharedExperts: languageModelOptions.sharedExperts,
}

/** The options of the experts of a layer. */
export function layerOptions(sizes: LanguageModelShape): MoEOptions {
  const { experts, topN, router, dropless, secondPolicy } = sizes
  return {
    ...utils.pick(sizes, passedOn),
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
