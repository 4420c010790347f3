import { type Handle, native } from '../runtime/native.js'
import { handleOf } from '../tensor/tensor.js'
import type { Routing } from './routing.js'

/** The first sums of {@link routerStatistics}, in the order of native/core/router_statistics.h. */
export const routerSums = ['forwards', 'tokens', 'dropped', 'slots', 'entropy', 'confidence', 'logitNorm'] as const

/** Numbers that {@link routerStatistics} returns for E experts. */
export const statisticsSize = (E: number): number => routerSums.length + 3 * E

/**
 * A new handle: sums over the tokens of a routing that are not padding, of the dtype of its gates. After `routerSums`, the
 * dispatched and the top-1 assignments of each expert, and the dispatched k-th assignments, with zeros up to E. Sums of
 * logits are 0 without them.
 */
export const routerStatistics = (routing: Routing): Handle =>
  native.routerStatistics({
    expertIndex: handleOf(routing.expertIndex),
    kept: handleOf(routing.kept),
    gate: handleOf(routing.gate),
    logits: routing.logits ? handleOf(routing.logits) : null,
    mask: routing.mask ? handleOf(routing.mask) : null,
    E: routing.numExperts,
    C: routing.capacity,
  })
