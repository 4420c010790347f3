import { describe, expect, test } from 'vitest'
import {
  AdamW,
  clipGradNorm,
  Embedding,
  Lion,
  Module,
  MoE,
  MoEResult,
  type Optimizer,
  ones,
  Parameter,
  randn,
  SGD,
  scope,
  tensor,
} from '../../lib/index.js'
import { live } from '../support/baseline.js'
import type { Float } from '../support/golden-case.js'
import { bitsOf, Draw, relativeError, values } from '../support/numbers.js'

const limit = { f32: 1e-5, f64: 1e-13 }
const sizes = [1, 7, 33, 1000]

interface Plain {
  p: Float64Array
  buffers: Float64Array[]
}

/** torch.optim.AdamW, from its documentation. */
function adamw(
  { p, buffers: [m, v] }: Plain,
  g: Float64Array,
  t: number,
  o: { lr: number; betas: number[]; eps: number; weightDecay: number },
) {
  const [beta1, beta2] = o.betas
  for (let i = 0; i < p.length; i++) {
    p[i] -= o.lr * o.weightDecay * p[i]
    m[i] = beta1 * m[i] + (1 - beta1) * g[i]
    v[i] = beta2 * v[i] + (1 - beta2) * g[i] ** 2
    p[i] -= (o.lr * (m[i] / (1 - beta1 ** t))) / (Math.sqrt(v[i] / (1 - beta2 ** t)) + o.eps)
  }
}

/** torch.optim.SGD, from its documentation. */
function sgd(
  { p, buffers: [b] }: Plain,
  g: Float64Array,
  t: number,
  o: { lr: number; momentum: number; weightDecay: number },
) {
  for (let i = 0; i < p.length; i++) {
    const decayed = g[i] + o.weightDecay * p[i]
    b[i] = t === 1 ? decayed : o.momentum * b[i] + decayed
    p[i] -= o.lr * (o.momentum > 0 ? b[i] : decayed)
  }
}

/** Lion, from algorithm 2 of its paper. */
function lion(
  { p, buffers: [m] }: Plain,
  g: Float64Array,
  o: { lr: number; betas: readonly [number, number]; weightDecay: number },
) {
  const [beta1, beta2] = o.betas
  for (let i = 0; i < p.length; i++) {
    const update = Math.sign(beta1 * m[i] + (1 - beta1) * g[i])
    m[i] = beta2 * m[i] + (1 - beta2) * g[i]
    p[i] -= o.lr * (update + o.weightDecay * p[i])
  }
}

/** Steps of an optimizer and of its plain form on the same gradients; returns the relative error of all parameters. */
function compare(
  dtype: Float,
  make: (parameters: Parameter[]) => Optimizer & { lr: number },
  plainStep: (plain: Plain, g: Float64Array, t: number, lr: number) => void,
): number {
  const draw = new Draw(3)
  const starts = sizes.map((size) => draw.array(size, () => Math.fround(draw.normal())))
  const plain = starts.map((p) => ({ p: p.slice(), buffers: [p.map(() => 0), p.map(() => 0)] }))
  return scope(() => {
    const parameters = starts.map((p) => new Parameter(tensor(p, [p.length], { dtype })))
    const optimizer = make(parameters)
    const seen = sizes.map(() => 0)
    for (let step = 1; step <= 12; step++) {
      if (step === 6) optimizer.lr *= 0.5
      for (const [i, parameter] of parameters.entries()) {
        if ((step + i) % 5 === 0) continue // no gradient: neither updated nor counted
        const g = draw.array(sizes[i], () => Math.fround(10 ** draw.integer(-4, 2) * draw.normal()))
        parameter.grad = tensor(g, [sizes[i]], { dtype })
        plainStep(plain[i], g, ++seen[i], optimizer.lr)
      }
      optimizer.step()
      optimizer.zeroGrad()
      expect(parameters.every(({ grad }) => grad === null)).toBe(true)
    }
    optimizer.dispose()
    return relativeError(
      parameters.flatMap((parameter) => Array.from(values(parameter))),
      plain.flatMap(({ p }) => Array.from(p)),
    )
  })
}

