import { allOrNone } from '../autograd/scope.js'
import { activationOptions } from '../ops/activation.js'
import { lossOptions } from '../ops/route-options.js'
import { pick } from '../runtime/options.js'
import { ExpertChoiceGating, passedToExpertChoice } from './expert-choice-gating.js'
import { ExpertGroups, type GroupLayer } from './expert-groups.js'
import { shareOf, shareOptions } from './expert-share.js'
import { Experts, expertHiddenSize, expertOptions } from './experts.js'
import { passedToGating, TopNGating } from './gating.js'
import { gemmOptions, layerOptions } from './linear.js'
import { choiceOf, type MoEOptions, type MoEValues, secondLevel } from './moe-options.js'
import { SharedExperts } from './shared-experts.js'
import { UserExperts } from './user-experts.js'

/** The modules of a {@link MoE}. */
export interface MoEParts {
  gate: TopNGating | ExpertChoiceGating
  experts: Experts | UserExperts | ExpertGroups
  sharedExperts: SharedExperts | null
}

/** Makes the modules that checked options ask for, or none if one throws. `newLayer` makes a layer of the second level. */
export function makeParts(op: string, o: MoEValues, newLayer: (options: MoEOptions) => GroupLayer): MoEParts {
  const [numExperts, inGroup] = [o.numExperts].flat()
  const hidden = o.experts ? 0 : (o.expertHiddenDim ?? expertHiddenSize(o.dim, o.expertHiddenMult, op))
  const options = pick(o, layerOptions, gemmOptions, activationOptions, expertOptions)
  const share = shareOf(numExperts, o)
  const own = o.experts ? new UserExperts(op, o.experts, numExperts, share) : null // refuses bad ones before the gate is made
  const newGroups = (E: number) => {
    const elsewhere = new Set(share?.elsewhere())
    const layers = Array.from({ length: numExperts }, (_, i) => {
      const layer = newLayer(secondLevel(o, E)) // also those of other ranks: the next ones get the numbers after theirs
      if (!elsewhere.has(i)) return layer
      layer.dispose()
      return null
    })
    return new ExpertGroups(layers, pick(o, lossOptions), o.outputDim ?? o.dim, share)
  }
  const [gate, experts, sharedExperts] = allOrNone(() => [
    o.router !== 'expertChoice'
      ? new TopNGating({ ...pick(o, ...passedToGating), ...choiceOf(o), numGates: numExperts }, op)
      : new ExpertChoiceGating({ ...pick(o, ...passedToExpertChoice), numGates: numExperts }, op),
    inGroup !== undefined
      ? newGroups(inGroup)
      : (own ?? new Experts(numExperts, o.dim, hidden, { ...options, ...pick(o, shareOptions) })),
    o.sharedExperts
      ? new SharedExperts(o.dim, o.sharedHiddenDim ?? o.sharedExperts * hidden, o.sharedExpertGate, options)
      : null,
  ])
  return { gate, experts, sharedExperts }
}
