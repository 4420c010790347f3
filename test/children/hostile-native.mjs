// Calls into the addon itself. Handles mostly have the right shape and type, so that calls get past the first checks,
// but their contents (indices!) and every other argument are anything.
import { declaredOps } from '../../scripts/native-ops.mjs'

// Sizes of all shapes: B sequences of N tokens (T in all), dimension D, E experts with H hidden and C slots, top-K,
// R rows of experts.
const sizes = { B: 2, N: 4, T: 8, D: 8, E: 3, K: 2, H: 4, J: 8, C: 4, R: 16, V: 5, I: 8, A: 3, 1: 1 }

// Arguments by function: x[BND] a float tensor of that shape, i[..] an i32 tensor, a ? after it makes it optional,
// w one that may be stored in fewer bits, f one that no other argument is, s a shape, t a path, n a number, c a count, 0 zero, m the dtype of GEMM operands, v the rows of each rank, b a
// boolean, d a typed array, r:… a Float64Array with rows of such arguments. Those of the declared ops follow from their declarations.
const signatures = {
  retain: 'x[D]',
  release: 'x[D]',
  unique: 'x[D]',
  version: 'x[D]',
  keepPacked: 'x[D]',
  memory: 'n',
  resetPeak: 'n',
  emptyCache: 'n',
  trimIdle: 'n',
  setMemoryLimit: 'n 0',
  deviceInfo: 'n',
  bf16DotSpeed: '',
  probePlugin: 't t',
  describeDevice: 't c',
  openDevice: 't c',
  toDevice: 'x[BND] 0',
  asyncBegin: '',
  asyncEnd: 'b',
  asyncDrop: '',
  asyncCancel: '',
  isSettled: 'x[D]',
  captureBegin: 'n',
  captureOutside: 'b',
  captureEnd: 'b',
  replay: 'c d',
  releaseCapture: 'c',
  lockFile: 'c',
  probeProcessLibrary: 't',
  startProcessGroup: 't n c t t b',
  newProcessGroup: 'c t d',
  processGroupBarrier: 'c',
  destroyProcessGroups: '',
  setThreads: 'n',
  getThreads: '',
  unaryKinds: '',
  binaryKinds: '',
  activations: '',
  fromData: 'd c s 0',
  toData: 'x[D] d',
  convert: 'x[BND] n',
  reshape: 'x[BND] s',
  reshapeOwned: 'x[BND] s',
  stridedRead: 'x[BND] s s n',
  stridedWrite: 'x[BND] f[BN] s c',
  binary: 'x[BND] x[D] n',
  addInPlace: 'x[BND] x[BND]',
  reduce: 'x[BND] s s n',
  norm: 'r:x[BND] n',
  clipNorm: 'r:f[BND] x[] n',
  matmul: 'x[BND] x[BDN] b b',
}

const kinds = {
  SIZE: 'c',
  SEED: 'c',
  INTEGER: 'n',
  NUMBER: 'n',
  FLAG: 'b',
  OPTIONAL_OUTPUT: 'b',
  KIND: 'n',
  COMPUTE: 'm',
  GROUP: '0',
  COUNTS: 'v',
}
const words = {
  P: 'J',
  S: 'D',
  W: 'E',
  'heads*d': 'D',
  'kv_heads*d': 'D',
  Nq: 'N',
  Nk: 'N',
  heads: 'K',
  rows: 'R',
  saved: 'J',
}

const ofElement = { i32: 'i', weight: 'w' }

function specOf({ name, macro, element, shape }) {
  if (macro === 'CREATED') return { shape: 's', dtype: 'c', device: '0' }[name]
  if (macro in kinds) return kinds[macro]
  const kind = ofElement[element] ?? (macro.endsWith('UPDATED') && name !== 'p' ? 'f' : 'x')
  const anything = shape === '...' || macro.endsWith('UPDATED')
  const letters = anything
    ? ['BND']
    : shape
        .replace('...', '')
        .split(' ')
        .map((word) => words[word] ?? word)
  return `${kind}[${letters.join('')}]${macro.startsWith('OPTIONAL') ? '?' : ''}`
}
for (const { jsName, byHand, batch, args } of declaredOps())
  if (batch && !byHand) signatures[jsName] = `r:${args.map(specOf).join(',').replace('x', 'f')}`
  else if (!byHand) signatures[jsName] = args.map(specOf).join(' ')