describe.each<Float>(['f32', 'f64'])('%s', (dtype) => {
  const adamOptions = [
    { lr: 1e-3, betas: [0.9, 0.999] as const, eps: 1e-8, weightDecay: 1e-2 },
    { lr: 0.05, betas: [0.5, 0.7] as const, eps: 1e-3, weightDecay: 0 },
    { lr: 0.1, betas: [0, 0] as const, eps: 1e-2, weightDecay: 0.5 },
    { lr: 0, betas: [0.9, 0.95] as const, eps: 1e-8, weightDecay: 0.1 },
  ]
  test.each(adamOptions)('AdamW %o', (options) => {
    const make = (parameters: Parameter[]) => new AdamW(parameters, options)
    const error = compare(dtype, make, (plain, g, t, lr) =>
      adamw(plain, g, t, { ...options, betas: [...options.betas], lr }),
    )
    expect(error).toBeLessThan(limit[dtype])
  })

  const sgdOptions = [
    { lr: 0.01, momentum: 0, weightDecay: 0 },
    { lr: 0.01, momentum: 0.9, weightDecay: 0 },
    { lr: 0.02, momentum: 0.5, weightDecay: 0.1 },
    { lr: 0.02, momentum: 0, weightDecay: 0.1 },
  ]
  test.each(sgdOptions)('SGD %o', (options) => {
    const make = (parameters: Parameter[]) => new SGD(parameters, options)
    const error = compare(dtype, make, (plain, g, t, lr) => sgd(plain, g, t, { ...options, lr }))
    expect(error).toBeLessThan(limit[dtype])
  })

  const lionOptions = [
    { lr: 1e-3, betas: [0.9, 0.99] as const, weightDecay: 0 },
    { lr: 0.05, betas: [0.5, 0.7] as const, weightDecay: 0.1 },
    { lr: 0.1, betas: [0, 0] as const, weightDecay: 0.5 },
  ]
  test.each(lionOptions)('Lion %o', (options) => {
    const make = (parameters: Parameter[]) => new Lion(parameters, options)
    const error = compare(dtype, make, (plain, g, _, lr) => lion(plain, g, { ...options, lr }))
    expect(error).toBeLessThan(limit[dtype])
  })

  test('clipGradNorm scales to the norm, and leaves smaller gradients alone', () =>
    scope(() => {
      const draw = new Draw(9)
      const lists = sizes.map((size) => draw.array(size, () => Math.fround(draw.normal())))
      const parameters = lists.map((list) => new Parameter(tensor(list, [list.length], { dtype })))
      const without = new Parameter(tensor([1], [1], { dtype }))
      const norm = Math.hypot(...lists.flatMap((list) => [...list]))
      const give = () => {
        for (const [i, p] of parameters.entries()) p.grad = tensor(lists[i], [sizes[i]], { dtype })
      }
      give()
      expect(clipGradNorm([...parameters, without], norm * 2) / norm).toBeCloseTo(1, 6)
      for (const [i, p] of parameters.entries()) expect(Array.from(values(p.grad!))).toEqual(Array.from(lists[i]))
      give()
      expect(clipGradNorm([...parameters, without], 1.5) / norm).toBeCloseTo(1, 6)
      const factor = 1.5 / (norm + 1e-6)
      for (const [i, p] of parameters.entries())
        expect(
          relativeError(
            values(p.grad!),
            lists[i].map((v) => v * factor),
          ),
        ).toBeLessThan(limit[dtype])
      expect(without.grad).toBeNull()
    }))
})

