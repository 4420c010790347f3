import { spawnSync } from 'node:child_process'
import { existsSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { describe, expect, test } from 'vitest'
import {
  AdamW,
  type Device,
  devices,
  dropout,
  Generator,
  Linear,
  memory,
  ops,
  Parameter,
  rand,
  randn,
  SGD,
  scope,
  type Tensor,
  tensor,
  zeros,
} from '../../lib/index.js'
import { runChild } from '../support/child.js'
import { emulator, emulatorBuilt } from '../support/emulator.js'
import { Draw, relativeError, some, values } from '../support/numbers.js'
import { patience } from '../support/patience.js'
import { temporary } from '../support/temporary.js'

// The CUDA backend on the emulator (npm run build:simt).

process.env.ST_MOE_CUDA_LIBRARY = emulator
const bits = (x: Tensor): Buffer => {
  const data = x.dataSync()
  return Buffer.from(data.buffer, data.byteOffset, data.byteLength)
}
const both: readonly Device[] = ['cpu', 'cuda']

describe.skipIf(!emulatorBuilt)('device cuda on the emulator', () => {
  /** The results of the same program on the CPU and on the GPU. */
  function onBoth(program: (device: Device) => Tensor): [cpu: Tensor, cuda: Tensor] {
    const [cpu, cuda] = both.map((device) => {
      const result = program(device)
      expect(result.device).toBe(device === 'cpu' ? 'cpu' : 'cuda:0')
      return result
    })
    return [cpu, cuda]
  }
  function expectClose(program: (device: Device) => Tensor, bound = 1e-6): void {
    scope(() => {
      const [cpu, cuda] = onBoth(program)
      expect(cuda.shape).toEqual(cpu.shape)
      expect(relativeError(values(cuda), values(cpu))).toBeLessThanOrEqual(bound)
    })
  }
  function expectSameBits(program: (device: Device) => Tensor): void {
    scope(() => {
      const [cpu, cuda] = onBoth(program)
      expect(bits(cuda).equals(bits(cpu))).toBe(true)
    })
  }
  const draw = new Draw(7)
  const numbers = draw.array(60)

  test('it is listed', () => {
    const [, gpu] = devices()
    expect(gpu).toEqual({
      device: 'cuda:0',
      available: true,
      variant: 'emulated GPU',
      totalBytes: 2 ** 32,
      driver: 'CUDA 13.0',
    })
  })

  test('memory besides tensors is counted on its device: the cache of the process, the workspace of cuBLAS', () =>
    scope(() => {
      zeros([1 << 16]).dispose()
      const x = zeros([2, 2], { device: 'cuda' })
      x.matmul(x)
      const { cachedBytes, devices } = memory()
      expect(devices.cpu.cachedBytes).toBeGreaterThan(0)
      expect(devices['cuda:0'].cachedBytes).toBe((32 << 20) + 8) // and the device error flag
      expect(cachedBytes).toBe(devices.cpu.cachedBytes + devices['cuda:0'].cachedBytes)
    }))

  test.each(['f32', 'f64'] as const)('random numbers and copies have the bits of the CPU: %s', (dtype) => {
    expectSameBits((device) => rand([1003], { dtype, device, generator: new Generator(3, 4) }))
    expectSameBits((device) => randn([777], { dtype, device, generator: new Generator(5) }))
    expectSameBits((device) => tensor(numbers, [3, 4, 5], { dtype, device }).transpose(0, 2))
    expectSameBits((device) => tensor(numbers, [12, 5], { dtype, device }).slice(0, 2, 7).to('bf16').to('f32'))
    expectSameBits((device) => tensor(numbers, null, { dtype, device }).to('cpu').to(device))
    expectSameBits((device) => dropout(tensor(numbers, null, { dtype, device }), 0.4, new Generator(9)))
    expectSameBits((device) => zeros([3, 0], { dtype, device }))
  })

  test('element-wise ops and reductions, forward and backward', () => {
    for (const name of ['exp', 'gelu', 'silu', 'sigmoid', 'tanh', 'relu', 'square', 'abs', 'neg'] as const) {
      const grad = (device: Device): Tensor => {
        const x = tensor(numbers, [3, 4, 5], { dtype: 'f32', device, requiresGrad: true })
        const y = ops[name](x)
        y.mul(y).mean().backward()
        return x.grad as Tensor
      }
      expectClose((device) => ops[name](tensor(numbers, null, { dtype: 'f32', device })))
      expectClose(grad)
    }
    const x = (device: Device) => tensor(numbers, [3, 4, 5], { dtype: 'f64', device })
    const row = (device: Device) => tensor([2, -3, 5, 7, 11], null, { dtype: 'f64', device })
    for (const name of ['add', 'sub', 'mul', 'div'] as const) {
      expectClose((device) => ops[name](x(device), row(device)), 1e-15)
    }
    for (const axis of [0, 1, 2]) expectClose((device) => x(device).sum(axis), 1e-14)
    expectClose((device) => x(device).mean(), 1e-14)
  })

  test('optimizers', () => {
    for (const make of [
      (p: Parameter) => new AdamW([p], { lr: 0.1, weightDecay: 0.1 }),
      (p: Parameter) => new SGD([p], { lr: 0.02, momentum: 0.9, weightDecay: 0.1 }),
    ]) {
      expectClose((device) => {
        const p = new Parameter(tensor(numbers, null, { dtype: 'f32', device }))
        const optimizer = make(p)
        for (let step = 0; step < 3; step++) {
          optimizer.zeroGrad()
          p.mul(p).sum().backward()
          optimizer.step()
        }
        return p
      })
    }
  })

  test('a moved module keeps its gradients, and trains on as before', () =>
    scope(() => {
      const draw = () => {
        const layer = new Linear(5, 3, { device: 'cpu' })
        const x = tensor(numbers.slice(0, 20), [4, 5], { dtype: 'f32', device: 'cpu' })
        layer.loadStateDict({ weight: tensor(numbers.slice(0, 15), [3, 5]), bias: tensor(numbers.slice(0, 3)) })
        layer.forward(x).square().sum().backward()
        return layer
      }
      const step = (layer: Linear) => {
        new SGD(layer.parameters(), { lr: 0.1 }).step()
        return [...layer.parameters()].flatMap((p) => Array.from(values(p)))
      }
      const [stayed, moved] = [draw(), draw().to('cuda')]
      expect([...moved.parameters()].map((p) => [p.device, p.grad!.device])).toEqual([
        ['cuda:0', 'cuda:0'],
        ['cuda:0', 'cuda:0'],
      ])
      expect(relativeError(step(moved), step(stayed))).toBeLessThan(1e-6)
    }))

  test('a parameter that is its own gradient moves once', () => {
    using layer = new Linear(5, 3, { device: 'cpu' })
    layer.weight.grad = layer.weight
    expect(layer.to('cuda').weight.device).toBe('cuda:0')
    layer.weight.grad = null
  })

  test('packed copies of weights are kept on the new device of a moved module, too', () =>
    scope(() => {
      const kept = (layer: Linear) => {
        const x = zeros([32, 24], { device: layer.weight.device })
        const bytes = () => memory().devices[layer.weight.device].bytes
        const before = bytes()
        for (let i = 0; i < 3; i++) scope(() => void layer.forward(x))
        return bytes() - before
      }
      const layer = new Linear(24, 40, { computeDtype: 'bf16', device: 'cpu' })
      const onCpu = kept(layer)
      const hasBf16 = /bf16|amx/.test(devices().find(({ device }) => device === 'cpu')?.variant ?? '')
      if (hasBf16) expect(onCpu).toBeGreaterThanOrEqual(2 * 24 * 40)
      else expect(onCpu).toBe(0) // a processor without such instructions has no use for a copy
      expect(kept(layer.to('cuda'))).toBeGreaterThanOrEqual(2 * 24 * 40)
      expect(kept(layer.to('cpu'))).toBe(onCpu)
    }))

  test('AdamW and SGD write the packed copy of a weight with the weight', () =>
    scope(() => {
      const layer = new Linear(24, 40, { computeDtype: 'bf16', device: 'cuda' })
      const x = randn([32, 24], { device: 'cuda' })
      const bytes = () => memory().devices['cuda:0'].bytes
      const product = (weight: Tensor) =>
        scope(() => values(ops.linear(x, weight, layer.bias, { computeDtype: 'bf16' })))
      for (const optimizer of [new AdamW(layer.parameters()), new SGD(layer.parameters(), { lr: 0.1 })]) {
        scope(() => layer.forward(x).square().mean().backward())
        optimizer.step()
        const before = bytes()
        expect(product(layer.weight)).toEqual(scope(() => product(layer.weight.clone()))) // a clone has no copy
        expect(bytes()).toBe(before)
        optimizer.dispose()
      }
    }))

  test("the router's table of slots is used while the routing is as it made it", () => {
    const before = memory().devices['cuda:0'].tensors
    scope(() => {
      const x = randn([2, 9, 4], { device: 'cuda' })
      const routing = ops.route(x, randn([3, 4], { device: 'cuda' }), { training: false })
      const expectRows = (given: typeof routing) => {
        const { expertIndex, position, capacity } = given
        const [experts, slots] = [expertIndex, position].map((list) => list.dataSync())
        const [rows, tokens] = [ops.dispatch(x, given), x].map((list) => list.toArray<number[][][] | number[][][][]>())
        const filled = Array.from({ length: 3 }, () =>
          Array.from({ length: 2 }, () => Array(capacity).fill([0, 0, 0, 0])),
        )
        for (const [i, slot] of slots.entries()) {
          const [b, token] = [Math.floor(i / 18), Math.floor(i / 2)]
          if (slot >= 0) filled[experts[i]][b][slot] = (tokens as number[][][])[b][token % 9]
        }
        expect(rows).toEqual(filled)
      }
      expectRows(routing)
      const last = Int32Array.from(routing.position.dataSync(), (slot) => (slot < 0 ? -1 : routing.capacity - 1 - slot))
      expectRows({ ...routing, position: tensor(last, [2, 9, 2], { device: 'cuda' }) })
      routing.position.copyFrom(last)
      expectRows(routing)
    })
    expect(memory().devices['cuda:0'].tensors).toBe(before)
  })

  test('nothing leaks, and out of memory is an error after which everything works', () => {
    const before = memory().devices['cuda:0'].tensors
    scope(() => {
      expect(() => zeros([2 ** 30, 8], { device: 'cuda' })).toThrow(/OUT_OF_MEMORY|not enough memory on cuda/)
      expect(Array.from(values(tensor([1, 2], null, { device: 'cuda' }).add(1)))).toEqual([2, 3])
    })
    expect(memory().devices['cuda:0'].tensors).toBe(before)
  })
})

/** What a script of test/children prints, as JSON. */
async function printed(script: string, env: Record<string, string> = {}) {
  const { stdout, stderr, code } = await runChild(script, [], { env })
  expect(stderr).toBe('')
  expect(code).toBe(0)
  return JSON.parse(stdout)
}

test.skipIf(!emulatorBuilt)('kernels of a forward and a backward; only uneven loads wait for the device', async () => {
  const trace = join(temporary(), 'trace')
  const { report, uneven, training, trained, replay } = await printed('launches.mjs', { SIMT_TRACE: trace })
  expect(report.length).toBe(18)
  for (const { name, forward, backward } of report) {
    expect(forward.launch, name).toBeGreaterThan(0)
    expect(forward.launch, name).toBeLessThanOrEqual(6)
    expect(forward.gemm, name).toBe(2) // of the experts: the logits of few experts need none
    expect(backward.launch ?? 0, name).toBeLessThanOrEqual(5)
    for (const counts of [forward, backward]) expect(counts, name).not.toHaveProperty('copy')
    for (const counts of [forward, backward]) expect(counts, name).not.toHaveProperty('wait')
    const again = name.includes('copies') || name.includes('no gradients')
    if (again) for (const counts of [forward, backward]) expect(counts, name).not.toHaveProperty('allocation')
  }
  for (const { name, forward, backward, busy } of uneven) {
    expect(forward, name).toMatchObject({ launch: 9, gemm: name.includes('many') ? 3 : 2, copy: 2, wait: 1 }) // the sizes and the error flag
    // cuBLAS has no grouped GEMM of bf16 with float32 results: gradients of hidden rows and weights, and those of w1 are
    // of values and gates apart, since padding is between them.
    expect(backward.gemm, name).toBe(name.includes('bf16') ? 3 + 4 * busy : 6)
    for (const waits of ['copy', 'wait']) expect(backward, name).not.toHaveProperty(waits)
  }
  expect(training).not.toHaveProperty('allocation')
  expect(training.launch).toBeLessThanOrEqual(117) // and two for the tokens of the next step
  expect(trained).toMatchObject({ graph: 1, wait: 1 }) // for the loss and the norm of the gradients together
  expect(replay).toMatchObject({ graph: 1, copy: 1 })
  expect(replay).not.toHaveProperty('launch')
})

test.skipIf(!emulatorBuilt)(
  'a GPU that is full at any allocation of a step: an error, and everything still works',
  async () => {
    const { failures, wrong, loss } = await printed('full-gpu.mjs')
    expect(wrong).toEqual([])
    expect(failures).toBeGreaterThan(40)
    expect(Number.isFinite(loss)).toBe(true)
  },
)

test.skipIf(!emulatorBuilt)('memory from before a capture that is freed during it comes back', async () => {
  // 16 MB besides the workspace of cuBLAS
  expect(await printed('frees-in-capture.mjs', { SIMT_MEMORY_MB: String(16 + 32) })).toEqual({ failed: [] })
})

test.skipIf(!emulatorBuilt)('two GPUs: memory that is kept, by two threads, and copies between them', async () => {
  const trace = join(temporary(), 'trace')
  const env = { SIMT_TRACE: trace, SIMT_DEVICES: '2', SIMT_MEMORY_MB: String(16 + 32) }
  expect(await printed('gpu-memory.mjs', env)).toEqual({ wrong: [] })
})

describe.skipIf(!emulatorBuilt)('a kernel that faults', () => {
  const text =
    /^\[[\w.]+\] a fault occurred on the device, an illegal memory access was encountered \(cudaErrorIllegalAddress\), in (one of the kernels since the last wait: )?[\w<>, ]+.*; this process cannot use the device again$/

  test.each(some([3, 25, 1, 10, 40], 2))(
    'launch %i of training: every later call on the GPU says so, the CPU works',
    async (n) => {
      for (const streams of ['eager', 'lazy']) {
        const { first, later, cpu, losses } = await printed('device-fault.mjs', {
          SIMT_STREAMS: streams,
          FAULT_AT: String(n),
        })
        expect(first.message).toMatch(text)
        const reason = (message: string) => message.slice(message.indexOf(']'))
        for (const { name, code, message } of [first, ...later]) {
          expect({ name, code, reason: reason(message) }).toEqual({
            name: 'MoeError',
            code: 'DEVICE_FAULT',
            reason: reason(first.message),
          })
        }
        expect(later.length).toBe(8)
        expect(cpu).toEqual([2, 4])
        expect(losses).toEqual([losses[0], losses[0]]) // training on the CPU before and after
      }
    },
  )

  test('ST_MOE_CUDA_SYNC=1 names the kernel', async () => {
    const { first } = await printed('device-fault.mjs', { ST_MOE_CUDA_SYNC: '1', FAULT_AT: '3' })
    expect(first.message).toMatch(/cudaErrorIllegalAddress\), in \w+_kernel(<[^;]*>)?; this process/)
  })
})

