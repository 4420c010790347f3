import { readFileSync } from 'node:fs'
import { memory, resetPeakMemory } from '../lib/index.js'
import { Layer, type LayerSizes, quickSizes } from './layer.js'

/** Prints how much memory our layer needs: see memory-suite.ts. */

const { threads, sizes } = JSON.parse(process.argv[2]) as { threads: number; sizes: LayerSizes }

/** Bytes of this process in memory: now (VmRSS) or at most (VmHWM). */
function resident(which: 'VmRSS' | 'VmHWM'): number {
  const line = readFileSync('/proc/self/status', 'utf8').match(new RegExp(`${which}:\\s+(\\d+) kB`))
  return Number(line![1]) * 1024
}

const small = new Layer(quickSizes)
small.time('forward+backward', threads)
small.dispose()

const [before, counted] = [resident('VmRSS'), memory().bytes]
const layer = new Layer(sizes)
resetPeakMemory()
layer.time('forward+backward', threads)
const parameters = [...layer.moe.parameters()].reduce((sum, { size }) => sum + size * 4, 0)
const known = 2 * parameters + 2 * layer.x.size * 4 // parameters, their gradients, those of input and output
console.log(
  JSON.stringify({
    resident: resident('VmHWM') - before - known,
    counted: memory().peakBytes - counted - known,
  }),
)