test('a parameter under two names is one parameter, whose gradient counts and is scaled once', () =>
  scope(() => {
    class Tied extends Module {
      embedding = new Embedding(5, 4)
      heads = { out: this.embedding.weight }
      forward(): void {}
    }
    using model = new Tied()
    expect(Array.from(model.namedParameters(), ([name]) => name)).toEqual(['embedding.weight', 'heads.out'])
    expect(model.parameters()).toEqual([model.embedding.weight])
    model.embedding.weight.sum().mul(3).backward()
    const params = Array.from(model.namedParameters(), ([, parameter]) => parameter)
    expect(clipGradNorm(params, 1)).toBeCloseTo(3 * Math.sqrt(20), 6)
    expect(clipGradNorm(params, 1)).toBeCloseTo(1, 6)
  }))

test('clipGradNorm with gradients that are not finite', () => {
  const parameter = new Parameter(tensor([1, 2]))
  for (const bad of [Number.NaN, Infinity]) {
    parameter.grad = tensor([3, bad])
    expect(clipGradNorm([parameter], 1)).toBe(bad)
    expect(Array.from(values(parameter.grad!))).toEqual([3, bad])
    expect(() => clipGradNorm([parameter], 1, { onNonFinite: 'throw' })).toThrow(
      expect.objectContaining({ code: 'NON_FINITE' }),
    )
  }
})

test.each([1e200, 1e-200, 2 ** 1000, 5e-324])('a norm of numbers near %s neither overflows nor vanishes', (size) => {
  const parameters = [3, 4].map(() => new Parameter(tensor(Float64Array.of(0, 1), [2])))
  for (const [i, p] of parameters.entries()) p.grad = tensor(Float64Array.of(0, (3 + i) * size), [2])
  expect(clipGradNorm(parameters, Number.MAX_VALUE, { onNonFinite: 'throw' }) / (5 * size)).toBeCloseTo(1, 12)
  clipGradNorm(parameters, 1, { onNonFinite: 'throw' })
  for (const [i, p] of parameters.entries())
    expect(p.grad!.dataSync()[1] / ((3 + i) * Math.min(size, 1 / 5))).toBeCloseTo(1, 12)
})

test.each([1e30, 1, 1e-22, 1e-38])('a norm of float32 numbers near %s', (size) => {
  const list = Float32Array.from({ length: 1027 }, (_, i) => size * (1 + (i % 7)))
  const parameter = new Parameter(randn([list.length]))
  parameter.grad = tensor(list, [list.length])
  expect(clipGradNorm([parameter], Number.MAX_VALUE) / Math.hypot(...list)).toBeCloseTo(1, 12)
})

test('without waiting, clipGradNorm does the same and returns a tensor', () =>
  scope(() => {
    const random = (size: number, i: number) => randn([size], { dtype: i % 2 ? 'f64' : 'f32' })
    const parameters = sizes.map((size, i) => new Parameter(random(size, i)))
    const given = sizes.map(random)
    const clipped = (wait: boolean, maxNorm: number) => {
      for (const [i, p] of parameters.entries()) p.grad = given[i].clone()
      const norm = clipGradNorm(parameters, maxNorm, { wait })
      return [typeof norm === 'number' ? norm : norm.item(), ...parameters.map(({ grad }) => Array.from(values(grad!)))]
    }
    for (const maxNorm of [0.5, 1e6]) expect(clipped(false, maxNorm)).toEqual(clipped(true, maxNorm))
    parameters[1].grad = given[1].clone().mul(Number.NaN)
    expect(clipGradNorm(parameters, 1, { wait: false }).item()).toBeNaN()
    expect(Array.from(values(parameters[0].grad!))).toEqual(Array.from(values(given[0])))
    expect(clipGradNorm([new Parameter(randn([2]))], 1, { wait: false }).item()).toBe(0)
    expect(() => clipGradNorm(parameters, 1, { wait: false, onNonFinite: 'throw' })).toThrow(
      /onNonFinite 'throw' must wait for the norm, got wait: false$/,
    )
  }))

