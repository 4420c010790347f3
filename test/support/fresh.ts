import {
  defaultGenerator,
  type GeneratorState,
  getDefaultDevice,
  getNumThreads,
  setDefaultDevice,
  setNumThreads,
} from '../../lib/index.js'
import { collectGarbage } from './garbage.js'

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
await collectGarbage() // else what a test counts would change
