import { type MoEOptions, MoeError } from '../../index.js'
import { readOptions } from '../../nn/moe-options.js'

/** Options of {@link MoE} that the model has as they are. A flag has the same name in kebab case. */
const passedOn = [
  'dim',
  'computeDtype',
  'router',
  'dropless',
  'scoreFunction',
  'activation',
  'expertHiddenDim',
  'sharedExperts',
] as const

/** What the layers of the model share. Without a value an option has the default of {@link MoE}. */
export interface ExpertOptions extends Pick<MoEOptions, (typeof passedOn)[number]> {
  experts: number
  topN: number
  /** In training and evaluation. */
  secondPolicy?: MoEOptions['secondPolicyTrain']
}

/** K, experts per token: other routers than 'topk' have one. */
export const expertsPerToken = ({ router = 'topk', topN }: ExpertOptions): number => (router === 'topk' ? topN : 1)

export function moeOptions(options: ExpertOptions): MoEOptions {
  const { router, dropless, experts, topN, secondPolicy = 'random' } = options
  const isTopk = router === undefined || router === 'topk'
  return {
    ...(Object.fromEntries(passedOn.map((name) => [name, options[name]])) as Pick<MoEOptions, 'dim'>),
    numExperts: experts,
    gatingTopN: topN,
    secondPolicyTrain: secondPolicy,
    secondPolicyEval: secondPolicy,
    // Routing in evaluation depends neither on random numbers, nor, with C = N, on later tokens.
    ...(isTopk && secondPolicy === 'random' && { thresholdEval: 0 }),
    // Two experts per token need twice the capacity of one.
    ...(!dropless && { capacityFactorTrain: expertsPerToken(options), capacityFactorEval: experts }),
  }
}

/** The flag of each option that an error of the layer may name. */
const flags: Readonly<Record<string, string>> = {
  gatingTopN: 'top-n',
  numExperts: 'experts',
  secondPolicyTrain: 'second-policy',
  ...Object.fromEntries(passedOn.map((name) => [name, name.replaceAll(/[A-Z]/g, (c) => `-${c.toLowerCase()}`)])),
}

/** Why the layer refuses options, with their flags for names, or null. */
export function layerConflict(options: ExpertOptions): string | null {
  const op = 'st-moe train'
  try {
    readOptions(op, moeOptions(options))
    return null
  } catch (error) {
    if (!(error instanceof MoeError && error.code === 'OPTION')) throw error
    return error.message
      .slice(`[${op}] `.length)
      .replaceAll(/\w+/g, (word) => (Object.hasOwn(flags, word) ? `--${flags[word]}` : word))
  }
}
