import { type MoEOptions, MoeError } from '../../index.js'
import { readOptions } from '../../nn/moe.js'

/** What the layers of the model share. Without a value an option has the default of {@link MoE}. */
export interface ExpertOptions
  extends Pick<
    MoEOptions,
    'dim' | 'computeDtype' | 'router' | 'dropless' | 'scoreFunction' | 'activation' | 'sharedExperts'
  > {
  experts: number
  topN: number
  /** In training and evaluation. */
  secondPolicy?: MoEOptions['secondPolicyTrain']
}

/** K, experts per token: other routers than 'topk' have one. */
export const expertsPerToken = ({ router = 'topk', topN }: ExpertOptions): number => (router === 'topk' ? topN : 1)

export function moeOptions(options: ExpertOptions): MoEOptions {
  const { dim, computeDtype, router, dropless, scoreFunction, activation, sharedExperts } = options
  const { experts, topN, secondPolicy = 'random' } = options
  const isTopk = router === undefined || router === 'topk'
  return {
    dim,
    computeDtype,
    router,
    dropless,
    scoreFunction,
    activation,
    sharedExperts,
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
  scoreFunction: 'score-function',
  sharedExperts: 'shared-experts',
  router: 'router',
  dropless: 'dropless',
  activation: 'activation',
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
