import { afterAll, beforeAll, expect, test } from 'vitest'
import * as library from '../../lib/index.js'
import { Module, ops, scope } from '../../lib/index.js'
import { native } from '../../lib/runtime/native.js'
import { gradcheck } from '../support/gradcheck.js'
import { lossRows } from '../support/loss-rows.js'
import { moduleRows } from '../support/module-rows.js'
import { moeRows } from '../support/moe-rows.js'
import { relativeError, values } from '../support/numbers.js'
import { opRows } from '../support/op-rows.js'

const rows = [...opRows, ...lossRows, ...moeRows, ...moduleRows]
/** Functions of `ops` that compute no tensor of floats. */
const notDifferentiable = [
  'cachedAttention',
  'expertCapacity',
  'less',
  'lessEqual',
  'greater',
  'greaterEqual',
  'equal',
  'argmax',
  'argmin',
]

/** Between processes, and on the CPU alone: test/ops/collectives.test.ts, test/distributed. */
const collectives = ['allReduce', 'allGather', 'reduceScatter', 'allToAll', 'broadcast', 'send', 'recv']

const called = new Set<string>()
const originals = new Map<keyof typeof native, unknown>()

beforeAll(() => {
  library.getNumThreads() // which loads the addon
  for (const name of Object.keys(native) as (keyof typeof native)[]) {
    const original = native[name] as (...args: unknown[]) => unknown
    originals.set(name, original)
    Object.assign(native, {
      [name]: (...args: unknown[]) => {
        called.add(name)
        return original(...args)
      },
    })
  }
})

afterAll(() => {
  for (const [name, original] of originals) Object.assign(native, { [name]: original })
})

test.each(rows)('gradients of $name', ({ subjects }) => {
  for (const subject of subjects()) expect(gradcheck(subject), subject.label).toEqual([])
})

test('every function of ops has a row', () => {
  const covered = new Set([...rows.flatMap((row) => row.ops ?? []), ...notDifferentiable, ...collectives])
  expect([...covered].sort()).toEqual(Object.keys(ops).sort())
})

test('every module that computes something has a row', () => {
  const isModule = (value: unknown): boolean =>
    typeof value === 'function' && value.prototype instanceof Module && 'forward' in value.prototype
  const modules = Object.entries(library).flatMap(([name, value]) => (isModule(value) ? [name] : []))
  expect(rows.flatMap((row) => row.modules ?? []).sort()).toEqual(modules.sort())
})

// Runs after the rows.
test('the rows have called every native backward op', () => {
  const backward = Object.keys(native).filter((name) => name.endsWith('Backward') && name !== 'broadcastBackward')
  expect(backward.length).toBeGreaterThan(10)
  expect(backward.filter((name) => !called.has(name))).toEqual([])
})

test('the weight of a straight-through dispatch gets the gradient <x, gradient of its row>', () =>
  scope(() => {
    const x = library.randn([2, 5, 3], { dtype: 'f64' })
    const routing = ops.route(x, library.randn([4, 3], { dtype: 'f64' }), { threshold: 0, capacity: 4 })
    const weight = routing.weight.clone()
    weight.requiresGrad = true
    const y = ops.dispatch(x, { ...routing, weight })
    const dy = library.randn(y.shape, { dtype: 'f64' })
    y.mul(dy).sum().backward()
    const [xs, rows, index, position] = [x, dy, routing.expertIndex, routing.position].map(values)
    const expected = Array.from(position, (slot, i) => {
      const t = Math.floor(i / 2)
      const at = ((index[i] * 2 + Math.floor(t / 5)) * 4 + slot) * 3
      return slot < 0 ? 0 : [0, 1, 2].reduce((sum, d) => sum + xs[t * 3 + d] * rows[at + d], 0)
    })
    expect(relativeError(values(weight.grad!), expected)).toBeLessThan(1e-14)
  }))
