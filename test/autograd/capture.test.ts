import { once } from 'node:events'
import { Worker } from 'node:worker_threads'
import { describe, expect, test } from 'vitest'
import {
  AdamW,
  type ComputeDType,
  captureStep,
  clipGradNorm,
  type Device,
  dropout,
  Generator,
  Linear,
  MoE,
  manualSeed,
  memory,
  mseLoss,
  type Optimizer,
  ones,
  ops,
  type Parameter,
  randn,
  SGD,
  SoftMoE,
  scope,
  type Tensor,
  tensor,
  trainStepAsync,
  zeros,
} from '../../lib/index.js'
import { useEmulator } from '../support/emulator.js'
import { disposeOwned, own, owned } from '../support/owned.js'

// A captured step vs. the same step run repeatedly. The GPU is the emulator (npm run build:simt) unless
// ST_MOE_CUDA_LIBRARY names another plugin.

const devices: Device[] = useEmulator() ? ['cpu', 'cuda'] : ['cpu']
const bits = (x: Tensor): string => Buffer.from(x.dataSync().buffer).toString('hex')

interface Training {
  parameters: Parameter[]
  optimizer: Optimizer
  generator: Generator
  x: Tensor
  step: () => { loss: Tensor; norm: Tensor }
}

/** Layers with noise in their routing, dropout and random numbers of two generators. */
function training(
  device: Device,
  computeDtype: ComputeDType,
  make: (p: Iterable<Parameter>) => Optimizer = (p) => new AdamW(p, { lr: 1e-2 }),
): Training {
  manualSeed(11)
  const moe = own(new MoE({ dim: 8, numExperts: 4, noiseGates: true, device, computeDtype }))
  const out = own(new Linear(8, 8, { device, computeDtype }))
  const soft = own(new SoftMoE({ dim: 8, numExperts: 2, numSlots: 2, dropout: 0.2, device, computeDtype }))
  const mask = own(ones([2, 6], { device }))
  const parameters = [...moe.parameters(), ...out.parameters(), ...soft.parameters()]
  const optimizer = own(make(parameters))
  const generator = new Generator(5)
  const x = own(randn([2, 6, 8], { device }))
  const step = () => {
    optimizer.zeroGrad()
    const { outputs, totalAuxLoss } = moe.forward(x)
    const mixed = soft.forward(outputs, { mask, addNoise: true }).add(outputs)
    const y = out.forward(dropout(mixed, 0.2)).add(randn([8], { device, generator }))
    const loss = mseLoss(y, x).add(totalAuxLoss)
    loss.backward()
    const norm = clipGradNorm(parameters, 0.1, { wait: false })
    optimizer.step()
    return { loss, norm }
  }
  return { parameters, optimizer, generator, x, step }
}

const batch = (i: number): Float32Array => Float32Array.from({ length: 96 }, (_, j) => Math.sin(i * 97 + j))

/** Everything that a loop leaves behind. */
function left({ parameters, optimizer, generator }: Training): unknown {
  return scope(() => ({
    parameters: parameters.map(bits),
    grads: parameters.map((p) => p.grad && bits(p.grad)),
    state: Object.entries(optimizer.stateDict()).map(([name, value]) => [name, bits(value)]),
    samples: [generator.step, manualSeedState()],
  }))
}
/** The step of the environment's generator, told by the next sample. */
const manualSeedState = (): string => bits(randn([4]))

/** Losses and what is left of `steps` steps, one call or one replay each. */
function loop(t: Training, steps: number, replays: boolean): unknown {
  const captured = replays ? own(captureStep(t.step, { device: t.x.device })) : null
  const losses: number[] = []
  for (let i = 0; i < steps; i++) {
    t.x.copyFrom(batch(i))
    if (t.optimizer instanceof AdamW) t.optimizer.lr = 1e-2 / (i + 1)
    const numbers = ({ loss, norm }: ReturnType<Training['step']>) => [loss.item(), norm.item()]
    losses.push(...(captured ? numbers(captured.replay()) : scope(() => numbers(t.step()))))
  }
  return { losses, ...(left(t) as object) }
}

