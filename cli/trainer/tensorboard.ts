import { SummaryWriter, tensor } from '../../lib/index.js'
import type { Report } from './progress.js'

/** Writes a run for TensorBoard: scalars of each step, and what an evaluation shows. A resumed run replaces what follows. */
export function tensorBoard(folder: string): Report {
  let writer: SummaryWriter | null = null
  let load: readonly (readonly number[])[] = []
  return (event) => {
    if (event.event === 'prepare') return // a resumed run is told after it
    if (event.event === 'resume') writer = new SummaryWriter(folder, { purgeStep: event.step + 1 })
    writer ??= new SummaryWriter(folder, { purgeStep: 0 })
    switch (event.event) {
      case 'step': {
        writer.addScalar('loss/training', event.loss, event.step)
        writer.addScalar('dropped', event.dropped, event.step)
        writer.addScalar('learning rate', event.learningRate, event.step)
        load = event.load
        return
      }
      case 'evaluation': {
        writer.addScalar('loss/held-out', event.loss, event.step)
        writer.addText('sample', event.sample, event.step)
        for (const [layer, shares] of load.entries())
          writer.addHistogram(`expert load/layer ${layer}`, shares, event.step)
        if (load.length > 0) {
          // an even share is grey
          using image = tensor(load.map((shares) => shares.map((share) => (share * shares.length) / 2)))
          writer.addImage('expert load', image, event.step)
        }
        return
      }
      case 'end':
        writer.close()
    }
  }
}
