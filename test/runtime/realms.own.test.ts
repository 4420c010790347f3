import { createContext, runInContext } from 'node:vm'
import { afterEach, expect, test, vi } from 'vitest'
import { devices, Linear, MoE, memory, ones, scope, type Tensor, tensor } from '../../lib/index.js'
import { systemName } from '../../lib/runtime/addon.js'
import { expectNoLeakAsync, values } from '../support/baseline.js'
import { runChild } from '../support/child.js'

// What a program may have from another realm, such as that of a test runner, or have changed in its own.

const realm = createContext({})
const elsewhere = <T>(code: string): T => runInContext(code, realm) as T

test('typed arrays of another realm', () =>
  scope(() => {
    for (const [type, dtype] of Object.entries({
      Float32Array: 'f32',
      Float64Array: 'f64',
      Int32Array: 'i32',
      Int8Array: 'i32',
    }))
      expect(tensor(elsewhere<Float32Array>(`new ${type}([1, 2])`))).toMatchObject({ dtype, shape: [2] })
    expect(values(tensor(elsewhere<number[]>('[[1, 2], [3, 4]]')))).toEqual([1, 2, 3, 4])
    expect(() => tensor(elsewhere<Float32Array>('new Float32Array(new SharedArrayBuffer(8))'))).toThrow(
      '[tensor] data must not be a view of a SharedArrayBuffer',
    )
  }))

test('promises of another realm: a scope lasts until they settle', () =>
  expectNoLeakAsync(async () => {
    const made: Tensor[] = []
    const later = elsewhere<(fn: () => void) => Promise<void>>('async (fn) => { await null; await null; fn() }')
    await scope(() => later(() => made.push(ones([3]))))
    expect(made[0].disposed).toBe(true)
  }))

test('the package in a context of its own, as Jest loads it', async () => {
  const nodeArgs = ['--no-warnings', '--experimental-vm-modules']
  const { stdout, stderr, code } = await runChild('in-context.mjs', [], { nodeArgs })
  expect({ stdout, stderr, code }).toEqual({ stdout: '5 characters, 0 tensors left\n', stderr: '', code: 0 })
})

test('a property that the program has given to all objects is no option', () => {
  const before = memory().tensors
  // biome-ignore lint/suspicious/noExplicitAny: what programs do
  const all = Object.prototype as any
  all.first = () => {}
  try {
    using moe = new MoE({ dim: 4, numExperts: 2 })
    using linear = new Linear(4, 4)
    scope(() => void linear.forward(moe.forward(ones([1, 2, 4])).outputs))
  } finally {
    delete all.first
  }
  expect(memory().tensors).toBe(before)
})

afterEach(() => {
  vi.restoreAllMocks()
})

test.runIf(process.platform === 'linux')(
  'what the system is asks no name server for the ends of open connections',
  () => {
    const { report } = process as unknown as { report: NodeJS.ProcessReport & { excludeNetwork: boolean } }
    const before = report.excludeNetwork
    const seen: boolean[] = []
    const real = report.getReport.bind(report)
    vi.spyOn(report, 'getReport').mockImplementation((...args) => {
      seen.push(report.excludeNetwork)
      return real(...args)
    })
    for (let i = 0; i < 3; i++) {
      devices()
      systemName()
    }
    expect(seen).toEqual([true]) // once in a process
    expect(report.excludeNetwork).toBe(before)
  },
)