test('copyFrom writes in place, converts, and rejects mismatches', () => {
  const x = own(zeros([2, 2]))
  const alias = own(x.detach())
  expect(
    Array.from(
      x
        .copyFrom([
          [1, 2],
          [3, 4],
        ])
        .dataSync(),
    ),
  ).toEqual([1, 2, 3, 4])
  expect(Array.from(alias.dataSync())).toEqual([1, 2, 3, 4])
  scope(() => {
    x.copyFrom(tensor(Float64Array.of(5, 6, 7, 8), [2, 2]))
    expect(Array.from(x.dataSync())).toEqual([5, 6, 7, 8])
    x.copyFrom(alias)
    expect(Array.from(x.dataSync())).toEqual([5, 6, 7, 8])
    expect(() => x.copyFrom(zeros([4]))).toThrow(/\[Tensor.copyFrom\] source must be \[2, 2\], got \[4\]/)
    expect(() => x.copyFrom([1, 2])).toThrow(/source must be \[2, 2\], got \[2\]/)
    expect(() => x.copyFrom(new Float32Array(3))).toThrow(/needs 4 values, data has 3/)
    const w = zeros([2], { requiresGrad: true })
    const square = w.mul(w)
    expect(() => square.copyFrom([1, 2])).toThrow(/UNSUPPORTED|result of a recorded operation/)
    w.copyFrom([1, 2])
    expect(() => square.sum().backward()).toThrow(/changed in place/)
  })
})

