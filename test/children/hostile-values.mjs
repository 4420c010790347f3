// Values that no careful program would pass. Every throwing getter or callback throws an Error, so that whatever
// else is thrown is the package's fault.

/** mulberry32: small, seeded, good enough to choose test values. */
export function randomSource(seed) {
  let state = seed >>> 0
  return () => {
    state = (state + 0x6d2b79f5) | 0
    let t = Math.imul(state ^ (state >>> 15), 1 | state)
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32
  }
}

const optionNames = (
  'dtype device requiresGrad generator retainGraph strict heads causal scale bias mult dim numExperts gatingTopN topN numGates ' +
  'thresholdTrain thresholdEval threshold capacityFactorTrain capacityFactorEval capacityFactor capacity balanceLossCoef ' +
  'routerZLossCoef noiseGates noiseMult differentiableTopk balanceDensity gateNormalization secondPolicy secondPolicyTrain minExpertCapacity eps experts expertHiddenMult computeDtype onNonFinite ' +
  'allowVarSeqLen processGroup straightThroughDispatchTensor straightThrough addFfBefore addFfAfter random uniforms gumbelUniforms ' +
  'mask stats lr betas weightDecay momentum ignoreIndex metadata model optimizer step extra expertIndex gate kept position weight ' +
  'numExperts w1 b1 multBias w2 b2 seed shape size then constructor __proto__'
).split(' ')

const strings = [
  '',
  'x',
  'cpu',
  'cuda',
  'cuda:0',
  'f32',
  'f64',
  'bf16',
  'f16',
  'i32',
  'throw',
  'kept',
  '\0',
  'y'.repeat(5000),
]
const smallNumbers = [0, 1, 2, 3, 4, 8, 0.5, 1e-9]
const oddNumbers = [
  -0,
  -1,
  1.5,
  Number.NaN,
  Infinity,
  -Infinity,
  1e308,
  -1e308,
  2 ** 36,
  2 ** 40,
  2 ** 46,
  2 ** 53,
  -(2 ** 31),
]
/** Sizes that a machine may really have memory for: only where the process is limited. */
const largeNumbers = [2 ** 32, 2 ** 32 + 1]

const failing = () => {
  throw new Error('thrown by the caller')
}

