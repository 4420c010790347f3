import type { ExpertShare } from './expert-share.js'
import type { Module } from './module.js'
import { RoutedExperts } from './routed-experts.js'
import { SoftExperts } from './soft-experts.js'

/** The experts of a model that ranks share out, each with the share of this rank. */
export const sharedOut = (model: Module): { module: Module; share: ExpertShare }[] =>
  [...model.modules()].flatMap((module) => {
    const { share } = module instanceof RoutedExperts || module instanceof SoftExperts ? module : { share: null }
    return share ? [{ module, share }] : []
  })