test('a state takes the place of the one before, even of parameters that it lacks', () => {
  const parameters = [1, 2].map((n) => new Parameter(ones([n])))
  const optimizer = new AdamW(parameters)
  const step = (count: number) => {
    for (const p of parameters.slice(0, count)) p.grad = ones(p.shape)
    optimizer.step()
    optimizer.zeroGrad()
  }
  scope(() => step(1))
  const before = live()
  scope(() => {
    const state = optimizer.stateDict()
    step(2)
    optimizer.loadStateDict(state)
    expect(Object.keys(optimizer.stateDict())).toEqual(Object.keys(state))
  })
  expect(live()).toEqual(before)
  for (const owned of [optimizer, ...parameters]) owned.dispose()
})

test('parameters that share memory cannot be updated together', () =>
  scope(() => {
    const shared = ones([2])
    const parameters = [0, 1].map(() => new Parameter(shared))
    for (const p of parameters) p.grad = ones([2])
    const message = /^\[SGD.step\] p must not share memory with a tensor that another item updates/
    expect(() => new SGD(parameters, { lr: 1 }).step()).toThrow(message)
    expect(Array.from(values(shared))).toEqual([1, 1])
  }))

test('gradients that share memory are clipped once', () =>
  scope(() => {
    const parameters = [[2, 2], [4]].map((shape) => new Parameter(randn(shape)))
    const shared = tensor([3, 0, 0, 4])
    parameters[0].grad = shared.reshape([2, 2])
    parameters[1].grad = shared
    expect(clipGradNorm(parameters, 1)).toBeCloseTo(Math.sqrt(50), 5)
    expect(Array.from(values(shared)).map((v) => v * Math.sqrt(50))).toEqual(
      [3, 0, 0, 4].map((v) => expect.closeTo(v, 4)),
    )
  }))

test.each([
  ['AdamW', (p: Parameter[]) => new AdamW(p, { lr: 0.1 })],
  ['Lion', (p: Parameter[]) => new Lion(p, { lr: 0.1 })],
  ['SGD', (p: Parameter[]) => new SGD(p, { lr: 0.1 })],
  ['SGD with momentum', (p: Parameter[]) => new SGD(p, { lr: 0.1, momentum: 0.9 })],
] satisfies [string, (p: Parameter[]) => Optimizer][])(
  '%s updates hundreds of tensors as one after another',
  (_, make) =>
    scope(() => {
      const draw = new Draw(7)
      const lengths = Array.from({ length: 300 }, (_, i) => (i % 50 === 0 ? 40_000 : draw.integer(0, 40)))
      const starts = lengths.map((length, i) => randn([length], { dtype: i % 3 ? 'f32' : 'f64' }))
      const gradients = [1, 2].map(() => starts.map(({ shape, dtype }) => randn(shape, { dtype })))
      const [together, alone] = [1, 2].map(() => starts.map((start) => new Parameter(start.clone())))
      const steps = (parameters: Parameter[], optimizers: Optimizer[]) => {
        for (const grads of gradients) {
          for (const [i, p] of parameters.entries()) p.grad = grads[i].clone()
          for (const optimizer of optimizers) optimizer.step()
        }
        for (const optimizer of optimizers) optimizer.dispose()
        return parameters.map(bitsOf)
      }
      expect(steps(together, [make(together)])).toEqual(
        steps(
          alone,
          alone.map((p) => make([p])),
        ),
      )
    }),
)

test('Lion does not move without a gradient, and passes NaN on', () =>
  scope(() => {
    const parameter = new Parameter(tensor([1, 2, 3]))
    parameter.grad = tensor([0, Number.NaN, -5])
    new Lion([parameter], { lr: 0.5 }).step()
    expect(Array.from(values(parameter))).toEqual([1, Number.NaN, 3.5])
  }))

