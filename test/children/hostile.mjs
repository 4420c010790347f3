// Calls every export of the package, and every function of the native addon, with hostile values. Arguments: seed,
// number of calls, 'limited' where the address space is. Prints what it did as JSON; the last call stands in `last-call`.
import { openSync, writeSync } from 'node:fs'
import { createRequire } from 'node:module'
import { setImmediate } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import * as api from '../../dist/index.js'
import { nativeCaller } from './hostile-native.mjs'
import { hostileValues, randomSource } from './hostile-values.mjs'

const [seed, count] = [Number(process.argv[2]), Number(process.argv[3])]
const limited = process.argv[4] === 'limited'
const random = randomSource(seed)
const log = openSync('last-call', 'w')
const problems = []
let current = ''
const report = (text) => problems.length < 20 && problems.push(text)

let pool = []
const live = () => pool[Math.floor(random() * pool.length)]
const { any, pick, number, shapes } = hostileValues(random, live, limited)

/** Fresh objects to pass around: earlier calls have disposed or disfigured the old ones. */
function refill() {
  const { nn } = api
  const x = api.randn([1, 4, 8], { requiresGrad: true })
  const moe = new nn.MoE({ dim: 8, numExperts: 3 })
  const linear = new nn.Linear(8, 3)
  const result = moe.forward(x)
  pool = [
    x,
    x.mul(2).sum(),
    api.ones([2, 3]),
    api.randn([4, 8]),
    api.ones([], { dtype: 'f64' }),
    api.ones([3, 8], { dtype: 'f64' }),
    api.tensor(new Int32Array([0, 2, 1, 3])),
    api.tensor(new Uint16Array(8), [8], { dtype: 'bf16' }),
    api.zeros([0, 8]),
    linear,
    linear.weight,
    moe,
    new nn.SparseMoEBlock(new nn.MoE({ dim: 8, numExperts: 2, noiseGates: true }), { addFfAfter: true }),
    new nn.CausalSelfAttention(8, { heads: 2 }),
    new nn.SoftMoE({ dim: 8, numSlots: 2, useLayerNorm: true }),
    new nn.Dropout(0.5),
    new nn.Embedding(5, 8),
    new api.AdamW(linear.parameters()),
    new api.SGD(moe.parameters(), { momentum: 0.9 }),
    new api.Generator(1),
    result,
    result.routing,
    result.routing.expertIndex,
    result.routing.weight,
    { w1: moe.experts.w1, b1: moe.experts.b1, multBias: moe.experts.multBias, w2: moe.experts.w2, b2: moe.experts.b2 },
    moe.forwardWithGrad(new Float32Array(32), [1, 4, 8]),
    linear.stateDict(),
  ]
}

const args = () => Array.from({ length: Math.floor(random() * 6) }, () => any())
const classes = []
const calls = []

function collect(path, value, depth) {
  if (typeof value === 'object' && value !== null && depth < 2) {
    for (const [name, entry] of Object.entries(value)) collect(`${path}.${name}`, entry, depth + 1)
  }
  if (typeof value !== 'function') return
  calls.push([path, () => Reflect.apply(value, random() < 0.7 ? undefined : any(), args())])
  if (!/^class\b/.test(Function.prototype.toString.call(value))) return
  classes.push(value)
  calls.push([`new ${path}`, () => Reflect.construct(value, args())])
  calls.push([
    `extends ${path}`,
    () => Reflect.construct(value, args(), pick([Object, Array, class extends value {}, Map])),
  ])
  for (const [where, holder] of [
    [path, value],
    [`${path}.prototype`, value.prototype],
  ]) {
    for (const key of Reflect.ownKeys(holder)) {
      const { value: method, get, set } = Reflect.getOwnPropertyDescriptor(holder, key)
      for (const fn of [method, get, set]) {
        if (typeof fn === 'function' && key !== 'constructor') {
          calls.push([`${where}.${String(key)}`, () => Reflect.apply(fn, any(), args())])
        }
      }
    }
  }
}
for (const [name, value] of Object.entries(api)) collect(name, value, 0)

/** A method of a live object, the way a program would call it. */
function callMethod() {
  const target = live()
  const names = new Set()
  for (let at = target; at && at !== Object.prototype; at = Object.getPrototypeOf(at)) {
    for (const key of Reflect.ownKeys(at)) names.add(key)
  }
  names.delete('constructor')
  const name = pick([...names])
  note(`live ${Object.getPrototypeOf(target ?? {})?.constructor?.name}.${String(name)}`)
  const method = target?.[name]
  return typeof method === 'function' ? Reflect.apply(method, target, args()) : method
}

