import { setImmediate as nextTurn } from 'node:timers/promises'
import { describe, expect, test } from 'vitest'
import {
  AdamW,
  type ComputeDType,
  CosineSchedule,
  clipGradNorm,
  EMA,
  Embedding,
  keep,
  Linear,
  MoE,
  type MoeError,
  manualSeed,
  memory,
  mseLoss,
  noGrad,
  ones,
  randn,
  resetPeakMemory,
  SGD,
  scope,
  type Tensor,
  tensor,
  trainStepAsync,
  zeros,
} from '../../lib/index.js'
import type { Subject } from '../support/gradcheck.js'
import { large } from '../support/large.js'
import { lossRows } from '../support/loss-rows.js'
import { moduleRows } from '../support/module-rows.js'
import { moeRows } from '../support/moe-rows.js'
import { values } from '../support/numbers.js'
import { opRows } from '../support/op-rows.js'

const bits = (tensors: readonly Tensor[]): string[] =>
  tensors.map((x) => Buffer.from(x.dataSync().buffer).toString('hex'))

/** Results of a subject, and the gradients of all its leaves. */
function step(subject: Subject, dtype: 'f32' | 'f64'): Tensor[] {
  manualSeed(5)
  return subject.run(subject.leaves, dtype, (results, gradients) => {
    const losses = results.filter((result) => result.dtype !== 'i32').map((result) => result.square().sum())
    losses.reduce((a, b) => a.add(b)).backward()
    return [...results, ...Object.values(gradients()).map((gradient) => gradient.clone())]
  })
}

describe('forward and backward have the bits of synchronous ones', () => {
  test.each([...opRows, ...lossRows, ...moeRows, ...moduleRows])('$name', async ({ subjects }) => {
    const before = memory().tensors
    await scope(async () => {
      for (const subject of subjects()) {
        for (const dtype of ['f32', 'f64'] as const) {
          const now = scope(() => step(subject, dtype))
          const later = await trainStepAsync(() => step(subject, dtype))
          expect(bits(later), `${subject.label} ${dtype}`).toEqual(bits(now))
          for (const result of [...now, ...later]) result.dispose()
        }
        subject.dispose()
      }
    })
    expect(memory().tensors).toBe(before)
  })
})

const turns = async (count: number): Promise<void> => {
  for (let i = 0; i < count; i++) await nextTurn()
}

/** A small model and its training step. */
function training(computeDtype?: ComputeDType) {
  manualSeed(3)
  const model = new MoE({ dim: 16, numExperts: 4, computeDtype })
  const optimizer = new AdamW(model.parameters(), { lr: 1e-2, weightDecay: 0.1 })
  const schedule = new CosineSchedule(optimizer, { warmUp: 2, steps: 10 })
  const x = randn([2, 32, 16])
  const step = (): Tensor => {
    optimizer.zeroGrad()
    const { outputs, totalAuxLoss } = model.forward(x)
    const loss = mseLoss(outputs, x).add(totalAuxLoss)
    loss.backward()
    clipGradNorm(model.parameters(), 0.1, { wait: false }).dispose()
    schedule.step()
    optimizer.step()
    return loss
  }
  const state = (): string[] =>
    scope(() => [
      ...bits(Object.values(model.stateDict())),
      ...bits(Object.values(optimizer.stateDict())),
      JSON.stringify(schedule),
      String(optimizer.lr),
    ])
  const dispose = (): void => [x, optimizer, model].forEach((owned) => void owned.dispose())
  return { model, optimizer, schedule, x, step, state, dispose }
}

