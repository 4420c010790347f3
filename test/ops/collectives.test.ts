// Not on the emulator: collectives are the CPU's.
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import {
  captureStep,
  type DType,
  initProcessGroup,
  noGrad,
  ops,
  type ProcessGroup,
  tensor,
  trainStepAsync,
  zeros,
} from '../../lib/index.js'
import { exchange } from '../../lib/ops/all-to-all.js'
import { groupHandle } from '../../lib/runtime/process-group.js'
import { functionSubject, gradcheck } from '../support/gradcheck.js'

/** The collectives in a process alone. Those between processes: test/distributed. */

let group: ProcessGroup
beforeAll(() => {
  group = initProcessGroup()
})
afterAll(() => group.destroy())

const exchanges = {
  allReduce: (x) => ops.allReduce(x, group),
  allGather: (x) => ops.allGather(x, group),
  reduceScatter: (x) => ops.reduceScatter(x, group),
  allToAll: (x) => ops.allToAll(x, group),
  broadcast: (x) => ops.broadcast(x, group),
} satisfies Record<string, (x: ReturnType<typeof zeros>) => unknown>

describe.each(Object.entries(exchanges))('%s', (_, run) => {
  test('is a copy, of any dtype and shape', () => {
    for (const dtype of ['f32', 'f64', 'i32', 'bf16', 'f16'] as DType[])
      for (const shape of [[3], [2, 0], [0, 3], [2, 3, 2]]) {
        const x = tensor(
          Array.from({ length: shape.reduce((a, b) => a * b, 1) }, (_, i) => i - 1),
          shape,
        ).to(dtype)
        const y = run(x as ReturnType<typeof zeros>)
        expect([y.shape, y.dtype]).toEqual([shape, dtype])
        expect(Array.from(y.to('f32').dataSync())).toEqual(Array.from(x.to('f32').dataSync()))
        expect(y.requiresGrad).toBe(dtype === 'f32' || dtype === 'f64')
      }
  })

  test('has a gradient', () => {
    for (const shape of [[5], [4, 3, 2]]) {
      const data = Float64Array.from({ length: shape.reduce((a, b) => a * b, 1) }, (_, i) => Math.fround(Math.sin(i)))
      expect(gradcheck(functionSubject(`[${shape}]`, { x: { shape, data } }, ({ x }) => run(x as never)))).toEqual([])
    }
  })

  test('runs in asynchronous calls and captured steps', async () => {
    const x = tensor([1, 2, 3])
    const y = await trainStepAsync(() => noGrad(() => run(x)))
    const step = captureStep(() => noGrad(() => run(x)))
    x.copyFrom(Float32Array.of(4, 5, 6))
    expect([Array.from(y.dataSync()), Array.from(step.replay().dataSync())]).toEqual([
      [1, 2, 3],
      [4, 5, 6],
    ])
    step.dispose()
  })
})

test('the largest and smallest, without a gradient', () => {
  const x = tensor([2, Number.NaN], null, { requiresGrad: true })
  for (const op of ['max', 'min'] as const) {
    const y = ops.allReduce(x, group, { op })
    expect([Array.from(y.dataSync()), y.requiresGrad]).toEqual([[2, Number.NaN], false])
  }
})

test('an exchange whose result has no gradient gives zeros', () => {
  const [x, other] = [tensor([1, 2], null, { requiresGrad: true }), tensor([3, 4], null, { requiresGrad: true })]
  const rows = Float64Array.of(2)
  const y = exchange('allToAll', other, groupHandle('allToAll', group), rows, rows, [ops.allReduce(x, group)])
  y.sum().backward()
  expect([x, other].map(({ grad }) => Array.from(grad!.dataSync()))).toEqual([
    [0, 0],
    [1, 1],
  ])
})

describe('bad input', () => {
  const x = zeros([4])
  const none = null as never
  test.each([
    ['OPTION', '[allReduce] group must be a process group of initProcessGroup, got null', () => ops.allReduce(x, none)],
    ['OPTION', '[allReduce] op must be one of', () => ops.allReduce(x, group, { op: 'mean' as never })],
    ['OPTION', '[allGather] x must be a Tensor', () => ops.allGather(none, group)],
    ['SHAPE', '[allGather] x must have at least one dimension, got []', () => ops.allGather(zeros([]), group)],
    [
      'SHAPE',
      '[allGather] splits must have a number for each of 1 ranks',
      () => ops.allGather(x, group, { splits: [] }),
    ],
    ['SHAPE', '[allGather] splits[0] must be the 4 rows of x', () => ops.allGather(x, group, { splits: [3] })],
    ['OPTION', '[allGather] splits must be an array', () => ops.allGather(x, group, { splits: 4 as never })],
    ['OPTION', '[allToAll] splits[0] must be an integer', () => ops.allToAll(x, group, { splits: [4.5] })],
    ['SHAPE', '[allToAll] splits must add up to the 4 rows of x', () => ops.allToAll(x, group, { splits: [5] })],
    [
      'SHAPE',
      '[allToAll] outputSplits[0] must be the 4 rows that this rank sends to itself, got 3',
      () => ops.allToAll(x, group, { splits: [4], outputSplits: [3] }),
    ],
    ['SHAPE', '[reduceScatter] splits must add up to the 4', () => ops.reduceScatter(x, group, { splits: [2] })],
    ['OPTION', '[broadcast] root must be an integer from 0 to 0, got 1', () => ops.broadcast(x, group, { root: 1 })],
    ['OPTION', '[send] to must be another rank than this one, 0', () => ops.send(x, group, { to: 0 })],
    ['OPTION', '[send] to', () => ops.send(x, group, {} as never)],
    ['OPTION', '[recv] from must be an integer from 0 to 0, got 3', () => ops.recv([4], group, { from: 3 })],
    ['OPTION', '[broadcast] unknown option', () => ops.broadcast(x, group, { from: 0 } as never)],
  ] as const)('%s: %s', (code, text, fn) => {
    expect(fn).toThrow(expect.objectContaining({ code, message: expect.stringContaining(text) }))
  })
})