describe.each(devices)('on %s', (device) => {
  const key = device === 'cuda' ? 'cuda:0' : device
  test.each(['f32', 'bf16'] as const)('replays return the bits of the loop: AdamW, %s', (computeDtype) => {
    const eager = loop(training(device, computeDtype), 4, false)
    expect(loop(training(device, computeDtype), 4, true)).toEqual(eager)
  })

  test('replays return the bits of the loop: SGD with momentum, after uncaptured steps', () => {
    const make = (p: Iterable<Parameter>) => new SGD(p, { lr: 1e-2, momentum: 0.9, weightDecay: 0.1 })
    const run = (replays: boolean) => {
      const t = training(device, 'f32', make)
      scope(() => t.step())
      return loop(t, 3, replays)
    }
    expect(run(true)).toEqual(run(false))
  })

  test('capturing runs nothing', () => {
    const t = training(device, 'bf16')
    scope(() => t.step())
    const before = left(t)
    manualSeed(11)
    const step = own(captureStep(t.step, { device }))
    expect(left({ ...t, parameters: [] })).toMatchObject({ state: (before as { state: unknown }).state })
    expect(t.parameters.map(bits)).toEqual((before as { parameters: unknown }).parameters)
    expect(Number.isNaN(step.replay().loss.item())).toBe(false)
  })

  test('ordinary use between replays: evaluation, a loaded state, another sample', () => {
    const run = (replays: boolean) => {
      const t = training(device, 'bf16')
      const [moe] = owned as unknown as [MoE]
      const step = replays ? own(captureStep(t.step, { device })) : null
      const seen: unknown[] = []
      for (let i = 0; i < 3; i++) {
        scope(() => (step ?? { replay: t.step }).replay())
        scope(() => {
          seen.push(bits(moe.eval().forward(t.x).outputs)) // packed copies of the weights as they are now
          moe.train()
          seen.push(bits(randn([3], { device })))
          if (i === 1)
            moe.loadStateDict(Object.fromEntries(Object.entries(moe.stateDict()).map(([k, v]) => [k, v.mul(0.5)])))
        })
      }
      const state = left(t)
      disposeOwned()
      return { seen, state }
    }
    expect(run(true)).toEqual(run(false))
  })

  test('a weight that has changed since: replays read it, although a packed copy was there before the step', () => {
    const layer = own(new Linear(24, 40, { computeDtype: 'bf16', device }))
    const x = own(randn([8, 24], { device }))
    for (let i = 0; i < 2; i++) layer.forward(x).dispose()
    const step = own(captureStep(() => layer.forward(x), { device }))
    for (const scale of [1, -2]) {
      scope(() => layer.weight.copyFrom(layer.weight.detach().mul(scale)))
      expect(bits(step.replay())).toBe(scope(() => bits(layer.forward(x))))
    }
  })

  test('a generator reseeded between replays samples the same numbers as outside a step', () => {
    const generator = new Generator(5)
    const step = own(captureStep(() => randn([64], { device, generator }), { device }))
    for (const seed of [5, 7, 2 ** 40]) {
      generator.setState({ seed, step: 3 })
      const own = scope(() => bits(randn([64], { device, generator: new Generator(seed, 3) })))
      expect(bits(step.replay())).toBe(own)
    }
  })

  test('a failed replay does not advance generators', () => {
    const generator = new Generator(5)
    const x = own(zeros([4], { device }))
    const step = own(captureStep(() => randn([4], { device, generator }).add(x), { device }))
    step.replay()
    x.dispose()
    expect(() => step.replay()).toThrow(/has been disposed/)
    expect(generator.step).toBe(1)
  })

  test('gradients add up if the step does not clear them', () => {
    const run = (replays: boolean) => {
      const w = own(tensor([1, 2, 3], null, { device, requiresGrad: true }))
      w.mul(w).sum().backward()
      const step = () => w.mul(w).sum().backward()
      const captured = replays ? own(captureStep(step, { device })) : null
      for (let i = 0; i < 3; i++) captured ? captured.replay() : step()
      return Array.from((w.grad as Tensor).dataSync())
    }
    expect(run(true)).toEqual(run(false))
  })

  test('a result is NaN, or −1 if it has integers, until the first replay', () => {
    const x = own(ones([300], { device }))
    const made: Tensor[] = []
    const step = own(
      captureStep(
        () => {
          made.push(x.mul(2), ops.argmax(x.reshape([100, 3]), 1))
          return made
        },
        { device },
      ),
    )
    expect([...made[0].dataSync()]).toEqual(new Array(300).fill(Number.NaN))
    expect([...made[1].dataSync()]).toEqual(new Array(100).fill(-1))
    step.replay()
    expect([...made[0].dataSync()]).toEqual(new Array(300).fill(2))
    expect([...made[1].dataSync()]).toEqual(new Array(100).fill(0))
  })

  test('a mask is read anew by each replay, and its NaN reported', () => {
    const moe = own(new MoE({ dim: 4, numExperts: 2, device }))
    const x = own(randn([1, 3, 4], { device }))
    const mask = own(tensor([[1, 1, 1]], null, { device }))
    const step = own(captureStep(() => moe.forward(x, { mask }).routing.kept, { device }))
    const topOne = () => Array.from(step.replay().dataSync()).filter((_, i) => i % 2 === 0)
    expect(topOne()).toEqual([1, 1, 1])
    mask.copyFrom([[0, 0.5, -1]])
    expect(topOne()).toEqual([0, 1, 1])
    mask.copyFrom([[0, NaN, 1]])
    // on a GPU by the next read
    expect(topOne).toThrow(
      expect.objectContaining({ code: 'NON_FINITE', op: device === 'cpu' ? 'tokenMask' : 'toData' }),
    )
    mask.copyFrom([[0, 0, 1]])
    expect(topOne()).toEqual([0, 0, 1])
  })

  test('a backward of what was computed from a result is an error after the next replay', () => {
    const x = own(randn([4], { device }))
    const w = own(ones([4], { device, requiresGrad: true }))
    const step = own(captureStep(() => x.mul(2), { device }))
    const loss = () => own(w.mul(step.replay()).sum())
    loss().backward()
    expect(w.grad!.dataSync()).toEqual(scope(() => x.mul(2).dataSync()))
    const before = loss()
    step.replay()
    expect(() => before.backward()).toThrow(/changed in place/)
  })

  test('memory is constant from replay to replay, and is freed', () => {
    const used = () => {
      const { tensors, bytes, peakBytes } = memory().devices[key]
      return { tensors, bytes, peakBytes }
    }
    const before = used()
    const t = training(device, 'bf16')
    const step = captureStep(t.step, { device })
    step.replay()
    const first = used()
    for (let i = 0; i < 3; i++) step.replay()
    expect(used()).toEqual(first)
    expect(first.bytes).toBeGreaterThan(before.bytes)
    t.optimizer.zeroGrad()
    const held = used().bytes
    step.dispose()
    expect(used().bytes).toBeLessThan(held)
    disposeOwned()
    expect(used().bytes).toBe(before.bytes)
    expect(used().tensors).toBe(before.tensors)
  })

  test('a gradient outlives the step whose memory it has', () => {
    const t = training(device, 'f32')
    const step = captureStep(t.step, { device })
    step.replay()
    const grads = t.parameters.map((p) => bits(p.grad as Tensor))
    step.dispose()
    expect(t.parameters.map((p) => bits(p.grad as Tensor))).toEqual(grads)
    scope(() => t.step())
  })

  test('a worker that is terminated in the middle of a step', async () => {
    const worker = new Worker(new URL('../children/capture-forever.mjs', import.meta.url), { workerData: device })
    await once(worker, 'message')
    expect(await worker.terminate()).toBe(1)
    expect(Array.from(scope(() => zeros([2], { device }).add(1).dataSync()))).toEqual([1, 1])
  })

  describe('what cannot be captured is an error that changes nothing', () => {
    const attempts: [string, (t: Training) => unknown, RegExp][] = [
      [
        'item',
        ({ step }) => step().loss.item(),
        /\[Tensor.item\] it waits for the device, which a captured step cannot do/,
      ],
      ['dataSync', ({ step }) => step().loss.dataSync(), /\[Tensor.dataSync\] it waits/],
      ['to', ({ step }) => step().loss.to(other!), /\[to\] it copies through the host/],
      ['clipGradNorm', (t) => [t.step(), clipGradNorm(t.parameters, 1)], /\[clipGradNorm\] it waits for the device/],
      ['data of the host', ({ x }) => x.add(tensor([1], null, { device })), /values of the host cannot be copied/],
      ['another device', () => zeros([2], { device: other }).add(1), /must not compute on (cpu|cuda)/],
      ['an exception', ({ step }) => [step(), thrown()], /^mine$/],
      ['a promise', async ({ step }) => step(), /\[captureStep\] fn must not be async/],
      ['a step in a step', ({ step }) => captureStep(step, { device }), /being captured already/],
      ['a seed', ({ step }) => [manualSeed(1), step()], /\[Generator.setState\]/],
      [
        'a gradient left behind',
        ({ x, parameters: [p] }) => [x, p.mul(p).sum().backward()],
        /call zeroGrad\(\) at the start/,
      ],
    ]
    const other = devices.find((one) => one !== device)
    const thrown = () => {
      throw new Error('mine')
    }
    test.each(attempts.filter(([name]) => other || !['to', 'another device'].includes(name)))(
      '%s',
      (_, attempt, message) => {
        const eager = loop(training(device, 'bf16'), 2, false)
        disposeOwned()
        const t = training(device, 'bf16')
        const before = memory().devices[key].tensors
        expect(() => captureStep(() => attempt(t), { device })).toThrow(message)
        const states = scope(
          () => Object.keys(t.optimizer.stateDict()).filter((name) => !name.endsWith('.step')).length,
        )
        expect(memory().devices[key].tensors).toBe(before + states) // the optimizer may have made its state
        expect(t.parameters.every((p) => p.grad === null)).toBe(true)
        expect(loop(t, 2, true)).toEqual(eager)
      },
    )

    test('a backward of what was recorded before the step, and after it', () => {
      const w = own(tensor([1, 2], null, { device, requiresGrad: true }))
      const loss = own(w.mul(w).sum())
      expect(() => captureStep(() => loss.backward(), { device })).toThrow(/ran outside a captured step/)
      const step = own(captureStep(() => w.mul(w).sum(), { device }))
      expect(step.replay().item()).toBe(5)
      expect(step.replay().requiresGrad).toBe(false)
      loss.backward()
      expect(Array.from((w.grad as Tensor).dataSync())).toEqual([2, 4])
    })

    test('a replay after the step or a parameter is gone, and inside of another', () => {
      const t = training(device, 'f32')
      const step = own(captureStep(t.step, { device }))
      step.replay()
      expect(() => captureStep(() => step.replay(), { device })).toThrow(/a step is being captured/)
      step.replay()
      expect(() => t.x.copyFrom(zeros([2, 6, 9]))).toThrow(/SHAPE|must be \[2, 6, 8\], got \[2, 6, 9\]/)
      const count = () => scope(() => t.optimizer.stateDict()['1.step'].item())
      const drawing = [manualSeed(3), t.generator]
      const left = () => [count(), ...drawing.map((generator) => generator.step)]
      const before = left()
      t.parameters[0].dispose()
      expect(() => step.replay()).toThrow(/has been disposed, replaced or moved; capture the step again/)
      expect(left()).toEqual(before)
      step.dispose()
      expect(() => step.replay()).toThrow(/\[CapturedStep.replay\] the step has been disposed/)
      expect(Array.from(own(ops.add(t.x, 0)).shape)).toEqual([2, 6, 8])
    })
  })
})

test.skipIf(!devices.includes('cuda'))('a replay on a GPU is refused in an asynchronous call', async () => {
  const x = own(tensor([1, 2], null, { device: 'cuda' }))
  const step = own(captureStep(() => x.square(), { device: 'cuda' }))
  const refusal = { code: 'UNSUPPORTED', message: expect.stringContaining('a replay does not wait') }
  await expect(trainStepAsync(() => step.replay())).rejects.toThrow(expect.objectContaining(refusal))
  expect([...step.replay().dataSync()]).toEqual([1, 4])
})
