import { describe, expect, test } from 'vitest'
import {
  AdamW,
  Linear,
  Module,
  MoE,
  ones,
  Parameter,
  randn,
  SparseMoEBlock,
  type StateDict,
  saveCheckpoint,
  scope,
  tensor,
  zeros,
} from '../../lib/index.js'
import { long, values } from '../support/numbers.js'

const options = { dim: 6, numExperts: 3, expertHiddenMult: 2 } as const // H = 8
const expertNames = (prefix: string) =>
  [0, 1, 2].flatMap((i) => [
    [`${prefix}experts.experts.${i}.net.0.weight`, [16, 6]],
    [`${prefix}experts.experts.${i}.net.0.bias`, [16]],
    [`${prefix}experts.experts.${i}.net.1.mult_bias`, [8]],
    [`${prefix}experts.experts.${i}.net.2.weight`, [6, 8]],
    [`${prefix}experts.experts.${i}.net.2.bias`, [6]],
  ])
const gateNames = (prefix: string) => [
  [`${prefix}gate.threshold_train`, [2]],
  [`${prefix}gate.threshold_eval`, [2]],
  [`${prefix}gate.to_gates.weight`, [3, 6]],
]
const feedForwardNames = (prefix: string) => [
  [`${prefix}.net.0.gamma`, [6]],
  [`${prefix}.net.1.weight`, [32, 6]],
  [`${prefix}.net.1.bias`, [32]],
  [`${prefix}.net.2.mult_bias`, [16]],
  [`${prefix}.net.3.weight`, [6, 16]],
  [`${prefix}.net.3.bias`, [6]],
]

const shapesOf = (state: StateDict) =>
  Object.fromEntries(Object.entries(state).map(([name, t]) => [name, [...t.shape]]))
const numbersOf = (state: StateDict) =>
  Object.fromEntries(Object.entries(state).map(([name, t]) => [name, Array.from(values(t))]))
const messageOf = (fn: () => unknown): string => {
  try {
    fn()
  } catch (error) {
    expect(error).toMatchObject({ name: 'MoeError', code: 'STATE_DICT' })
    return (error as Error).message
  }
  throw new Error('nothing was thrown')
}

test('modules and parameters are those of arrays, plain objects and Maps, nested ones too', () => {
  class Net extends Module {
    heads = { click: new Linear(2, 1), rate: new Linear(2, 1, { bias: false }) }
    blocks = [[new Linear(2, 2), { last: new Linear(2, 1, { bias: false }) }], 'no module', null]
    tasks = new Map<unknown, unknown>([
      ['click', new Linear(2, 1)],
      [7, [new Parameter(zeros([3]))]],
      [{}, new Linear(2, 1)], // without a name
    ])
    seen = new Set([new Linear(2, 1)])
    cycle: unknown[] = []
    forward(): void {}
  }
  const net = new Net()
  net.cycle.push(net.cycle)
  const names = ['heads.click.weight', 'heads.click.bias', 'heads.rate.weight', 'blocks.0.0.weight', 'blocks.0.0.bias']
  const ofTasks = ['tasks.click.weight', 'tasks.click.bias', 'tasks.7.0']
  expect(Object.keys(net.stateDict())).toEqual([...names, 'blocks.0.1.last.weight', ...ofTasks])
  const parameters = net.parameters()
  expect([parameters.length, [...parameters].length, [...parameters].length]).toEqual([9, 9, 9])
  net.eval()
  expect([net.heads.rate, net.tasks.get('click') as Linear].map(({ training }) => training)).toEqual([false, false])
})

describe('names and shapes are those of the reference', () => {
  test('MoE', () => {
    expect(shapesOf(new MoE(options).stateDict())).toEqual(Object.fromEntries([...gateNames(''), ...expertNames('')]))
  })

  test('SparseMoEBlock', () => {
    const block = new SparseMoEBlock(new MoE(options), { addFfBefore: true, addFfAfter: true })
    const expected = [
      ...gateNames('moe.'),
      ...expertNames('moe.'),
      ['moe_prenorm.gamma', [6]],
      ...feedForwardNames('ff_before'),
      ...feedForwardNames('ff_after'),
    ]
    expect(shapesOf(block.stateDict())).toEqual(Object.fromEntries(expected))
    const bare = new SparseMoEBlock(new MoE(options), { addFfAfter: false })
    expect(Object.keys(bare.stateDict()).some((name) => name.startsWith('ff_'))).toBe(false)
  })

  test('thresholds are float32 and begin with 1e-9', () => {
    const moe = new MoE({ ...options, dtype: 'f64', gatingTopN: 3, thresholdTrain: [0.2, 0.7], thresholdEval: 0.1 })
    const { 'gate.threshold_train': train, 'gate.threshold_eval': evaluation } = moe.stateDict()
    expect([train.dtype, evaluation.dtype]).toEqual(['f32', 'f32'])
    expect(Array.from(values(train))).toEqual([1e-9, 0.2, 0.7].map(Math.fround))
    expect(Array.from(values(evaluation))).toEqual([1e-9, 0.1, 0.1].map(Math.fround))
  })
})

