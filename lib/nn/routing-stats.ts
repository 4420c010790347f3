import { routerStatistics, routerSums, statisticsSize } from '../ops/router-statistics.js'
import type { Routing } from '../ops/routing.js'
import { wrap } from '../tensor/tensor.js'

/**
 * What a router did with its tokens, in the same shape for each router. Padding (see {@link MoEForwardOptions.mask}) is
 * not counted.
 */
export interface RoutingStats {
  /** Dispatched assignments of each expert. */
  keptPerExpert: number[]
  /** Top-1 assignments of each expert, dispatched or dropped. */
  firstChoicePerExpert: number[]
  /** Fraction of fully dropped tokens, 0 to 1. */
  droppedTokens: number
  /**
   * [K], the fraction of tokens whose k-th expert was not used: dropped, or left out by the second policy. With expert
   * choice, whose K is E, those that expert k did not take.
   */
  droppedPerChoice: number[]
  /** Capacity utilization: dispatched assignments over slots, 0 to 1. */
  slotOccupancy: number
  /** Mean entropy of s = softmax(logits) over the experts, in nats: log E of an undecided router, 0 of a decided one. */
  routerEntropy: number
  /** Mean of the largest s, 1/E to 1. */
  routerConfidence: number
  /** Mean of ‖logits‖₂, lowered ones of `secondPlaceProb` included. */
  logitNorm: number
}

/** Of the sums of {@link routerStatistics}, of one forward or several. */
export function statsFrom(sums: ArrayLike<number>, E: number, K: number): RoutingStats {
  const list = Array.from(sums, Number)
  const [, tokens, dropped, slots, ...ofLogits] = list
  const perExpert = (part: number): number[] =>
    list.slice(routerSums.length + part * E, routerSums.length + (part + 1) * E)
  const share = (sum: number, of: number): number => sum / Math.max(1, of)
  const [keptPerExpert, firstChoicePerExpert, keptPerChoice] = [0, 1, 2].map(perExpert)
  const [routerEntropy, routerConfidence, logitNorm] = ofLogits.map((sum) => share(sum, tokens))
  return {
    keptPerExpert,
    firstChoicePerExpert,
    droppedTokens: share(dropped, tokens),
    droppedPerChoice: keptPerChoice.slice(0, K).map((kept) => share(tokens - kept, tokens)),
    slotOccupancy: share(
      keptPerExpert.reduce((sum, kept) => sum + kept, 0),
      slots,
    ),
    routerEntropy,
    routerConfidence,
    logitNorm,
  }
}

/** Of one routing. Waits for the device. */
export function statsOf(routing: Routing): RoutingStats {
  const { gate, numExperts: E, expertIndex } = routing
  const { dtype, device } = gate
  const sums = wrap(routerStatistics(routing), { shape: [statisticsSize(E)], dtype, device })
  try {
    return statsFrom(sums.dataSync(), E, expertIndex.shape[2])
  } finally {
    sums.dispose()
  }
}
