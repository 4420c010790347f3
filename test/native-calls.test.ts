import { afterEach, describe, expect, test } from 'vitest'
import { dtypeCode } from '../lib/dtype.js'
import { type Handle, native } from '../lib/native.js'
import { live } from './support/baseline.js'

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
  R: 5,
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
const zeros = (shape: readonly number[], dtype: 'f32' | 'f64' | 'i32' = 'f32') =>
  held(native.full(shape, dtypeCode(dtype), 0, 0))
const code = (value: string) => expect.objectContaining({ name: 'MoeError', code: value })

describe('a handle', () => {
  test('of a freed tensor is never that of the next one in its slot', () => {
    const old = native.full([4], 0, 0, 1)
    native.release(old)
    const next = held(native.full([4], 0, 0, 2))
    expect(next).not.toBe(old)
    expect(next % 2 ** 24).toBe(old % 2 ** 24) // the same slot
    for (const use of [native.retain, native.version, native.unique, (h: Handle) => native.unary(h, 0)])
      expect(() => use(old)).toThrow(code('DISPOSED'))
    native.release(old) // nothing
    const data = new Float32Array(4)
    native.toData(next, data)
    expect([...data]).toEqual([2, 2, 2, 2])
  })

  test('is unique while no other handle and no other holder has its memory', () => {
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

describe('the version rises by one with each change in place, and with nothing else', () => {
  const shape = [3]
  const calls: [string, number, (t: Handle[]) => void][] = [
    ['addInPlace', 1, ([a, b]) => native.addInPlace(a, b)],
    ['scaleInPlace', 1, ([x]) => native.scaleInPlace(x, 0.5)],
    ['scatter', 1, ([target, x]) => native.scatter(target, x, [1], 0)],
    ['adamw', 3, ([p, m, v, g]) => native.adamw(p, g, m, v, 1, 0.1, 0.9, 0.99, 1e-8, 0)],
    ['sgd', 1, ([p, g]) => native.sgd(p, g, null, 1, 0.1, 0, 0)],
    ['sgd with momentum', 2, ([p, buffer, g]) => native.sgd(p, g, buffer, 1, 0.1, 0.9, 0)],
    ['unary', 0, ([x]) => held(native.unary(x, 0))],
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

/**
 * Calls that fit. A string is a tensor, its type and its dimensions by letter: 'f T I'. Of a small letter any size
 * fits. 'groups' holds the sizes of G groups with R rows together.
 */
const fitting: [op: keyof typeof native, ...args: unknown[]][] = [
  ['unaryBackward', 'f T I', 'f T I', 0],
  ['addInPlace', 'f T I', 'f T I'],
  ['adamw', 'f T', 'f T', 'f T', 'f T', 1, 0.1, 0.9, 0.99, 1e-8, 0],
  ['sgd', 'f T', 'f T', 'f T', 1, 0.1, 0.9, 0],
  ['matmul', 'f B m K', 'f B K n', false, false],
  ['matmul', 'f B K m', 'f B n K', true, true],
  ['linear', 'f t I', 'f O I', 'f O', 0],
  ['linearBackward', 'f T O', 'f T I', 'f O I', true, true, true, 0],
  ['embedding', 'f v d', 'i t'],
  ['embeddingBackward', 'f T d', 'i T', sizes.V],
  ['rmsnorm', 'f t D', 'f D'],
  ['rmsnormBackward', 'f T D', 'f T D', 'f D'],
  ['layernorm', 'f t D', 'f D', 'f D', 1e-5],
  ['layernormBackward', 'f T D', 'f T D', 'f D', 1e-5],
  ['softmax', 'f t v', false],
  ['softmaxBackward', 'f T V', 'f T V', false],
  ['crossEntropy', 'f T v', 'i T', -100],
  ['crossEntropyBackward', 'f', 'f T v', 'f T', 'i T', -100],
  ['attention', 'f B n D', 'f B Q D', 'f B Q D', 2, 1, false],
  ['attentionBackward', 'f B N D', 'f B N D', 'f B Q D', 'f B Q D', 'f B N D', 'f B J N', 2, 1, false],
  ['topk', 'f t e', sizes.K],
  ['topkBackward', 'f T K', 'i T K', sizes.E],
  ['groupedGemm', 'f R I', 'f G o I', 'groups', 0],
  ['groupedGemmBackward', 'f R O', 'f R I', 'f G O I', 'groups', 0],
  ['dispatch', 'f B N d', 'i B N K', 'i B N K', sizes.E, sizes.C],
  ['dispatchBackward', 'f e B c D', 'f B N D', 'i B N K', 'i B N K', true],
  ['combine', 'f e B c d', 'f B N K', 'i B N K', 'i B N K'],
  ['combineBackward', 'f B N D', 'f e B c D', 'f B N K', 'i B N K', 'i B N K'],
  [
    'route',
    ...['f B N D', 'f E D', 'f K', 'f K B N', 'f B N E', 'i B N'],
    ...[sizes.K, sizes.C, 0, 0, 0, 1, 1e-9, 0.01, 0.001, true, true, false, false],
  ],
  [
    'routeBackward',
    ...['f B N K', 'f', 'f', 'f', 'f B N D', 'f E D', 'i B N', 'i B N K', 'i B N K'],
    ...['f B N K', 'f B N E', 'f B N E', 'f B N', 'f B E', 1e-9, 0.01, 0.001, true, true, false, true, true],
  ],
  [
    'expertFfn',
    ...['f T D', 'i T K', 'i T K', 'f T K', 'f E G D', 'f E G', 'f E H', 'f E D H', 'f E D'],
    ...[sizes.B, sizes.C, true, 0],
  ],
  [
    'expertFfnBackward',
    ...['f T D', 'f T D', 'i T K', 'i T K', 'f T K', 'f E G D', 'f E G', 'f E H', 'f E D H', 'f E D', 'f S G'],
    ...[sizes.B, sizes.C, true, true, true, 0],
  ],
]

describe('an argument that does not fit is an error, and nothing is left of the call', () => {
  interface Spec {
    dtype: 'f32' | 'f64' | 'i32'
    shape: number[]
    /** The letters. */
    names: string[]
  }
  const isTensor = (arg: unknown): arg is string => typeof arg === 'string'
  const specOf = (text: string): Spec => {
    const [type, ...names] = text === 'groups' ? ['i', 'G'] : text.split(' ')
    return { dtype: type === 'f' ? 'f32' : 'i32', shape: names.map((name) => sizes[name.toUpperCase()]), names }
  }
  const make = (text: unknown, { dtype, shape } = specOf(String(text))): unknown => {
    if (!isTensor(text)) return text
    if (text !== 'groups' || dtype !== 'i32' || shape.join() !== String(sizes.G)) return zeros(shape, dtype)
    const groups = Int32Array.from({ length: sizes.G }, (_, i) => (i === 1 ? sizes.R : 0))
    return held(native.fromData(groups, dtypeCode('i32'), shape, 0))
  }
  const call = (op: string, args: readonly unknown[]): void => {
    const result = (native[op as 'unary'] as (...args: unknown[]) => Handle | (Handle | null)[] | undefined)(...args)
    for (const handle of [result].flat()) if (typeof handle === 'number') held(handle)
  }

  test.each(fitting)('%s(%s, …)', (op, ...args) => {
    call(
      op,
      args.map((arg) => make(arg)),
    )
    const floats = args.filter((arg) => isTensor(arg) && arg.startsWith('f')).length
    for (const [at, arg] of args.entries()) {
      if (!isTensor(arg)) continue
      const { dtype, shape, names } = specOf(arg)
      const others = dtype === 'i32' ? (['f32'] as const) : floats > 1 ? (['i32', 'f64'] as const) : (['i32'] as const)
      const wrong: [string, Spec][] = [
        ...others.map((other): [string, Spec] => ['DTYPE', { dtype: other, shape, names }]),
        ['SHAPE', { dtype, shape: [...shape, 1], names }],
        ...names.flatMap((name, i): [string, Spec][] =>
          name === name.toLowerCase() ? [] : [['SHAPE', { dtype, shape: shape.with(i, shape[i] + 1), names }]],
        ),
      ]
      for (const [expected, spec] of wrong) {
        const given = args.map((other, i) => (i === at ? make(arg, spec) : make(other)))
        const before = live()
        expect(() => call(op, given), `argument ${at}, ${spec.dtype} [${spec.shape}]`).toThrow(code(expected))
        expect(live()).toEqual(before)
      }
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
    ['a view one past the end', 'SHAPE', () => native.gather(zeros([6]), [3], [2], 2)],
    ['a target one past the end', 'SHAPE', () => native.scatter(zeros([6]), zeros([3]), [2], 2)],
    ['strides for another rank', 'SHAPE', () => native.gather(zeros([6]), [2, 3], [1], 0)],
    ['a split of another size', 'SHAPE', () => native.reduce(zeros([6]), [2, 2, 1], [2], 1)],
    ['a result of another size', 'SHAPE', () => native.reduce(zeros([6]), [2, 3, 1], [1], 1)],
    ['operands of two types', 'DTYPE', () => native.binary(zeros([2]), zeros([2], 'f64'), 0)],
    ['a quotient of integers', 'DTYPE', () => native.binary(zeros([2], 'i32'), zeros([2], 'i32'), 3)],
    ['operands that do not broadcast', 'SHAPE', () => native.binary(zeros([2]), zeros([3]), 0)],
    ['tokens without a sequence', 'SHAPE', () => ffn(0)],
    ['tokens that are no whole sequences', 'SHAPE', () => ffn(4)],
    ['no heads', 'OPTION', () => native.attention(zeros([1, 2, 4]), zeros([1, 2, 4]), zeros([1, 2, 4]), 0, 1, false)],
    ['more entries than there are', 'OPTION', () => native.topk(zeros([2, 3]), 4)],
    ['threads', 'OPTION', () => native.setThreads(257)],
    ['a seed', 'OPTION', () => native.dropout(zeros([2]), 0, 2 ** 53, 0)],
    ['a plugin that is not there', 'BACKEND_UNAVAILABLE', () => native.openDevice('/nowhere.so', 0)],
    ['a device that is not open', 'DEVICE', () => native.full([1], 0, 1000, 0)],
    ['the end of no captured step', 'UNSUPPORTED', () => native.captureEnd(true)],
    ...[1, -0.1, Number.NaN].map((p): [string, string, () => unknown] => [
      `dropout of ${p}`,
      'OPTION',
      () => native.dropout(zeros([2]), p, 0, 0),
    ]),
  ]
  const ffn = (sequences: number) => {
    const make = (text: string) => zeros(text.split(' ').map((name) => sizes[name]))
    const choices = () => zeros([6, 2], 'i32')
    const weights = ['E G D', 'E G', 'E H', 'E D H', 'E D'].map(make) as [Handle, Handle, Handle, Handle, Handle]
    return native.expertFfn(make('T D'), choices(), choices(), make('T K'), ...weights, sequences, 3, false, 0)
  }
  test.each(wrong)('%s: %s', (_, expected, call) => {
    expect(call).toThrow(code(expected))
  })

  test('the last element and the largest numbers fit', () => {
    held(native.gather(zeros([6]), [3], [2], 1))
    native.scatter(zeros([6]), zeros([3]), [2], 1)
    held(native.gather(zeros([6]), [3, 0], [1000, 1000], 1000)) // nothing is read
    held(native.dropout(zeros([2]), 0, 2 ** 53 - 1, 2 ** 53 - 1))
    const threads = native.getThreads()
    native.setThreads(256)
    native.setThreads(threads)
  })

  test.each<[string, (p: Handle, other: Handle) => void]>([
    ['the first moment', (p, other) => native.adamw(p, other, p, other, 1, 0.1, 0.9, 0.99, 1e-8, 0)],
    ['the second moment', (p, other) => native.adamw(p, other, other, p, 1, 0.1, 0.9, 0.99, 1e-8, 0)],
    ['the momentum', (p, other) => native.sgd(p, other, p, 1, 0.1, 0.9, 0)],
    ['what a part of a tensor is written over with', (p) => native.scatter(p, p, [1], 0)],
  ])('%s is not the tensor that is updated, nor a view of it', (_, update) => {
    const p = zeros([4])
    const before = native.version(p)
    expect(() => update(p, zeros([4]))).toThrow(code('OPTION'))
    expect(native.version(p)).toBe(before)
  })
})