test('a step that fails updates and counts nothing', () =>
  scope(() => {
    const parameters = [1, 2].map(() => new Parameter(tensor([1, 2])))
    const optimizer = new SGD(parameters, { lr: 1 })
    for (const p of parameters) p.grad = tensor([1, 1])
    parameters[0].grad = parameters[1].detach() // which the same step updates
    expect(() => optimizer.step()).toThrow(
      /^\[SGD.step\] g must not share memory with a tensor that another item updates/,
    )
    expect(parameters.map((p) => Array.from(values(p)))).toEqual([
      [1, 2],
      [1, 2],
    ])
    expect(optimizer.stateDict()).toEqual({})
  }))

test('a gradient that was disposed is named', () =>
  scope(() => {
    const parameters = [1, 2].map(() => new Parameter(tensor([1, 2])))
    for (const p of parameters) p.grad = tensor([1, 1])
    parameters[1].grad?.dispose()
    const message = 'params[1].grad has been disposed'
    expect(() => clipGradNorm(parameters, 1)).toThrow(`[clipGradNorm] ${message}`)
    expect(() => new SGD(parameters).step()).toThrow(`[SGD.step] ${message}`)
    const groups = parameters.map((p) => ({ params: [p] }))
    expect(() => new AdamW(groups).step()).toThrow('[AdamW.step] groups[1].params[0].grad has been disposed')
  }))

test('AdamW brings a MoE to its target', () =>
  scope(() => {
    const moe = new MoE({ dim: 8, numExperts: 4, dtype: 'f64' })
    const optimizer = new AdamW(moe.parameters(), { lr: 1e-2, weightDecay: 0 })
    const [x, target] = [randn([2, 16, 8], { dtype: 'f64' }), randn([2, 16, 8], { dtype: 'f64' })]
    const losses = Array.from({ length: 60 }, () =>
      scope(() => {
        const result = moe.forward(x)
        expect(result).toBeInstanceOf(MoEResult)
        const loss = result.outputs.sub(target).square().mean()
        loss.add(result.totalAuxLoss).backward()
        optimizer.step()
        optimizer.zeroGrad()
        return loss.item()
      }),
    )
    expect(losses[59]).toBeLessThan(0.5 * losses[0])
    moe.dispose()
    optimizer.dispose()
  }))

test('the state of an optimizer loads into another one; a mismatch changes nothing', () =>
  scope(() => {
    const make = () => [new Parameter(tensor([1, 2, 3])), new Parameter(tensor([[4], [5]]))]
    const [first, second] = [make(), make()]
    const [a, b] = [new AdamW(first), new AdamW(second)]
    const step = (parameters: Parameter[], optimizer: AdamW, scale: number) => {
      for (const p of parameters) p.grad = p.detach().mul(scale)
      optimizer.step()
    }
    step(first, a, 0.3)
    step(first, a, -2)
    for (const [i, p] of second.entries()) p.grad = first[i].detach().mul(0)
    b.loadStateDict(a.stateDict())
    const state = b.stateDict()
    expect(Object.keys(state)).toEqual(['0.step', '0.exp_avg', '0.exp_avg_sq', '1.step', '1.exp_avg', '1.exp_avg_sq'])
    expect(state['1.step'].item()).toBe(2)
    expect(state['1.exp_avg'].shape).toEqual([2, 1])
    const bad = { ...state, '0.exp_avg': tensor([1, 2]), '2.step': state['0.step'], '1.exp_avg_sq': undefined as never }
    const message = expect.stringMatching(
      /nothing was changed[\s\S]*unexpected: 2\.step[\s\S]*0\.exp_avg must be \[3\][\s\S]*1\.exp_avg_sq/,
    )
    expect(() => b.loadStateDict(bad)).toThrow(expect.objectContaining({ code: 'STATE_DICT', message }))
    const numbers = (dict: Record<string, { dataSync(): ArrayLike<number> }>) =>
      Object.entries(dict).map(([name, t]) => [name, ...Array.from(t.dataSync())])
    expect(numbers(b.stateDict())).toEqual(numbers(a.stateDict()))
  }))
