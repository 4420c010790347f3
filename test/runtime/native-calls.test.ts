import { afterEach, describe, expect, test } from 'vitest'
import { type DType, dtypeCode } from '../../lib/runtime/dtype.js'
import { type Handle, native } from '../../lib/runtime/native.js'
import { type DeclaredArgument, type DeclaredOp, declaredOps } from '../../scripts/native-ops.mjs'
import { live } from '../support/baseline.js'
import { emptyPlugin, emptyPluginBuilt } from '../support/emulator.js'

// The addon as lib/ calls it: what it does with handles, versions and arguments that do not fit.

const [B, N, K, E, D, H, I, O, V, C] = [2, 3, 2, 7, 4, 6, 11, 13, 9, 3]
/** T tokens, M and Q of other lengths, J heads, R rows in G groups, S rows of experts with 2H columns. */
const sizes: Record<string, number> = {
  B,
  N,
  K,
  E,
  D,
  H,
  I,
  O,
  V,
  C,
  T: B * N,
  M: 8,
  Q: 10,
  J: 2,
  R: 17,
  G: 2 * H,
  S: B * N * K,
}
const made: Handle[] = []
const held = (handle: Handle): Handle => {
  made.push(handle)
  return handle
}
afterEach(() => {
  for (const handle of made.splice(0)) native.release(handle)
})
const zeros = (shape: readonly number[], dtype: DType = 'f32') =>
  held(native.full({ shape, dtype: dtypeCode(dtype), device: 0, value: 0 }))
const code = (value: string) => expect.objectContaining({ name: 'MoeError', code: value })

test('a fraction is no integer', () => {
  const [expertIndex, position] = [zeros([1, 2, 1], 'i32'), zeros([1, 2, 1], 'i32')]
  const plan = (E: number) => native.planSlots({ expertIndex, position, E, C: 2 })
  expect(() => plan(2.5)).toThrow(/E must be an integer from .*, got 2\.5/)
})

test('products of 3 and 2 matrices are an error', () => {
  const [three, two] = [zeros([3, 4, 4]), zeros([2, 4, 4])]
  for (const [a, b] of [
    [three, two],
    [two, three],
  ] as const)
    expect(() => native.matmul(a, b, false, false)).toThrow(/the batch dimensions differ/)
})

describe('a handle', () => {
  test('of a freed tensor is never that of the next one in its slot', () => {
    const old = native.full({ shape: [4], dtype: 0, device: 0, value: 1 })
    native.release(old)
    const next = held(native.full({ shape: [4], dtype: 0, device: 0, value: 2 }))
    expect(next).not.toBe(old)
    expect(next % 2 ** 24).toBe(old % 2 ** 24) // the same slot
    for (const use of [native.retain, native.version, native.unique, (h: Handle) => native.unary({ x: h, kind: 0 })])
      expect(() => use(old)).toThrow(code('DISPOSED'))
    native.release(old) // nothing
    const data = new Float32Array(4)
    native.toData(next, data)
    expect([...data]).toEqual([2, 2, 2, 2])
  })

  test('is unique while nothing else references its memory', () => {
    const x = zeros([4])
    expect(native.unique(x)).toBe(true)
    native.retain(x)
    expect(native.unique(x)).toBe(false)
    native.release(x)
    expect(native.unique(x)).toBe(true)
    const view = native.reshape(x, [2, 2])
    expect([native.unique(x), native.unique(view)]).toEqual([false, false])
    native.release(view)
    expect(native.unique(x)).toBe(true)
  })
})

const adamw = { norm: null, step: 1, lr: 0.1, beta1: 0.9, beta2: 0.99, eps: 1e-8, weightDecay: 0 }
const sgd = { norm: null, step: 1, lr: 0.1, momentum: 0.9, weightDecay: 0 }