/** Overwrites a property of a live object, or puts a getter there. */
function disfigure() {
  const target = live()
  const key = pick(Reflect.ownKeys(Object(target)))
  const value = key === 'shape' ? shapes() : random() < 0.3 ? number() : any(1)
  note(`set ${String(key)} of ${Object.getPrototypeOf(target ?? {})?.constructor?.name}`)
  if (random() < 0.7) return Reflect.set(Object(target), key, value)
  const get = () => {
    const victim = live()
    if (typeof victim?.dispose === 'function') victim.dispose()
    return value
  }
  return Reflect.defineProperty(Object(target), key, { get, configurable: true })
}

/** Samples what a module's forward gets when its hooks are hostile. */
function callHooked() {
  const target = pick(pool.filter((entry) => typeof entry?.forward === 'function'))
  note(`hooked ${target.constructor.name}`)
  const kind = pick(['registerForwardHook', 'registerForwardPreHook', 'registerFullBackwardHook'])
  const handle = target[kind](() => any())
  try {
    const y = target.forward(api.ones([1, 4, 8], { requiresGrad: random() < 0.8 }))
    const outputs = y?.outputs ?? y
    outputs?.registerHook?.(() => any())
    return outputs?.sum?.().backward()
  } finally {
    handle.remove()
  }
}

const root = fileURLToPath(new URL('../..', import.meta.url))
const native = createRequire(import.meta.url)('node-gyp-build')(root)
const callAddon = nativeCaller(native, random, { any, number, pick, shapes })
const reached = new Set()

function note(text) {
  current = text
  const line = `${text}\n`.slice(0, 200)
  writeSync(log, line.padEnd(200), 0)
}

function choose() {
  const kind = random()
  if (kind < 0.5) {
    const [name, call] = pick(calls)
    note(name)
    return call()
  }
  if (kind < 0.7) return callMethod()
  if (kind < 0.74) return disfigure()
  if (kind < 0.8) return callHooked()
  reached.add(callAddon(note))
  return undefined
}

const pending = new Set()
let thrown = 0
let slowest = { ms: 0, call: '' }
process.on('unhandledRejection', (reason) => {
  if (!(reason instanceof Error)) report(`rejected with ${typeof reason}`)
})

function track(value) {
  if (!(value instanceof Promise)) return
  pending.add(value)
  value.then(
    () => pending.delete(value),
    (reason) => {
      pending.delete(value)
      if (!(reason instanceof Error)) report(`rejected with ${typeof reason}`)
    },
  )
}

function attempt(call) {
  try {
    const value = call()
    let isPromise = false
    try {
      isPromise = value instanceof Promise
    } catch {}
    if (isPromise) track(value)
  } catch (error) {
    thrown++
    if (!(error instanceof Error)) report(`threw ${typeof error}`)
  }
}

for (let i = 0; i < count; i++) {
  if (i % 100 === 0) {
    native.asyncDrop()
    api.setNumThreads(1 + (i % 3))
    await setImmediate()
    for (const entry of pool) attempt(() => typeof entry?.dispose === 'function' && entry.dispose())
    attempt(refill)
    if (pool.length === 0) report('no fresh objects')
  }
  const start = performance.now()
  api.scope(() => attempt(choose))
  const ms = Math.round(performance.now() - start)
  if (ms > slowest.ms) slowest = { ms, call: current }
  if (current.includes('setMemoryLimit')) api.setMemoryLimit('cpu', Infinity) // else little is left to try
  const rss = process.memoryUsage.rss()
  if (rss > 4e9) {
    report(`${(rss / 1e9).toFixed(1)} GB resident after ${current}`)
    break
  }
}
note('waiting for promises')
for (let i = 0; i < 6000 && pending.size > 0; i++) await new Promise((resolve) => setTimeout(resolve, 10))
if (pending.size > 0) report(`${pending.size} promises never settled`)
const peak = process.resourceUsage().maxRSS / 1024
console.log(
  JSON.stringify({
    calls: count,
    targets: calls.length,
    thrown,
    addonReached: reached.size,
    addonFunctions: Object.keys(native).length - 1,
    slowest,
    peakMb: Math.round(peak),
    problems,
  }),
)
process.exit(problems.length === 0 ? 0 : 1)