/** `live()` returns one of the caller's own objects, which hostile getters also dispose. */
export function hostileValues(random, live, limited) {
  const pick = (list) => list[Math.floor(random() * list.length)]
  const numbers = [...smallNumbers, ...smallNumbers, ...oddNumbers, ...(limited ? largeNumbers : [])]
  const number = () => pick(numbers)
  const meddle = (value) => {
    const target = live()
    if (typeof target?.dispose === 'function') target.dispose()
    return value
  }

  const bags = () => {
    const bag = {}
    for (let i = Math.floor(random() * 5); i > 0; i--) {
      const name = pick(optionNames)
      const kind = random()
      const value = any(1)
      if (kind < 0.8) Reflect.defineProperty(bag, name, { value, enumerable: true, configurable: true, writable: true })
      else Reflect.defineProperty(bag, name, { get: kind < 0.9 ? failing : () => meddle(value), enumerable: true })
    }
    return bag
  }

  const detached = () => {
    const array = new Float32Array(8)
    structuredClone(array.buffer, { transfer: [array.buffer] })
    return array
  }

  const typedArrays = [
    () => new Float32Array(pick([0, 1, 6, 8, 64])),
    () => new Float64Array(pick([0, 1, 6, 8])),
    () => new Int32Array([1, 0, 2, -1, 5, 3]),
    () => new Uint16Array(6),
    () => new Uint8Array(6),
    () => new Uint8ClampedArray(2),
    () => new Int8Array(3),
    () => new Uint32Array(4),
    () => new BigInt64Array(4),
    () => new DataView(new ArrayBuffer(8)),
    () => new ArrayBuffer(24),
    () => new Float32Array(new SharedArrayBuffer(24)),
    () => new Float32Array(new ArrayBuffer(24, { maxByteLength: 64 })),
    () => new Float32Array(new ArrayBuffer(32), 4, 3),
    () => Buffer.from('text'),
    detached,
    () => Object.defineProperty(new Float32Array(4), 'length', { value: pick([3, 1e6, 2 ** 33]) }),
    () => Object.defineProperty(detached(), 'buffer', { value: new ArrayBuffer(32) }),
    () => Object.defineProperty(new Float32Array(new SharedArrayBuffer(24)), 'buffer', { value: new ArrayBuffer(24) }),
    () =>
      new (class extends Float32Array {
        get length() {
          meddle()
          return 2 ** 20
        }
        get byteLength() {
          return 2 ** 22
        }
        static get [Symbol.species]() {
          return Array
        }
      })(6),
    () =>
      Object.defineProperty(new Int8Array(4), Symbol.iterator, {
        *value() {
          for (;;) yield 1
        },
      }),
  ]

  const shapes = () =>
    Array.from({ length: Math.floor(random() * 4) }, () => (random() < 0.8 ? pick([1, 2, 3, 4, 8]) : number()))

  const arrays = [
    shapes,
    shapes,
    () => [],
    () => [2, 3],
    () => [[1, 2], [3]],
    () => [
      [1, 2],
      [3, 4],
    ],
    () => new Array(5),
    () => new Array(1e6),
    () => Array(20).fill(1),
    () => Array(2000).fill(Array(2000).fill(0)),
    () => Array.from({ length: 3 }, () => any(2)),
    () => Object.defineProperty([2, 3], 0, { get: failing }),
    () => Object.defineProperty([2, 3], pick([0, 1]), { get: () => meddle(pick([2, 3, 2 ** 40])) }),
    () =>
      Object.defineProperty([2, 3], Symbol.iterator, {
        *value() {
          for (;;) yield 1
        },
      }),
    () =>
      new Proxy([2, 3], {
        get: (target, key) => (key === 'length' ? pick([2, 1e5, Number.NaN, -1, '3']) : Reflect.get(target, key)),
      }),
    () =>
      new (class extends Array {
        static get [Symbol.species]() {
          return failing()
        }
      })(1, 2, 3),
    () => {
      const deep = []
      let at = deep
      for (let i = 0; i < 50_000; i++) at = at[0] = []
      return deep
    },
  ]

  const revoked = (target) => {
    const { proxy, revoke } = Proxy.revocable(target, {})
    revoke()
    return proxy
  }
  const allTraps = () =>
    new Proxy(
      {},
      Object.fromEntries(
        ['get', 'set', 'has', 'ownKeys', 'getPrototypeOf', 'getOwnPropertyDescriptor', 'defineProperty'].map((name) => [
          name,
          failing,
        ]),
      ),
    )

  const objects = [
    bags,
    bags,
    bags,
    () => ({}),
    () => Object.create(null),
    () => Object.freeze(bags()),
    () => revoked({}),
    () => revoked([]),
    () => revoked(() => {}),
    allTraps,
    () => new Proxy(live() ?? {}, {}),
    () => Object.create(live() ?? null),
    () => new Map([[any(2), live()]]),
    () => new Set([live()]),
    () => new Date(),
    () => /x/,
    () => new Error('an error'),
    () => Promise.resolve(1),
    () => Object.defineProperty({}, 'then', { value: failing }),
    () => new WeakMap(),
    () => globalThis,
    () => Object.assign(Object.create({ shape: [2, 3], dtype: 'f32' }), { disposed: false }),
    () => ({ [Symbol.iterator]: failing, [Symbol.toPrimitive]: failing, toString: failing }),
    () => new (class Tensor {})(),
    () => [live()][Symbol.iterator](),
  ]

  const functions = [
    () => () => {},
    () => () => 1,
    () => (x) => x,
    () => () => live(),
    () => () => any(2),
    () => failing,
    () => async () => live(),
    () => async () => failing(),
    () => meddle,
    () => (x) => void x?.dispose?.(),
    () => class {},
    () => function* () {},
    () => new Proxy(() => live(), {}),
  ]

  function any(depth = 0) {
    const kind = random()
    if (kind < 0.35) return live()
    if (kind < 0.5) return number()
    if (kind < 0.56) return pick(strings)
    if (kind < 0.6) return pick([undefined, null, true, false, 10n, Symbol('s')])
    if (depth > 2) return number()
    if (kind < 0.7) return pick(arrays)()
    if (kind < 0.8) return pick(typedArrays)()
    if (kind < 0.92) return pick(objects)()
    return pick(functions)()
  }

  return { any, number, pick, shapes }
}
