// Failing allocations for ../out-of-memory.mjs. On the CPU those of the addon, by the Node addon of
// test/native/failing_allocations.cc, and those of JavaScript's typed arrays and buffers, counted together; on the emulator
// those of the device.
import { getNumThreads, memory, setDefaultDevice, zeros } from '../../../dist/index.js'

const addon = { exports: {} }
process.dlopen(addon, process.argv[2])
const faults = addon.exports
getNumThreads() // loads the addon
if (faults.install('/st_moe.node') === 0) throw new Error('the addon allocates in ways that cannot be made to fail')

/** Arrays of up to 64 bytes are on V8's own heap: where that ends, the process does. */
const ownHeap = 64

function failing(bytes) {
  if (bytes > ownHeap && faults.nextFails()) throw new RangeError('Array buffer allocation failed')
}

/** The bytes that a typed array of these arguments has of its own. */
function bytesOf(type, [first]) {
  if (typeof first === 'number') return first * (type.BYTES_PER_ELEMENT ?? 1)
  if (first instanceof ArrayBuffer || typeof first !== 'object' || first === null) return 0
  return (first.length ?? 0) * type.BYTES_PER_ELEMENT
}

for (const name of ['ArrayBuffer', 'Float32Array', 'Float64Array', 'Int32Array', 'Uint16Array', 'Uint8Array']) {
  const type = globalThis[name]
  globalThis[name] = new Proxy(type, {
    construct(target, args, newTarget) {
      failing(bytesOf(type, args))
      return Reflect.construct(target, args, newTarget === globalThis[name] ? target : newTarget)
    },
    get(target, key) {
      if (key !== 'from' && key !== 'of') return Reflect.get(target, key)
      return (...args) => {
        failing(key === 'of' ? args.length * type.BYTES_PER_ELEMENT : bytesOf(type, args))
        return target[key](...args)
      }
    },
  })
}

for (const name of ['alloc', 'allocUnsafe', 'from', 'concat']) {
  const own = Buffer[name]
  Buffer[name] = (...args) => {
    const [first] = args
    failing(typeof first === 'number' ? first : first instanceof ArrayBuffer ? 0 : (first.length ?? 0))
    return own.apply(Buffer, args)
  }
}

const device = process.argv[3]
setDefaultDevice(device)

const long = process.env.ST_MOE_TEST_LONG === '1'

/** Whether all allocations from n on fail, or, before a release, also only the n-th: that tells less. */
export const modes = device === 'cpu' && long ? [true, false] : [true]
/** From one n to the next: before a release each. */
export const stride = long ? 1 : 13

function arm(n, forever) {
  if (device === 'cpu') faults.arm(n, forever)
  else process.env.SIMT_FULL_AT = String(n)
}

function disarm() {
  delete process.env.SIMT_FULL_AT
  return faults.disarm()
}

/** Calls `fn` with allocation n failing, or all from n on; says whether it came to that. */
export async function withFailing(n, forever, fn) {
  arm(n, forever)
  try {
    const value = await fn()
    return { value, fired: disarm() >= n }
  } catch (error) {
    return { error, fired: disarm() >= n || device !== 'cpu' }
  }
}

const fillers = []

/**
 * What was freed before serves no allocation to come: the cache is given back, and all slots of the table of tensors
 * are taken, so that the next one makes it grow.
 */
export function emptyCaches() {
  if (device !== 'cpu') return
  faults.arm(1, true)
  try {
    zeros([2 ** 25, 7])
  } catch {
    // what gives the cache back
  }
  faults.disarm()
  fillers[0] ??= zeros([1])
  for (let grown = false; !grown; ) {
    faults.arm(0, false)
    fillers.push(fillers[0].detach())
    grown = faults.disarm() > 0
  }
}

/** Live tensors and bytes on each device, without those that take up slots; copies of weights count as bytes. */
export function used(bytesToo = true) {
  const { devices } = memory()
  return Object.entries(devices).map(([device, { tensors, bytes }]) => {
    const fill = device === 'cpu' ? fillers.length : 0
    const count = `${device}: ${tensors - fill} tensors`
    return bytesToo ? `${count}, ${bytes - (fill > 0 ? 4 : 0)} bytes` : count
  })
}
