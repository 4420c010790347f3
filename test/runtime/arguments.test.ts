import { describe, expect, it } from 'vitest'
import {
  AdamW,
  arange,
  attention,
  clipGradNorm,
  embedding,
  full,
  Linear,
  MoE,
  ones,
  ops,
  randn,
  scope,
  type Tensor,
  tensor,
  zeros,
} from '../../lib/index.js'
import { native } from '../../lib/runtime/native.js'
import { expectNoLeak, live } from '../support/baseline.js'
import { settled } from '../support/faults.js'

const code = (value: string) => expect.objectContaining({ name: 'MoeError', code: value })
const endless = <T extends object>(value: T): T =>
  Object.defineProperty(value, Symbol.iterator, {
    *value() {
      for (;;) yield 1
    },
  })
const longest = new Array(2 ** 32 - 1)
const lying = (length: unknown) =>
  new Proxy([2, 3], { get: (t, key) => (key === 'length' ? length : Reflect.get(t, key)) })

describe('sizes', () => {
  it('what no memory can hold is an error at once', () => {
    expectNoLeak(() => {
      const bytes = live()
      for (const shape of [[2 ** 40], [2 ** 23, 2 ** 20], [2 ** 45]]) {
        for (const make of [zeros, ones, randn, (s: number[]) => full(s, 1, { dtype: 'bf16' })]) {
          expect(() => make(shape)).toThrowError(code('OUT_OF_MEMORY'))
        }
      }
      for (const shape of [[2 ** 47], [2 ** 30, 2 ** 30], [2 ** 53, 2 ** 53], [Number.MAX_VALUE, 2], [-1], [0.5]]) {
        expect(() => zeros(shape)).toThrowError(code('SHAPE'))
      }
      expect(() => new Linear(2 ** 40, 1)).toThrowError(code('OUT_OF_MEMORY'))
      expect(() => new MoE({ dim: 8, numExperts: 2 ** 40 })).toThrowError(code('OUT_OF_MEMORY'))
      expect(() => new MoE({ dim: 8, numExperts: 2 ** 31, gatingTopN: 2 ** 31 })).toThrowError(code('OPTION'))
      expect(() => arange(2 ** 40)).toThrowError(code('SHAPE'))
      expect(live().bytes - bytes.bytes).toBeLessThan(100)
    })
  })

  it('empty tensors of absurd extent are cheap or refused', () => {
    expectNoLeak(() =>
      scope(() => {
        const empty = zeros([2 ** 46, 0])
        expect(empty.mul(2).sum().item()).toBe(0)
        for (const f of [
          ops.softmax,
          ops.transpose,
          (x: Tensor) => ops.rmsNorm(x, ones([0])),
          (x: Tensor) => ops.layerNorm(x, ones([0]), ones([0])),
          (x: Tensor) => ops.matmul(x, ones([0, 0])),
        ]) {
          expect(f(empty).size).toBe(0)
        }
        const heads = zeros([2 ** 26, 0, 0], { requiresGrad: true })
        const seen = zeros([2 ** 26, 2 ** 20, 0])
        ops
          .attention(heads, seen, seen, { heads: 2 ** 20, causal: false })
          .sum()
          .backward()
        expect(heads.grad!.shape).toEqual([2 ** 26, 0, 0])
        expect(() => empty.sum(1)).toThrowError(code('OUT_OF_MEMORY'))
        expect(() => ops.matmul(empty, ones([0, 1]))).toThrowError(code('OUT_OF_MEMORY'))
      }),
    )
  })
})

describe('lists', () => {
  it('are read by index, never by an iterator, and their length once', () => {
    expectNoLeak(() =>
      scope(() => {
        expect(zeros(endless([2, 3])).shape).toEqual([2, 3])
        expect(tensor(endless([5, 6])).shape).toEqual([2])
        expect(ones([6]).reshape(endless([2, 3])).shape).toEqual([2, 3])
        expect(tensor(endless(new Int8Array([1, 2]))).shape).toEqual([2])
        expect(ops.concat(endless([ones([1]), ones([2])])).shape).toEqual([3])
        const layer = new Linear(2, 2)
        expect(() => new AdamW(endless([]) as never)).toThrowError(code('OPTION'))
        expect(() => new AdamW([{ params: endless([]) as never }])).toThrowError(code('OPTION'))
        expect(ops.stack(endless([ones([1]), ones([1])])).shape).toEqual([2, 1])
        expect(() => clipGradNorm(endless([]) as never, 1)).toThrowError(code('OPTION'))
        layer.dispose()
      }),
    )
  })

  it('of absurd length are refused at once', () => {
    const refused = expect.objectContaining({ name: 'MoeError' })
    for (const list of [longest, lying(1e9), lying(Number.NaN), lying('x')] as never[]) {
      const calls: (() => unknown)[] = [
        () => zeros(list),
        () => ones([6]).reshape(list),
        () => ones([6]).sum(list),
        () => ops.concat(list),
        () => tensor(list),
        () => tensor([list, list]),
        () => new MoE({ dim: 4, experts: list }),
        () => new MoE({ dim: 4, thresholdTrain: list }),
        () => new AdamW([], { betas: list }),
      ]
      for (const call of calls) expect(() => scope(call)).toThrowError(refused)
    }
    const row = Array(20_000).fill(0)
    expect(() => tensor(Array(20_000).fill(row))).toThrowError(code('OUT_OF_MEMORY'))
  })
})

