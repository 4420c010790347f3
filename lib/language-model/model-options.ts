import { sharedOptions } from '../nn/shared-options.js'
import { activationOptions } from '../ops/activation.js'
import { routeOptions, routerOptions, topkOptions } from '../ops/route-options.js'
import { computeDTypes } from '../runtime/dtype.js'
import { boolean, integer, type OptionsOf, oneOf, optional, type ValuesOf } from '../runtime/options.js'
import type { Tokenizer } from './tokenizer.js'

/** Of the transformer, and of {@link MoE} in each of its layers. */
export const modelOptions = {
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
  router: routerOptions.router,
  /** Which second and later experts of 'topk' are used, in training and evaluation. Default 'random'. */
  secondPolicy: routeOptions.secondPolicy,
  /** As of {@link MoE}. Default 'softmax'. */
  scoreFunction: topkOptions.scoreFunction,
  /** As of {@link MoE}. Default false. */
  dropless: boolean({ default: false }),
  /** As of {@link MoE}. Default 'geglu'. */
  activation: activationOptions.activation,
  /** As of {@link MoE}. Default: 8/3 of `dim`. */
  expertHiddenDim: optional(integer({ min: 1 })),
  /** As of {@link MoE}, at most 4096. Default 0. */
  sharedExperts: integer({ min: sharedOptions.sharedExperts.min, max: 4096, default: 0 }),
  /** 'bf16', 'bf16x3' or 'f16' rounds the operands of GEMMs. Default 'f32'. */
  computeDtype: oneOf(computeDTypes, { default: 'f32' }),
}

/** What a {@link LanguageModel} is made of, besides its tokens. */
export interface LanguageModelSizes extends OptionsOf<typeof modelOptions> {}

/** {@link LanguageModelSizes} with their defaults. */
export interface LanguageModelShape extends ValuesOf<[typeof modelOptions]> {}

/** Options of {@link LanguageModel}. */
export interface LanguageModelOptions extends LanguageModelSizes {
  /** How text becomes tokens. */
  tokenizer: Tokenizer
}

/** The name of an option in run.json, and of its flag. */
export const kebabCase = (name: string): string => name.replaceAll(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)
