// Fills the address space that the process may have with tensors, frees them into the cache of the allocator, and asks for
// a tensor that fits only if the cache is given back. Prints how much the process has taken before all that.
import { readFileSync } from 'node:fs'
import { MoeError, memory, zeros } from '../../dist/index.js'

const blockBytes = 32 << 20
const block = () => zeros([blockBytes / 4])

block().dispose()
const vmPeakKb = Number(/VmPeak:\s+(\d+)/.exec(readFileSync('/proc/self/status', 'utf8'))?.[1])
const report = { vmPeakKb }
if (process.argv[2] === 'full') {
  const blocks = []
  try {
    for (;;) blocks.push(block())
  } catch (error) {
    if (!(error instanceof MoeError && error.code === 'OUT_OF_MEMORY')) throw error
  }
  for (const tensor of blocks) tensor.dispose()
  const { cachedBytes } = memory()
  const large = zeros([(blocks.length * blockBytes - cachedBytes / 2) / 4])
  Object.assign(report, { blocks: blocks.length, cachedBytes, large: large.size * 4, left: memory().cachedBytes })
}
console.log(JSON.stringify(report))
