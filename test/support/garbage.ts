import { setImmediate } from 'node:timers/promises'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import { memory } from '../../lib/index.js'

setFlagsFromString('--expose-gc')
const collect: () => void = runInNewContext('gc')

/** Until finalizers, which free some tensors in each turn, free no more. */
export async function collectGarbage(): Promise<void> {
  for (let freed = true; freed && memory().tensors > 0; ) {
    freed = false
    collect()
    for (let before = memory().tensors, calm = 0; calm < 2; ) {
      await setImmediate()
      const now = memory().tensors
      calm = now < before ? 0 : calm + 1
      if (now < before) freed = true
      before = now
    }
  }
}
