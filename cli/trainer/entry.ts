import type { RoutingStats } from '../../lib/index.js'
import { mean } from '../numbers.js'
import type { HistoryEntry } from './history.js'

/** What a history records of the loss and the routers of a step. */
export const entryOf = (
  loss: number,
  layers: readonly RoutingStats[],
): Pick<HistoryEntry, 'loss' | 'dropped' | 'load'> => ({
  loss,
  dropped: mean(layers.map(({ droppedTokens }) => droppedTokens)),
  load: layers.map(({ firstChoicePerExpert }) => sharesOf(firstChoicePerExpert)),
})

function sharesOf(counts: readonly number[]): number[] {
  const total = counts.reduce((a, b) => a + b, 0)
  return counts.map((count) => count / total)
}