describe('buffers', () => {
  it('detached, shared and resizable ones are refused, whatever their properties say', () => {
    const detached = new Float32Array(4)
    structuredClone(detached.buffer, { transfer: [detached.buffer] })
    const resizable = new (ArrayBuffer as new (n: number, o: object) => ArrayBuffer)(16, { maxByteLength: 64 })
    const disguised = (array: Float32Array) => Object.defineProperty(array, 'buffer', { value: new ArrayBuffer(16) })
    const bad = [
      detached,
      new Float32Array(new SharedArrayBuffer(16)),
      new Float32Array(resizable),
      disguised(new Float32Array(new SharedArrayBuffer(16))),
      Object.defineProperty(new Float32Array(4), 'length', { value: 2 ** 20 }),
    ]
    for (const array of bad) expect(() => tensor(array)).toThrowError(expect.objectContaining({ name: 'MoeError' }))
  })
})

describe('getters that dispose', () => {
  it('in options: the call sees a disposed tensor', () => {
    expectNoLeak(() =>
      scope(() => {
        const q = randn([1, 4, 8])
        const options = {
          get heads() {
            q.dispose()
            return 2
          },
        }
        expect(() => attention(q, q, q, options)).toThrowError(code('DISPOSED'))
      }),
    )
  })

  it('in arguments of the addon itself: the call holds what it has read', () => {
    expectNoLeak(() => {
      for (let round = 0; round < 20; round++) {
        const x: number = native.full({ shape: [64, 64], dtype: 0, device: 0, value: 3 })
        const made: number[] = []
        const meddle = (value: number) => ({
          get: () => {
            native.release(x)
            for (let i = 0; i < 50; i++) made.push(native.full({ shape: [64, 64], dtype: 0, device: 0, value: 7 })) // takes the memory, grows the table
            return value
          },
        })
        const strides = Object.defineProperty([64, 1], 0, meddle(64))
        const y: number = native.stridedRead(x, [64, 64], strides, 0)
        const data = new Float32Array(64 * 64)
        native.toData(y, data)
        expect(data.every((entry) => entry === 3)).toBe(true)
        expect(() => native.version(x)).toThrowError(code('DISPOSED'))
        for (const handle of [y, ...made]) native.release(handle)
      }
    })
  })
})

describe('indices', () => {
  it('out of range are errors in forward and backward', () => {
    const index = (...list: number[]) => tensor(new Int32Array(list))
    expectNoLeak(() =>
      scope(() => {
        for (const bad of [-1, 5, 2 ** 31 - 1, -(2 ** 31)]) {
          expect(() => settled(() => embedding(ones([5, 2]), index(0, bad)))).toThrowError(code('OPTION'))
          expect(() => settled(() => ops.groupedGemm(ones([4, 2]), ones([2, 3, 2]), index(bad, 4 - bad)))).toThrow()
          const routing = ops.route(randn([1, 4, 8]), randn([3, 8]))
          const forged = index(bad, 0, 1, 2, 0, 1, 2, 0).reshape([1, 4, 2])
          const kept = zeros([1, 4, 2], { dtype: 'i32' })
          const sent = { ...routing, expertIndex: forged, position: kept }
          expect(() => settled(() => ops.dispatch(ones([1, 4, 8]), sent))).toThrowError(code('OPTION'))
          expect(() => settled(() => ops.combine(ones([3, 1, 4, 8]), sent))).toThrowError(code('OPTION'))
          if (bad > 0) {
            const full = { ...routing, position: forged, expertIndex: kept }
            expect(() => settled(() => ops.dispatch(ones([1, 4, 8]), full))).toThrowError(code('OPTION'))
          }
        }
        expect(() => ops.add(ones([2]), null as never)).toThrowError(code('OPTION'))
      }),
    )
  })
})