describe('the version rises by one with each change in place, and with nothing else', () => {
  const shape = [3]
  const calls: [string, number, (t: Handle[]) => void][] = [
    ['addInPlace', 1, ([a, b]) => native.addInPlace(a, b)],
    ['scale', 1, ([x]) => native.scale({ x, factor: 0.5 })],
    ['stridedWrite', 1, ([target, x]) => native.stridedWrite(target, x, [1], 0)],
    ['adamw', 3, ([p, m, v, g]) => native.adamw([{ p, g, m, v, ...adamw }])],
    ['sgd', 1, ([p, g]) => native.sgd([{ p, g, buffer: null, ...sgd }])],
    ['sgd with momentum', 2, ([p, buffer, g]) => native.sgd([{ p, g, buffer, ...sgd }])],
    ['a batch', 2, ([p, q, g]) => native.sgd([p, q].map((p) => ({ p, g, buffer: null, ...sgd })))],
    ['clipNorm', 1, ([x]) => native.clipNorm(Float64Array.of(x), zeros([], 'f64'), 1)],
    ['unary', 0, ([x]) => held(native.unary({ x, kind: 0 }))],
    ['toData', 0, ([x]) => native.toData(x, new Float32Array(3))],
  ]
  test.each(calls)('%s: the first %d', (_, changed, call) => {
    const tensors = [1, 2, 3, 4].map(() => zeros(shape))
    const views = tensors.map((handle) => held(native.reshape(handle, [3, 1])))
    const before = tensors.map(native.version)
    call(tensors)
    const wanted = before.map((version, i) => (i < changed ? version + 1 : version))
    expect(tensors.map(native.version)).toEqual(wanted)
    expect(views.map(native.version)).toEqual(wanted)
  })
})

/** Letters of ops.inc that stand for something else here, and the rows of experts. */
const letters: Record<string, number> = {
  ...sizes,
  Nq: N,
  Nk: 5,
  heads: 2,
  d: 2,
  saved: 2 * H,
  P: 2 * H,
  size: 6,
  A: 5,
  kv_heads: 2,
  kvHeads: 2,
  W: 3,
}

interface Argument extends DeclaredArgument {
  /** For each dimension the letters in it. */
  names: string[][]
  dims: number[]
}

/** A tensor of a declaration. "T..." is two dimensions here, "R..." one, "..." the shape [2, 3]. */
function tensorOf(argument: DeclaredArgument): Argument {
  const { shape } = argument
  const whole = shape === '...'
  const words = whole ? ['size...'] : shape.split(' ').filter(Boolean)
  const names = words.flatMap((word) => {
    const factors = word.replace('...', '').split('*')
    return word.endsWith('...') && word !== 'R...' ? [factors, factors] : [factors]
  })
  const dims = names.map((factors, i) =>
    words[0]?.endsWith('...') && words[0] !== 'R...' && i < 2
      ? [B, N][i]
      : factors.reduce((n, name) => n * (letters[name] ?? Number(name)), 1),
  )
  return { ...argument, names, dims }
}

const isTensor = ({ macro }: DeclaredArgument): boolean => /INPUT|WEIGHT|UPDATED/.test(macro)
/** Not that of the op. */
const fixedType = ({ element }: DeclaredArgument) => ['i32', 'f32', 'f64'].find((dtype) => dtype === element)
const numbers: Record<string, unknown> = { FLAG: false, OPTIONAL_OUTPUT: true, NUMBER: 0.5, INTEGER: -100, SIZE: 1 }
/** Of a group of this process alone. */
const ofGroup: Record<string, unknown> = { group: 0, root: 0 }