test('first values: router ±1/√D, layers ±(out features)^−½, mult_bias and gamma 1', () => {
  const state = numbersOf(new SparseMoEBlock(new MoE({ dim: 48, numExperts: 4 }), { addFfBefore: true }).stateDict())
  const bounds: [RegExp, number][] = [
    [/to_gates\.weight$/, 1 / Math.sqrt(48)],
    [/(experts\.\d|ff_\w+)\.net\.[01]\.(weight|bias)$/, 1 / Math.sqrt(256)],
    [/(experts\.\d|ff_\w+)\.net\.[23]\.(weight|bias)$/, 1 / Math.sqrt(48)],
  ]
  for (const [pattern, bound] of bounds) {
    const numbers = Object.entries(state).flatMap(([name, list]) => (pattern.test(name) ? list : []))
    expect(Math.max(...numbers.map(Math.abs))).toBeLessThanOrEqual(bound)
    expect(Math.max(...numbers)).toBeGreaterThan(0.95 * bound)
    const square = numbers.reduce((total, v) => total + v * v, 0) / numbers.length
    expect(square / ((bound * bound) / 3)).toBeCloseTo(1, 0.5)
  }
  for (const [name, list] of Object.entries(state))
    if (/(gamma|mult_bias)$/.test(name)) expect(list.every((v) => v === 1)).toBe(true)
})

test('a state moves from layer to layer, and between types', () => {
  const make = (dtype: 'f32' | 'f64') => new MoE({ ...options, dtype })
  const [first, second, wide] = [make('f32'), make('f32'), make('f64')]
  const state = first.stateDict()
  expect(second.loadStateDict(state)).toEqual({ missing: [], unexpected: [] })
  expect(numbersOf(second.stateDict())).toEqual(numbersOf(state))
  wide.loadStateDict(state)
  expect(numbersOf(wide.stateDict())).toEqual(numbersOf(state))
  second.loadStateDict(wide.stateDict())
  expect(numbersOf(second.stateDict())).toEqual(numbersOf(state))
  const x = randn([2, 5, 6])
  const random = { uniforms: zeros([2, 2, 5]) }
  const [a, b] = [first, second].map((layer) => values(layer.forward(x, { random }).outputs))
  expect(a).toEqual(b)
})

test('a state holds copies', () => {
  const moe = new MoE(options)
  const before = numbersOf(moe.stateDict())
  const state = moe.stateDict()
  moe.loadStateDict(Object.fromEntries(Object.entries(state).map(([name, t]) => [name, t.mul(2).detach()])))
  expect(numbersOf(state)).toEqual(before)
  state['gate.to_gates.weight'].dispose()
  expect(moe.forward(randn([1, 4, 6])).outputs.shape).toEqual([1, 4, 6])
})

test('gradDict has the names of the parameters, and zeros for missing gradients', () => {
  const moe = new MoE(options)
  const names = Object.keys(moe.stateDict()).filter((name) => !name.startsWith('gate.threshold'))
  const grads = moe.gradDict()
  expect(Object.keys(grads)).toEqual(names)
  expect(
    Object.values(numbersOf(grads))
      .flat()
      .every((v) => v === 0),
  ).toBe(true)
  scope(() =>
    moe
      .forward(randn([1, 9, 6]))
      .outputs.square()
      .sum()
      .backward(),
  )
  expect(
    Object.values(numbersOf(moe.gradDict()))
      .flat()
      .some((v) => v !== 0),
  ).toBe(true)
  moe.zeroGrad()
  expect(
    Object.values(numbersOf(moe.gradDict()))
      .flat()
      .every((v) => v === 0),
  ).toBe(true)
})