test.skipIf(!emulatorBuilt)('TF32 is an option of GEMMs, but never of the router', async () => {
  const run = (env: Record<string, string>) => printed('tf32.mjs', env)
  const fine = 1 + 2 ** -12
  const chosen = [
    [1, 0],
    [1, 0],
  ]
  expect(await run({ ST_MOE_TF32: '0' })).toEqual({ product: fine, chosen })
  expect(await run({ ST_MOE_TF32: '1' })).toEqual({ product: 1, chosen })
})

test.skipIf(!emulatorBuilt)('the demo trains a few steps on the emulator', () => {
  const folder = temporary('st-moe-simt-')
  const text = join(folder, 'text.txt')
  writeFileSync(text, 'the quick brown fox jumps over the lazy dog. '.repeat(60))
  const small = ['--layers', '1', '--dim', '16', '--heads', '2', '--context', '16', '--batch', '2', '--experts', '4']
  const { status, stdout, stderr } = spawnSync(
    fileURLToPath(new URL('../../node_modules/.bin/tsx', import.meta.url)),
    ['examples/train-language-model.ts', '--device', 'cuda', '--text', text, '--out', folder, '--steps', '3', ...small],
    { cwd: fileURLToPath(new URL('../..', import.meta.url)), encoding: 'utf8', timeout: patience },
  )
  expect(stderr).toBe('')
  expect(stdout).toMatch(/step 3 of 3/)
  expect(status).toBe(0)
  expect(existsSync(join(folder, 'report.html'))).toBe(true)
})