describe('an argument that does not fit is an error, and nothing is left of the call', () => {
  const make = (argument: DeclaredArgument, dims: number[], dtype = fixedType(argument) ?? 'f32') => {
    const { name } = argument
    if (name === 'position' && argument.shape === 'B N K')
      // of a plan: nothing is dispatched, so no two have one slot
      return held(native.full({ shape: dims, dtype: dtypeCode(dtype as 'i32'), device: 0, value: -1 }))
    if (name !== 'groupSizes' || dtype !== 'i32' || dims.join() !== String(sizes.G)) return zeros(dims, dtype as 'f32')
    const groups = Int32Array.from({ length: sizes.G }, (_, i) => (i === 1 ? sizes.R : 0))
    return held(native.fromData(groups, dtypeCode('i32'), dims, 0))
  }
  const call = (op: string, args: Record<string, unknown>): void => {
    const given = batches.has(op) ? [args] : args
    const result = (native[op as 'unary'] as (args: unknown) => unknown)(given) as Handle | object | null
    for (const handle of typeof result === 'object' ? Object.values(result ?? {}) : [result])
      if (typeof handle === 'number') held(handle)
  }
  /** With the same arguments on a device whose backend lacks the op. */
  const expectRefused = (op: string, given: Record<string, unknown>, args: DeclaredArgument[]): void => {
    const device = native.openDevice(emptyPlugin, 0)
    const move = (argument: DeclaredArgument) => {
      const value = given[argument.name]
      return isTensor(argument) && value !== null ? held(native.toDevice(value as Handle, device)) : value
    }
    const there = Object.fromEntries(args.map((argument) => [argument.name, move(argument)]))
    const before = live()
    expect(() => call(op, there)).toThrow(code('UNSUPPORTED'))
    expect(live()).toEqual(before)
  }
  const needsOthers = ['send'] // a process alone has no rank to send to
  const ops = declaredOps().filter(
    ({ jsName, byHand, args }) => !byHand && args.some(isTensor) && !needsOthers.includes(jsName),
  )
  const batches = new Set(ops.filter(({ batch }) => batch).map(({ jsName }) => jsName))

  test.each(ops.map((op): [string, DeclaredOp] => [op.jsName, op]))('%s', (name, { args }) => {
    const tensors = args.filter(isTensor).map(tensorOf)
    const value = (argument: DeclaredArgument): unknown => {
      if (argument.name === 'dxSum') return null // dx is an output
      if (argument.macro === 'COUNTS') return Float64Array.of(letters.S)
      if (isTensor(argument)) return make(argument, tensorOf(argument).dims)
      return ofGroup[argument.name] ?? letters[argument.name] ?? numbers[argument.macro] ?? 0
    }
    const given = () => Object.fromEntries(args.map((argument) => [argument.name, value(argument)]))
    call(name, given())
    if (emptyPluginBuilt) expectRefused(name, given(), args)
    const isReal = ({ element }: DeclaredArgument) => element === 'real' || element === 'weight'
    const floats = tensors.filter(isReal).length
    /** Whether a letter is told by something else too. */
    const tied = (argument: Argument, letter: string): boolean =>
      args.some((other) => other.name === letter) ||
      tensors.some((other) => other.name !== argument.name && other.names.flat().includes(letter))
    for (const argument of tensors) {
      const { names, dims } = argument
      const wrong: [string, number[], string?][] = []
      const fixed = fixedType(argument)
      if (fixed) wrong.push(['DTYPE', dims, fixed === 'i32' ? 'f32' : 'i32'])
      if (isReal(argument))
        wrong.push(
          ['DTYPE', dims, 'i32'],
          ...(argument.element === 'real' ? [['DTYPE', dims, 'bf16'] as [string, number[], string]] : []),
          ...(floats > 1 ? [['DTYPE', dims, 'f64'] as [string, number[], string]] : []),
        )
      const anyRank = argument.shape.includes('...')
      if (!anyRank || (argument.shape !== 'R...' && names.flat().some((letter) => tied(argument, letter))))
        wrong.push(['SHAPE', [...dims, 2]])
      for (const [i, inside] of names.entries())
        if (inside.length > 1 || tied(argument, inside[0])) wrong.push(['SHAPE', dims.with(i, dims[i] + 1)])
      for (const [expected, shape, dtype] of wrong) {
        const all = { ...given(), [argument.name]: make(argument, shape, dtype) }
        const before = live()
        expect(() => call(name, all), `${argument.name}: ${dtype} [${shape}]`).toThrow(code(expected))
        expect(live()).toEqual(before)
      }
    }
    const weights = tensors.filter(({ element }) => element === 'weight')
    for (const { name: weight, dims } of weights)
      for (const stored of ['bf16', 'f16'] as const) call(name, { ...given(), [weight]: zeros(dims, stored) })
    if (weights.length > 0) {
      const wide = (argument: DeclaredArgument) =>
        isTensor(argument) && argument.element === 'real' && value(argument) !== null
          ? zeros(tensorOf(argument).dims, 'f64')
          : value(argument)
      const stored = Object.fromEntries(weights.map(({ name, dims }) => [name, zeros(dims, 'f16')]))
      const all = { ...Object.fromEntries(args.map((argument) => [argument.name, wide(argument)])), ...stored }
      expect(() => call(name, { ...all, compute: dtypeCode('f64') })).toThrow(code('DTYPE'))
    }
  })
})

