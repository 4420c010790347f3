// Memory of two emulated GPUs of 16 MB besides the workspace of cuBLAS (SIMT_DEVICES, SIMT_MEMORY_MB), which this thread and
// another share. Prints what was not as it should be. SIMT_TRACE names a file where the emulator writes what it does.
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { isMainThread, parentPort, Worker } from 'node:worker_threads'
import { captureStep, emptyCache, memory, ones, scope, setMemoryLimit, tensor, zeros } from '../../dist/index.js'

const device = 'cuda:0'
const megabytes = (count) => zeros([count * 2 ** 18], { device })
const wrong = []
const expect = (name, got, wanted) => {
  if (JSON.stringify(got) !== JSON.stringify(wanted))
    wrong.push(`${name}: ${JSON.stringify(got)}, not ${JSON.stringify(wanted)}`)
}
/** What the emulator does during a call. */
function counted(fn) {
  const lines = () => readFileSync(process.env.SIMT_TRACE, 'utf8').split('\n').slice(0, -1)
  const before = lines().length
  const value = fn()
  const counts = {}
  for (const line of lines().slice(before)) counts[line] = (counts[line] ?? 0) + 1
  return { value, counts }
}
const failure = (fn) => {
  try {
    fn().dispose()
    return 'none'
  } catch (error) {
    return error.message
  }
}

async function otherThread() {
  megabytes(9).dispose() // kept by this thread
  parentPort.postMessage('kept')
  await once(parentPort, 'message')
  parentPort.postMessage(failure(() => megabytes(9))) // the limit of the other thread
  await once(parentPort, 'message') // the device stays open until then
}

async function twoThreads() {
  const worker = new Worker(new URL(import.meta.url))
  worker.on('error', (error) => wrong.push(`thread: ${error.stack}`))
  await once(worker, 'message')
  expect(
    'memory that another thread keeps',
    failure(() => megabytes(9)),
    'none',
  )
  setMemoryLimit(device, 40 * 2 ** 20)
  worker.postMessage('')
  const [limited] = await once(worker, 'message')
  if (!/its limit is 41943040$/.test(limited)) wrong.push(`a limit of all threads: ${limited}`)
  setMemoryLimit(device, Infinity)
  worker.postMessage('')
  await once(worker, 'exit')
}

/** Values that an op of one GPU has not computed yet, read by an op of the other; their memory is used again at once. */
function betweenGpus() {
  const make = () => {
    const x = tensor([1, 2, 3, 4], null, { device })
    const y = x.mul(2).add(1)
    const z = y.to('cuda:1')
    for (const freed of [x, y]) freed.dispose()
    for (let i = 0; i < 4; i++) zeros([4], { device }).dispose()
    return z.square()
  }
  make().dispose() // makes streams and events
  const { value, counts } = counted(make)
  expect('copies between GPUs', counts.copy, 2) // one from the host
  expect('waits of a copy between GPUs', counts.wait, undefined)
  expect('values of the other GPU', [value.device, ...value.dataSync()], ['cuda:1', 9, 25, 49, 81])
  const back = value.to(device)
  expect('values that came back', [...back.dataSync()], [9, 25, 49, 81])
  const source = tensor([5, 6], null, { device })
  const copy = source.to('cuda:1')
  source.dispose()
  expect('what takes its memory', [...tensor([7, 8], null, { device }).dataSync()], [7, 8]) // before the copy has run
  expect('a copy whose source is gone', [...copy.dataSync()], [5, 6])
  expect('an empty tensor', zeros([0, 3], { device }).to('cuda:1').shape, [0, 3])
}

function cache() {
  megabytes(1).dispose()
  emptyCache()
  const cached = () => memory().devices[device].cachedBytes
  const empty = cached()
  megabytes(4).dispose()
  expect('bytes that are kept', cached() - empty, 4 * 2 ** 20)
  const { counts } = counted(() => megabytes(4).dispose())
  expect('allocations of memory that is kept', counts.allocation, undefined)
  expect(
    'a smaller block than the one that is kept',
    counted(() => megabytes(3.75).dispose()).counts.allocation,
    undefined,
  )
  expect('a much smaller one', counted(() => megabytes(1).dispose()).counts.allocation, 1)
  emptyCache('cuda:1')
  expect('the cache of the other GPU is another', cached() - empty, 5 * 2 ** 20)
  emptyCache(device)
  expect('bytes after emptyCache', cached(), empty)
  for (const size of [5, 9, 3, 11])
    expect(
      `${size} MB after other sizes`,
      failure(() => megabytes(size)),
      'none',
    )
  const full = failure(() => megabytes(17))
  if (
    !/of the GPU \d+ of 50331648 bytes are free; this process uses \d+, after its cache of \d{8} was emptied$/.test(
      full,
    )
  )
    wrong.push(`a full GPU: ${full}`)
}

/** Memory is kept, emptied and short while a step is captured. */
function capture() {
  megabytes(6).dispose()
  const x = ones([4], { device })
  const step = captureStep(
    () => {
      emptyCache()
      const y = megabytes(7).add(1).sum()
      return x.mul(y)
    },
    { device },
  )
  const replay = () => [...step.replay().dataSync()]
  const value = 7 * 2 ** 18
  expect('a captured step', replay(), [value, value, value, value])
  megabytes(1).dispose()
  emptyCache()
  expect('its memory after emptyCache', replay(), [value, value, value, value])
  if (!/not enough memory/.test(failure(() => megabytes(15)))) wrong.push('the memory of a step was given away')
  step.dispose()
  expect(
    'memory after a step',
    failure(() => megabytes(15)),
    'none',
  )
}

if (isMainThread) {
  scope(() => ones([2, 2], { device }).matmul(ones([2, 2], { device }))) // makes the workspace
  cache()
  betweenGpus()
  capture()
  await twoThreads()
  console.log(JSON.stringify({ wrong }))
} else {
  await otherThread()
}