/** A function that makes one call; throws where the addon has a function that it does not know. */
export function nativeCaller(native, random, { any, number, pick, shapes }) {
  const names = Object.keys(native).filter((name) => name !== 'setErrorFactory')
  for (const name of names) if (!(name in signatures)) throw new Error(`no signature of ${name}`)
  const pool = new Map()

  const contents = (size) => {
    const kind = random()
    if (kind < 0.4) return Int32Array.from({ length: size }, () => Math.floor(random() * 3))
    if (kind < 0.7) return Int32Array.from({ length: size }, () => Math.floor(random() * 6) - 1)
    return Int32Array.from({ length: size }, () => pick([0, 1, -1, 2 ** 31 - 1, -(2 ** 31), 7, 100]))
  }

  const make = (kind, letters, wide) => {
    const shape = [...letters].map((letter) => sizes[letter])
    const size = shape.reduce((a, b) => a * b, 1)
    if (kind === 'i') return native.fromData(contents(size), 4, shape, 0)
    const value = pick([0, 1, 0.5, Number.NaN, Infinity, 1e30])
    const made =
      random() < 0.3
        ? native.full(shape, wide ? 1 : 0, 0, value)
        : native.random(shape, wide ? 1 : 0, 0, 1, 0, 1, Math.floor(random() * 1000), 0, 0)
    if (kind !== 'w' || random() < 0.3) return made
    try {
      return native.convert(made, pick([2, 3, 5]))
    } finally {
      native.release(made)
    }
  }

  const argument = (spec, wide, optional, replaced) => {
    if (random() < 0.03) return any()
    if (spec.startsWith('r:')) {
      const row = () =>
        spec
          .slice(2)
          .split(',')
          .map((one) => argument(one, wide, optional, replaced))
      const rows = Array.from({ length: pick([0, 1, 1, 2, 5]) }, row).flat()
      return Float64Array.from(rows, (value) => (typeof value === 'number' ? value : value === null ? 0 : Number.NaN))
    }
    if (spec.endsWith('?') && (random() < 0.9 ? !optional : random() < 0.5)) return null
    const [, kind, letters] = /^(\w)(?:\[(\w*)\])?/.exec(spec)
    if (kind === 'n') return random() < 0.7 ? pick([0, 1, 2, 3, 4, 16, 0.5]) : number()
    if (kind === 'c') return random() < 0.9 ? pick([1, 1, 2, 3, 4, 16]) : number()
    if (kind === '0') return random() < 0.9 ? 0 : number()
    if (kind === 'm') return random() < 0.9 ? (wide ? 1 : pick([0, 2, 3])) : number()
    if (kind === 't') return pick(['', '/dev/null', 'nothing.so', any()])
    if (kind === 'b') return random() < 0.5
    if (kind === 's') return random() < 0.5 ? pick([[2, 4, 8], [8, 8], [32, 8, 1], [64], [8, 1], [8]]) : shapes()
    if (kind === 'v') return new Float64Array(pick([[8], [8], [3], [1, 7], [], [-1], [NaN]]))
    if (kind === 'd') return new (pick([Float32Array, Float64Array, Int32Array, Uint16Array]))(pick([8, 64, 4, 0]))
    const key = `${kind}${letters}${wide}`
    const stale = random() < 0.02 ? [...pool.values()].at(Math.floor(random() * pool.size)) : undefined
    const handle = stale ?? pool.get(key)
    if (handle !== undefined && random() < 0.8 && kind !== 'f') return handle
    const made = make(kind, letters, wide)
    replaced.push(kind === 'f' ? made : pool.get(key))
    if (kind !== 'f') pool.set(key, made)
    return made
  }

  return (note) => {
    const name = pick(names)
    note(`native ${name}`)
    const wide = random() < 0.2
    const list = signatures[name].split(' ').filter(Boolean)
    const optional = random() < 0.5
    const replaced = []
    const values = list.map((spec) => argument(spec, wide, optional, replaced))
    if (random() < 0.03) values.length = Math.floor(random() * (values.length + 1))
    if (name === 'setThreads') values[0] = pick([1, 2, 3, any()])
    if (name === 'setMemoryLimit') values[1] = pick([0, 2 ** 40, -1, any]) // a small one would leave nothing to try
    let result
    try {
      result = native[name](...values)
    } finally {
      for (const handle of replaced) if (handle !== undefined) native.release(handle)
    }
    for (const handle of Array.isArray(result) ? result : [result]) {
      if (typeof handle === 'number' && handle >= 2 ** 24) native.release(handle)
    }
    if (random() < 0.01) for (const [key, handle] of pool) if (pool.delete(key)) native.release(handle)
    return name
  }
}