describe('numbers and arrays', () => {
  const wrong: [string, string, () => unknown][] = [
    ['too little data', 'SHAPE', () => native.fromData(new Float32Array(5), 0, [2, 3], 0)],
    ['too much data', 'SHAPE', () => native.fromData(new Float32Array(7), 0, [2, 3], 0)],
    ['data of another width', 'SHAPE', () => native.fromData(new Float64Array(6), 0, [2, 3], 0)],
    ['too little room', 'SHAPE', () => native.toData(zeros([6]), new Float32Array(5))],
    ['too much room', 'SHAPE', () => native.toData(zeros([6]), new Float32Array(7))],
    ['a shape of another size', 'SHAPE', () => native.reshape(zeros([6]), [5])],
    ['a view one past the end', 'SHAPE', () => native.stridedRead(zeros([6]), [3], [2], 2)],
    ['a target one past the end', 'SHAPE', () => native.stridedWrite(zeros([6]), zeros([3]), [2], 2)],
    ['strides for another rank', 'SHAPE', () => native.stridedRead(zeros([6]), [2, 3], [1], 0)],
    ['a split of another size', 'SHAPE', () => native.reduce(zeros([6]), [2, 2, 1], [2], 1)],
    ['a result of another size', 'SHAPE', () => native.reduce(zeros([6]), [2, 3, 1], [1], 1)],
    ['operands of two types', 'DTYPE', () => native.binary(zeros([2]), zeros([2], 'f64'), 0)],
    ['a quotient of integers', 'DTYPE', () => native.binary(zeros([2], 'i32'), zeros([2], 'i32'), 3)],
    ['operands that do not broadcast', 'SHAPE', () => native.binary(zeros([2]), zeros([3]), 0)],
    ['rows that are not the same number per expert', 'SHAPE', () => ffn({ ends: null })],
    ['ends of other experts', 'SHAPE', () => ffn({ ends: zeros([4], 'i32') })],
    ['a plan without its rows', 'OPTION', () => ffn({ rowOf: null })],
    ['ends that fall', 'OPTION', () => ffn({ ends: i32(2, 1, 7, 7, 7, 7, 7) })],
    ['ends beyond the rows', 'OPTION', () => ffn({ ends: i32(0, 0, 0, 0, 0, 0, sizes.S + 1) })],
    [
      'no heads',
      'OPTION',
      () => {
        const q = zeros([1, 2, 4])
        native.attention({ q, k: q, v: q, mask: null, heads: 0, kvHeads: 1, scale: 1, visible: 2 })
      },
    ],
    ['dx that is made and added to another', 'OPTION', () => linearBackward({ dx: true })],
    ['more entries than there are', 'OPTION', () => native.topk({ x: zeros([2, 3]), K: 4 })],
    ['threads', 'OPTION', () => native.setThreads(257)],
    ['a seed', 'OPTION', () => native.dropout({ x: zeros([2]), p: 0, seed: 2 ** 53, step: 0 })],
    ['a plugin that is not there', 'BACKEND_UNAVAILABLE', () => native.openDevice('/nowhere.so', 0)],
    ['a device that is not open', 'DEVICE', () => native.full({ shape: [1], dtype: 0, device: 1000, value: 0 })],
    ['the end of no captured step', 'UNSUPPORTED', () => native.captureEnd(true)],
    ...[1, -0.1, Number.NaN].map((p): [string, string, () => unknown] => [
      `dropout of ${p}`,
      'OPTION',
      () => native.dropout({ x: zeros([2]), p, seed: 0, step: 0 }),
    ]),
  ]
  const i32 = (...numbers: number[]) =>
    held(native.fromData(Int32Array.from(numbers), dtypeCode('i32'), [numbers.length], 0))
  const linearBackward = (given: { dx: boolean }) => {
    const [x, dxSum] = [zeros([2, 3]), zeros([2, 3])]
    native.linearBackward({ dy: x, x, w: zeros([3, 3]), dxSum, dw: false, dbias: false, compute: 0, ...given })
  }
  const ffn = (change: { ends?: Handle | null; rowOf?: null }) => {
    const make = (text: string) => zeros(text.split(' ').map((name) => sizes[name]))
    const [w1, b1, multBias, w2, b2] = ['E G D', 'E G', 'E H', 'E D H', 'E D'].map(make)
    const plan = {
      assignment: zeros([sizes.S], 'i32'),
      ends: zeros([E], 'i32'),
      rowOf: zeros([6, 2], 'i32'),
      ...change,
    }
    return native.expertFfn({
      x: make('T D'),
      ...plan,
      weight: make('T K'),
      w1,
      b1,
      multBias,
      w2,
      b2,
      a: false,
      compute: 0,
      seed: 0,
      step: 0,
    })
  }
  test.each(wrong)('%s: %s', (_, expected, call) => {
    expect(call).toThrow(code(expected))
  })

  test('the last element and the largest numbers fit', () => {
    held(native.stridedRead(zeros([6]), [3], [2], 1))
    native.stridedWrite(zeros([6]), zeros([3]), [2], 1)
    held(native.stridedRead(zeros([6]), [3, 0], [1000, 1000], 1000)) // nothing is read
    held(native.dropout({ x: zeros([2]), p: 0, seed: 2 ** 53 - 1, step: 2 ** 53 - 1 }))
    const threads = native.getThreads()
    native.setThreads(256)
    native.setThreads(threads)
  })

  test.each<[string, (p: Handle, same: Handle, other: Handle) => void]>([
    ['the first moment', (p, same, other) => native.adamw([{ p, g: other, m: same, v: other, ...adamw }])],
    ['the second moment', (p, same, other) => native.adamw([{ p, g: other, m: other, v: same, ...adamw }])],
    ['the momentum', (p, same, other) => native.sgd([{ p, g: other, buffer: same, ...sgd }])],
    ['what a part of a tensor is written over with', (p, same) => native.stridedWrite(p, same, [1], 0)],
  ])('%s is not the tensor that is updated, nor a view of it', (_, update) => {
    const p = zeros([4])
    const before = native.version(p)
    for (const same of [p, held(native.reshape(p, [4]))]) {
      expect(() => update(p, same, zeros([4]))).toThrow(code('OPTION'))
      expect(native.version(p)).toBe(before)
    }
  })
})

test('rows of a rank to itself have one number', () => {
  const x = zeros([4, 2])
  const given = { x, group: 0, sent: Float64Array.of(4), received: Float64Array.of(3) }
  expect(() => native.allToAll(given)).toThrow(code('SHAPE'))
})
