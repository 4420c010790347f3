import { setImmediate } from 'node:timers/promises'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import {
  defaultGenerator,
  type GeneratorState,
  getDefaultDevice,
  getNumThreads,
  memory,
  setDefaultDevice,
  setNumThreads,
} from '../../lib/index.js'

// Files that share a process start alike: with the settings of its start, and without the garbage of the file before.

interface Start {
  threads: number
  device: ReturnType<typeof getDefaultDevice>
  random: GeneratorState
}

const { process: shared } = globalThis as unknown as { process: { stMoeStart?: Start } }
shared.stMoeStart ??= { threads: getNumThreads(), device: getDefaultDevice(), random: defaultGenerator.toJSON() }
setNumThreads(shared.stMoeStart.threads)
setDefaultDevice(shared.stMoeStart.device)
defaultGenerator.setState(shared.stMoeStart.random)
setFlagsFromString('--expose-gc')
const collect: () => void = runInNewContext('gc')
// Finalizers free tensors, some of them in each turn: until no more are freed, what a test counts would change.
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
