import { boolean, integer, type OptionsOf, onlyIfSet, optional } from '../runtime/options.js'

export const sharedOptions = {
  /** Experts that every token visits, with weight 1. Default 0. */
  sharedExperts: integer({ min: 0, default: 0 }),
  ...onlyIfSet('sharedExperts', {
    /** Their joint hidden size. Default: that of the routed experts, times `sharedExperts`. */
    sharedHiddenDim: optional(integer({ min: 1 })),
    /** The weight of the shared experts is sigmoid(x · w), w [D], for each token (Qwen2-MoE). Default false. */
    sharedExpertGate: boolean({ default: false }),
  }),
}

/** Options of shared experts. */
export interface SharedExpertsOptions extends OptionsOf<typeof sharedOptions> {}