describe('trainStepAsync', () => {
  test.each(['f32', 'bf16'] as const)(
    'trains to the same bits in %s, in flat memory, with the peak of synchronous steps',
    async (compute) => {
      const [now, later] = [training(compute), training(compute)]
      const before = memory().tensors
      const peakOf = async (run: () => Promise<void>): Promise<number> => {
        resetPeakMemory()
        const { bytes } = memory()
        await run()
        return memory().peakBytes - bytes
      }
      manualSeed(8)
      const losses: string[][] = [[], []]
      const loop = async (i: number, call: () => Tensor | Promise<Tensor>) => {
        for (let step = 0; step < 6; step++) {
          const loss = await call()
          losses[i].push(...bits([loss]))
          loss.dispose()
        }
      }
      await loop(0, () => scope(now.step))
      manualSeed(8)
      await loop(1, () => trainStepAsync(later.step))
      expect(losses[1]).toEqual(losses[0])
      expect(later.state()).toEqual(now.state())
      const peaks = [
        await peakOf(() => loop(0, () => scope(now.step))),
        await peakOf(() => loop(1, () => trainStepAsync(later.step))),
      ]
      expect(peaks[1]).toBeLessThanOrEqual(peaks[0])
      expect(memory().tensors - before).toBe(now.optimizer.parameters.length * 2 * 3)
      for (const owned of [now, later]) owned.dispose()
    },
  )

  test('the event loop goes on meanwhile', async () => {
    let ticks = 0
    // until the work is enough for so many turns
    for (let work = 1; ticks <= 10 && work < 1000; work *= 2) {
      ticks = 0
      let running = true
      const done = trainStepAsync(() => {
        for (let i = 0; i < work; i++) large()
      }).finally(() => {
        running = false
      })
      for (; running; ticks++) await nextTurn()
      await done
    }
    expect(ticks).toBeGreaterThan(10)
  })

  test('calls run in their order, and what is synchronous waits for the one that runs', async () => {
    const order: string[] = []
    const x = zeros([2])
    const add = (n: number) => () => {
      order.push(`fn ${n}`)
      large().dispose()
      x.copyFrom(x.add(n))
    }
    const calls = [1, 2, 3].map((n) => trainStepAsync(add(n)).then(() => order.push(`end ${n}`)))
    while (order.length === 0) await nextTurn()
    const begun = order.filter((entry) => entry.startsWith('fn')).length
    expect(x.dataSync()[0]).toBe([0, 1, 3, 6][begun])
    await Promise.all(calls)
    expect(order).toEqual(['fn 1', 'end 1', 'fn 2', 'end 2', 'fn 3', 'end 3'])
    expect(Array.from(x.dataSync())).toEqual([6, 6])
    x.dispose()
  })

  test('tensors can be made and others be read while a call runs', async () => {
    const other = ones([3])
    const done = trainStepAsync(large)
    await turns(1)
    const made = tensor([1, 2])
    expect([...made.dataSync(), ...other.dataSync(), ...(await other.dataAsync())]).toEqual([1, 2, 1, 1, 1, 1, 1, 1])
    for (const owned of [made, other, await done]) owned.dispose()
  })

  test('tensors that are disposed while a call uses them are freed after it', async () => {
    const before = memory()
    const x = ones([300, 300])
    const done = trainStepAsync(() => large().sum().add(x.sum()))
    await turns(1)
    x.dispose()
    const result = await done
    expect(result.item()).not.toBeNaN()
    result.dispose()
    expect(memory()).toMatchObject({ tensors: before.tensors, bytes: before.bytes })
  })

  test('what fails while it is computed rejects, and all is as before the step', async () => {
    const { model, optimizer, schedule, x, step, state, dispose } = training()
    ;(await trainStepAsync(step)).dispose()
    const table = new Embedding(4, 16)
    const second = new SGD(table.parameters(), { lr: 1, momentum: 0.9 })
    const before = state()
    const { tensors } = memory()
    const failing = trainStepAsync(() => {
      model.zeroGrad()
      const rows = table.forward(tensor(Int32Array.of(0, 4)))
      const loss = model
        .forward(x)
        .outputs.add(rows.sum())
        .add(randn([16]))
        .sum()
      loss.backward()
      schedule.step()
      optimizer.step()
      second.step()
      return loss
    })
    await expect(failing).rejects.toThrow(/index must be in \[0, [4V]\), got 4/)
    if (x.device === 'cpu') {
      const parameters = [...model.parameters(), ...table.parameters()]
      expect(parameters.map(({ grad }) => grad)).toEqual(parameters.map(() => null))
      expect(second.stateDict()).toEqual({})
      expect(state()).toEqual(before)
      expect(memory().tensors).toBe(tensors - [...model.parameters()].length) // gradients
    }
    const steps = scope(() => optimizer.stateDict()['0.step'].item())
    expect(steps).toBe(x.device === 'cpu' ? 1 : 2) // a GPU reports it after the step
    ;(await trainStepAsync(step)).dispose()
    expect(scope(() => optimizer.stateDict()['0.step'].item())).toBe(steps + 1)
    for (const owned of [table, second]) owned.dispose()
    dispose()
  })

  test.each(['f32', 'bf16'] as const)('in %s, what ran before the failing operation is undone', async (compute) => {
    const [failed, never] = [training(compute), training(compute)]
    const table = new Embedding(4, 16)
    const extra = zeros([2])
    for (const { model, step, x } of [failed, never]) {
      manualSeed(4)
      scope(() => {
        step()
        model.forward(x).outputs.sum().backward()
      })
    }
    const grads = () => bits(failed.model.parameters().map(({ grad }) => grad!))
    const before = [failed.state(), grads()]
    const failing = trainStepAsync(() => {
      failed.model.forward(failed.x).outputs.sum().backward() // into the gradients of before
      failed.optimizer.step()
      extra.copyFrom([1, 2])
      failed.optimizer.step()
      for (let i = 0; i < 2; i++) failed.model.forward(failed.x) // packs the updated weights
      table.forward(tensor(Int32Array.of(9)))
    })
    await expect(failing).rejects.toThrow(/got 9/)
    if (extra.device === 'cpu') {
      expect([failed.state(), grads()]).toEqual(before)
      expect(values(extra)).toEqual(Float32Array.of(0, 0))
      const [a, b] = [failed, never].map(({ step, state }) => {
        manualSeed(6)
        return [scope(() => bits([step()])), state()]
      })
      expect(a).toEqual(b)
    }
    for (const owned of [failed, never, table, extra]) owned.dispose()
  })

  test('a step that ends with its updates copies nothing', async () => {
    const { model, optimizer, x, step, dispose } = training()
    using ema = new EMA(model)
    ;(await trainStepAsync(step)).dispose()
    resetPeakMemory()
    const { bytes } = memory()
    await trainStepAsync(() => {
      optimizer.step()
      ema.update()
      optimizer.step()
    })
    if (x.device === 'cpu') expect(memory().peakBytes).toBe(bytes)
    dispose()
  })

  test('a tensor whose computation failed is an error at every use', async () => {
    const table = new Embedding(4, 2)
    let lost: Tensor | undefined
    const failing = trainStepAsync(() => {
      lost = table.forward(tensor(Int32Array.of(9)))
      keep(lost)
    })
    await expect(failing).rejects.toThrow(/got 9/)
    const used = lost as unknown as Tensor
    if (used.device === 'cpu')
      for (const use of [() => used.dataSync(), () => used.add(1), () => used.clone(), () => used.sum()])
        expect(use).toThrow(/has no values: the call that computes it failed/)
    for (const owned of [used, table]) owned.dispose()
  })

  test('errors of fn pass through, and nothing of the step has happened', async () => {
    const { step, state, dispose } = training()
    const before = state()
    const error = new Error('mine')
    const fails = trainStepAsync(() => {
      step()
      throw error
    })
    await expect(fails).rejects.toBe(error)
    expect(state()).toEqual(before)
    dispose()
  })

  test('what waits for values inside, and what is no step, is an error', async () => {
    const x = ones([2])
    const rejected = async (fn: () => unknown): Promise<string> =>
      trainStepAsync(fn).then(
        () => 'none',
        (error: MoeError) => `${error.code} ${error.op}`,
      )
    expect(await rejected(() => x.sum().item())).toBe('UNSUPPORTED Tensor.item')
    expect(await rejected(() => x.add(1).dataSync())).toBe('UNSUPPORTED Tensor.dataSync')
    using careful = new MoE({ dim: 2, numExperts: 2, onNonFinite: 'throw' })
    expect(await rejected(() => careful.forward(x.reshape([1, 1, 2])))).toBe('UNSUPPORTED MoE.forward')
    expect(await rejected(() => new Linear(2, 2))).toBe('UNSUPPORTED Parameter')
    expect(await rejected(async () => x.add(1))).toBe('OPTION trainStepAsync')
    expect(await rejected(undefined as never)).toBe('OPTION trainStepAsync')
    const bad = trainStepAsync(() => 1, { signal: 3 } as never)
    await expect(bad).rejects.toThrow(/signal must be an AbortSignal, got 3/)
    expect(await trainStepAsync(() => `${x.add(1)}`)).toMatch(/^Tensor\(\[2\], f32, /)
    x.dispose()
  })
})

describe('forwardAsync and dataAsync', () => {
  test('give what forward and dataSync give, with options and a signal', async () => {
    const moe = new MoE({ dim: 16, numExperts: 4 }).eval()
    const x = randn([1, 8, 16])
    const { signal } = new AbortController()
    const mask = ones([1, 8])
    const { outputs } = scope(() => moe.forward(x))
    const results = await Promise.all([
      moe.forwardAsync(x),
      moe.forwardAsync(x, { signal }),
      noGrad(() => moe.forwardAsync(x, { mask }, { signal })),
      moe.forwardAsync(x, { mask, signal } as { mask: Tensor }),
    ])
    for (const result of results) expect(bits([result.outputs])).toEqual(bits([outputs]))
    expect(results.map((result) => result.outputs.requiresGrad)).toEqual([true, true, false, true])
    const data = [await outputs.dataAsync({ signal }), await outputs.data()]
    expect(data).toEqual([outputs.dataSync(), outputs.dataSync()])
    for (const owned of [moe, x, mask]) owned.dispose()
    await expect(x.dataAsync()).rejects.toThrow(/disposed/)
  })
})