describe('a state that does not fit', () => {
  const fill = (module: Module): StateDict => module.stateDict()

  test('one error lists every mismatch, and nothing is changed', () => {
    const moe = new MoE(options)
    const before = numbersOf(moe.stateDict())
    const state = Object.fromEntries(Object.entries(fill(moe)).map(([name, t]) => [name, t.add(1).detach()]))
    delete state['gate.threshold_eval']
    delete state['experts.experts.2.net.0.bias']
    state['experts.experts.0.net.2.weight'] = zeros([8, 6])
    state['experts.experts.1.net.1.mult_bias'] = tensor(new Int32Array(8))
    state['experts.experts.3.net.0.bias'] = zeros([16])
    state['gate.to_gates.weight'].dispose()
    Object.assign(state, { 'experts.experts.2.net.2.bias': [1, 2, 3] })
    const message = messageOf(() => moe.loadStateDict(state))
    for (const part of [
      '[MoE.loadStateDict]',
      'nothing was changed',
      'missing: gate.threshold_eval',
      'missing: experts.experts.2.net.0.bias',
      'unexpected: experts.experts.3.net.0.bias',
      'misshapen: experts.experts.0.net.2.weight must be [6, 8], got [8, 6]',
      'mistyped: experts.experts.1.net.1.mult_bias',
      'disposed: gate.to_gates.weight',
      'mistyped: experts.experts.2.net.2.bias must be a Tensor',
    ])
      expect(message).toContain(part)
    expect(numbersOf(moe.stateDict())).toEqual(before)
  })

  test('a parameter that is gone: the others stay, and it is named', () => {
    const layer = new Linear(3, 2)
    const state = fill(layer)
    layer.weight.copyFrom(ones([2, 3]))
    layer.bias?.dispose()
    expect(messageOf(() => layer.loadStateDict(state))).toContain('\n  disposed: bias of the module itself')
    expect(numbersOf({ weight: layer.weight }).weight).toEqual(Array(6).fill(1))
    expect(() => layer.stateDict()).toThrow('[Linear.stateDict] bias has been disposed')
    layer.weight.grad = ones([2, 3])
    layer.weight.grad.dispose()
    expect(() => layer.gradDict()).toThrow('[Linear.gradDict] weight.grad has been disposed')
  })

  test('with strict: false missing and unknown names are reported, shapes are still checked', () => {
    const moe = new MoE(options)
    const state: StateDict = { 'gate.to_gates.weight': randn([3, 6]), 'head.weight': zeros([1]) }
    const report = moe.loadStateDict(state, { strict: false })
    expect(report.unexpected).toEqual(['head.weight'])
    expect(report.missing).toHaveLength(2 + 15)
    expect(numbersOf(moe.stateDict())['gate.to_gates.weight']).toEqual(numbersOf(state)['gate.to_gates.weight'])
    const wrong = { 'gate.to_gates.weight': zeros([3, 7]) }
    expect(messageOf(() => moe.loadStateDict(wrong, { strict: false }))).toContain('misshapen: gate.to_gates.weight')
  })

  test('a state of another number of experts', () => {
    const message = messageOf(() => new MoE(options).loadStateDict(new MoE({ ...options, numExperts: 4 }).stateDict()))
    expect(message).toContain('gate.to_gates.weight must be [3, 6], got [4, 6]')
    expect(message.match(/unexpected/g)).toHaveLength(5)
  })
})

test('two tensors of one name are an error: a state would hold one of them', async () => {
  class Twice extends Module {
    readonly a = { b: new Parameter(ones([2])) }
    readonly 'a.b' = new Parameter(zeros([2]))
  }
  const message = 'two tensors of the module are named a.b'
  expect(() => new Twice().stateDict()).toThrow(`[Twice.stateDict] ${message}`)
  expect(() => new Twice().gradDict()).toThrow(`[Twice.gradDict] ${message}`)
  expect(() => new Twice().loadStateDict({ 'a.b': ones([2]) })).toThrow(`[Twice.loadStateDict] ${message}`)
  await expect(saveCheckpoint('twice.safetensors', { model: new Twice(), step: 1 })).rejects.toThrow(
    `[saveCheckpoint] ${message}`,
  )
})

const count = long ? 200_000 : 20_000
test(`${count} unknown names are one error, which names the first and their number`, () => {
  const value = zeros([1])
  const many = Object.fromEntries(Array.from({ length: count }, (_, i) => [`head.${i}`, value]))
  const hostile = { [`${'x'.repeat(1e6)}`]: value, '\u001b[2J': value }
  const layer = new Linear(2, 2)
  const optimizer = new AdamW(layer.parameters())
  for (const load of [
    (state: StateDict) => layer.loadStateDict(state),
    (state: StateDict) => optimizer.loadStateDict(state),
  ]) {
    const message = messageOf(() => load({ ...hostile, ...many }))
    expect(message.length).toBeLessThan(2000)
    expect(message).toContain('unexpected: "\\u001b[2J"\n  unexpected: head.0\n')
    expect(message).toContain(`\n  and ${count - 18} more`)
  }
  expect(messageOf(() => layer.loadStateDict(many))).toContain('missing: weight\n  missing: bias\n  unexpected: head.0')
})

describe('a module that contains itself', () => {
  class Ring extends Module {
    layer = new Linear(2, 2)
    child: Module[] = []
  }
  const inner = new Ring()
  const outer = new Ring()
  outer.child = [inner]
  inner.child = [outer, outer]

  test.each<[string, () => unknown]>([
    ['parameters', () => [...outer.parameters()]],
    ['stateDict', () => outer.stateDict()],
    ['loadStateDict', () => outer.loadStateDict({})],
    ['train', () => outer.train(false)],
    ['zeroGrad', () => outer.zeroGrad()],
    ['dispose', () => outer.dispose()],
  ])('is an error of %s, and nothing is changed', (_, call) => {
    expect(call).toThrow(/\[Ring\] the module contains itself/)
    expect([outer.training, inner.training, outer.layer.weight.disposed]).toEqual([true, true, false])
  })

  test('a module in two places has two names', () => {
    const shared = new Ring()
    const twice = new Ring()
    twice.child = [shared, shared]
    expect(Object.keys(twice.stateDict())).toEqual(
      ['layer', 'child.0.layer', 'child.1.layer'].flatMap((name) => [`${name}.weight`, `${name}.bias`]),
    )
  })
})
