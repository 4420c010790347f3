import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, describe, expect, test } from 'vitest'
import {
  AdamW,
  captureStep,
  decayGroups,
  Embedding,
  LayerNorm,
  Linear,
  Lion,
  loadCheckpoint,
  loadSafetensorsSync,
  Module,
  MoE,
  Parameter,
  RMSNorm,
  SGD,
  SoftMoE,
  saveCheckpoint,
  saveSafetensorsSync,
  scope,
  tensor,
} from '../../lib/index.js'
import { any } from '../support/bad-input.js'
import { editCheckpoint } from '../support/checkpoint-file.js'
import { useEmulator } from '../support/emulator.js'

const built = useEmulator()
const folder = mkdtempSync(join(tmpdir(), 'st-moe-groups-'))
afterAll(() => rmSync(folder, { recursive: true }))

const parameters = (count = 4, device?: 'cuda') =>
  Array.from({ length: count }, (_, i) => new Parameter(tensor([i + 1, -i, 0.5], null, { device })))
const numbers = (params: Iterable<Parameter>) => [...params].map((p) => Array.from(p.dataSync()))
const give = (params: readonly Parameter[], t = 1) => {
  for (const [i, p] of params.entries()) p.grad = tensor([Math.sin(t + i), t, -2], null, { device: p.device })
}
const split = ([a, b, c, d]: readonly Parameter[]) => [
  { params: [a, b] },
  { params: new Set([c]), lr: 0.5, weightDecay: 0 },
  { params: [d], betas: [0.5, 0.6] as const },
]

describe('each group is updated with its own options', () => {
  const defaults = { lr: 0.1, betas: [0.9, 0.99] as const, eps: 1e-6, weightDecay: 0.2 }

  test('as by optimizers of its own', () => {
    const [together, alone] = [parameters(), parameters()]
    const optimizer = new AdamW(split(together), defaults)
    expect(optimizer.parameters).toEqual(together)
    expect(optimizer.groups.map(({ params, ...options }) => [params.length, options])).toEqual([
      [2, defaults],
      [1, { ...defaults, lr: 0.5, weightDecay: 0 }],
      [1, { ...defaults, betas: [0.5, 0.6] }],
    ])
    const others = split(alone).map(({ params, ...options }) => new AdamW(params, { ...defaults, ...options }))
    for (let t = 1; t <= 3; t++) {
      give(together, t)
      give(alone, t)
      if (t === 2) for (const [i, group] of optimizer.groups.entries()) group.lr = others[i].lr *= 0.3 + i
      expect(optimizer.step()).toBe(true)
      for (const other of others) other.step()
    }
    expect(numbers(together)).toEqual(numbers(alone))
  })

  test('of SGD, some with momentum', () => {
    const [together, alone] = [parameters(2), parameters(2)]
    const optimizer = new SGD([{ params: [together[0]], momentum: 0.9 }, { params: [together[1]] }], { lr: 0.1 })
    const others = [new SGD([alone[0]], { lr: 0.1, momentum: 0.9 }), new SGD([alone[1]], { lr: 0.1 })]
    for (let t = 1; t <= 2; t++) {
      give(together, t)
      give(alone, t)
      for (const each of [optimizer, ...others]) each.step()
    }
    expect(numbers(together)).toEqual(numbers(alone))
    expect(Object.keys(scope(() => optimizer.stateDict()))).toEqual(['0.step', '0.momentum_buffer', '1.step'])
  })

  const { eps: _, ...ofLion } = defaults
  test.skipIf(!built).each([
    ['AdamW', (params: readonly Parameter[]) => new AdamW(split(params), defaults)],
    ['Lion', (params: readonly Parameter[]) => new Lion(split(params), ofLion)],
  ] as const)('in a captured step of %s, whose replays read lr and weight decay of each group', (_, make) => {
    const run = (replays: boolean) => {
      const params = parameters(4, 'cuda')
      using optimizer = make(params)
      give(params)
      const step = () => void optimizer.step()
      using captured = replays ? captureStep(step, { device: 'cuda' }) : null
      for (let t = 1; t <= 3; t++) {
        for (const [i, group] of optimizer.groups.entries()) Object.assign(group, { lr: 0.1 / (t + i), weightDecay: t })
        captured ? captured.replay() : step()
      }
      const state = scope(() => Object.values(optimizer.stateDict()).map((value) => Array.from(value.dataSync())))
      return [numbers(params), state]
    }
    expect(run(true)).toEqual(run(false))
  })
})

test('an option of the optimizer is that of all groups', () => {
  const optimizer = new AdamW(split(parameters()))
  expect(optimizer.eps).toBe(1e-8)
  expect(() => optimizer.lr).toThrow('[AdamW] lr differs between groups, got [0.001, 0.5, 0.001]: read groups[i].lr')
  expect(() => optimizer.betas).toThrow(/betas differs/)
  optimizer.lr = 0.25
  expect([optimizer.lr, ...optimizer.groups.map(({ lr }) => lr)]).toEqual([0.25, 0.25, 0.25, 0.25])
  optimizer.groups[1].lr = any('1')
  expect(() => optimizer.step()).toThrow(
    '[AdamW.step] groups[1].lr must be a finite number from 0 to Infinity, got "1"',
  )
  expect(() => Object.assign(optimizer.groups[0], { weight_decay: 1 })).toThrow(TypeError)
})

test('a group may be empty, as that of a model without biases', () => {
  const groups = decayGroups(new Linear(2, 2, { bias: false }))
  expect(new AdamW(groups).groups.map(({ params }) => params.length)).toEqual([1, 0])
})

test.each<[string, unknown, RegExp]>([
  [
    'a parameter in two groups',
    ([a]: Parameter[]) => [{ params: [a] }, { params: [a] }],
    /\[AdamW\] groups\[1\]\.params\[0\] is in groups\[0\] too/,
  ],
  [
    'an unknown option',
    ([a, b]: Parameter[]) => [{ params: [a] }, { params: [b], weight_decay: 1 }],
    /unknown option "weight_decay"; did you mean 'weightDecay'/,
  ],
  [
    'an invalid option',
    ([a, b]: Parameter[]) => [{ params: [a] }, { params: [b], lr: -1 }],
    /groups\[1\]\.lr must be a finite number from 0/,
  ],
  [
    'a list of none',
    () => [],
    /\[AdamW\] there is no parameter to update\. A Module finds layers .* but not in a Set or a #private field/,
  ],
  ['groups of none', () => [{ params: [] }, { params: [] }], /there is no parameter to update/],
  [
    'the parameters of a module that finds no layer',
    () => {
      class Hidden extends Module {
        #layer = new Linear(2, 1)
        layers = new Set([this.#layer])
        forward() {}
      }
      return new Hidden().parameters()
    },
    /there is no parameter to update/,
  ],
  ['no parameters', () => [{ params: 7 }, { params: [] }], /groups\[0\]\.params must be parameters, got 7/],
  [
    'something else',
    () => [{ params: [{}] }, { params: [] }],
    /groups\[0\]\.parameter 0 must be a Parameter, got an object/,
  ],
  [
    'a parameter among groups',
    ([a]: Parameter[]) => [{ params: [] }, a],
    /groups\[1\] must be \{ params, … \} like the others, got Parameter/,
  ],
  ['a group among parameters', ([a]: Parameter[]) => [a, { params: [] }], /groups\[0\] must be \{ params/],
  [
    'an endless list',
    () =>
      (function* () {
        for (;;) yield 1
      })(),
    /parameter 0 must be a Parameter, got 1/,
  ],
])('%s is an error', (_, make, text) => {
  expect(() => new AdamW(any((make as (p: Parameter[]) => unknown)(parameters())))).toThrow(
    expect.objectContaining({ code: 'OPTION', message: expect.stringMatching(text) }),
  )
})

describe('a checkpoint', () => {
  class Net extends Module {
    list = parameters()
    forward() {}
  }
  const file = join(folder, 'groups.safetensors')
  const start = () => {
    const model = new Net()
    return { model, optimizer: new AdamW(split(model.list), { lr: 0.1 }) }
  }
  const saved = async () => {
    const run = start()
    give(run.model.list)
    run.optimizer.step()
    run.optimizer.groups[2].lr = 1 / 3
    await saveCheckpoint(file, { ...run, step: 1 })
    return run
  }

  test('keeps and restores the options of each group', async () => {
    const run = await saved()
    const resumed = start()
    resumed.optimizer.lr = 7
    resumed.optimizer.betas = [0, 0]
    await loadCheckpoint(file, resumed)
    for (const { model, optimizer } of [run, resumed]) {
      give(model.list, 2)
      optimizer.step()
    }
    expect(numbers(resumed.model.list)).toEqual(numbers(run.model.list))
    const options = ({ optimizer }: typeof run) => optimizer.groups.map(({ params: _, ...own }) => own)
    expect(options(resumed)).toEqual(options(run))
    expect(resumed.optimizer.groups[2]).toMatchObject({ lr: 1 / 3, betas: [0.5, 0.6] })
  })

  test.each<[string, (params: readonly Parameter[]) => unknown, RegExp]>([
    ['one group', (params) => params, /options are of 3 groups, the optimizer has 1/],
    [
      'other groups',
      ([a, b, c, d]) => [{ params: [a] }, { params: [b, c] }, { params: [d] }],
      /groups\[0\]\.options are of 2 parameters, the group has 1/,
    ],
  ])('of other groups than %s is an error', async (_, groups, text) => {
    await saved()
    const model = new Net()
    const optimizer = new AdamW(any(groups(model.list)), { lr: 0.7 })
    await expect(loadCheckpoint(file, { model, optimizer })).rejects.toThrow(text)
    expect(optimizer.lr).toBe(0.7)
    expect(numbers(model.list)).toEqual(numbers(parameters()))
  })

  test.each([
    [1, 2],
    [2, 1],
  ])(
    'of one group of %i parameters does not fit one of %i, unless an earlier version did not count them',
    async (from, to) => {
      const model = new Net()
      await saveCheckpoint(file, { model, optimizer: new AdamW(model.list.slice(0, from), { lr: 0.3 }), step: 1 })
      const optimizer = new AdamW(model.list.slice(0, to), { lr: 0.7 })
      const text = `options are of ${from} parameters, the group has ${to}`
      await expect(loadCheckpoint(file, { model, optimizer })).rejects.toThrow(text)
      expect(optimizer.lr).toBe(0.7)
      editCheckpoint(file, (json) => {
        const about = JSON.parse(json)
        const [{ parameters: _, ...options }] = about.optimizers[0].options
        about.optimizers[0].options = options
        return JSON.stringify(about)
      })
      await loadCheckpoint(file, { model, optimizer })
      expect(optimizer.lr).toBe(0.3)
    },
  )

  test('with options of a group that cannot be is an error', async () => {
    await saved()
    const { tensors, metadata } = loadSafetensorsSync(file)
    const about = JSON.parse(metadata['st-moe.checkpoint'])
    about.optimizers[0].options[1].lr = -1
    saveSafetensorsSync(file, tensors, { metadata: { 'st-moe.checkpoint': JSON.stringify(about) } })
    await expect(loadCheckpoint(file, start())).rejects.toThrow(/option groups\[1\]\.lr must be a finite number/)
  })
})

describe('decayGroups', () => {
  class Model extends Module {
    embedding = new Embedding(5, 8)
    norm = new RMSNorm(8)
    moe = new MoE({ dim: 8, numExperts: 2, sharedExperts: 1 })
    soft = new SoftMoE({ dim: 8, numExperts: 2, numSlots: 2 })
    last = new LayerNorm(8)
    head = new Linear(8, 5)
    scale = new Parameter(tensor([[2]]))
    forward() {}
  }
  const model = new Model()
  const namesOf = new Map([...model.namedParameters()].map(([name, parameter]) => [parameter, name]))
  const split = (options?: Parameters<typeof decayGroups>[1]) =>
    decayGroups(model, options).map(({ params }) => params.map((p) => namesOf.get(p)))

  test('biases and norms do not decay', () => {
    const [decayed, rest] = split()
    expect(decayed).toEqual([
      'embedding.weight',
      ...[...namesOf.values()].filter(
        (name) => /(w1|w2|weight|slot_embeds|scale)$/.test(name) && !/norm|last|embedding/.test(name),
      ),
    ])
    expect(rest).toEqual(
      expect.arrayContaining([
        'norm.gamma',
        'moe.experts.b1',
        'moe.experts.multBias',
        'last.weight',
        'last.bias',
        'head.bias',
      ]),
    )
    expect([...decayed, ...rest].sort()).toEqual([...namesOf.values()].sort())
    expect(decayGroups(model)[1].weightDecay).toBe(0)
  })

  test('nor do embeddings and others, if asked', () => {
    const [decayed, rest] = split({ excludeEmbeddings: true, exclude: (name) => name === 'scale' })
    expect(rest).toEqual(expect.arrayContaining(['embedding.weight', 'scale']))
    expect(decayed).not.toContain('scale')
    expect(() => decayGroups(any({}))).toThrow(/\[decayGroups\] model must be a Module/)
    expect(() => decayGroups(model, { exclude: any(1) })).toThrow(/exclude must be a function, got 1/)
  })

  test('a weight with two names decays only if both do', () => {
    class Tied extends Module {
      embedding = new Embedding(5, 8)
      head = new Linear(8, 5, { bias: false })
      forward() {}
    }
    const tied = new Tied()
    tied.head.weight = tied.embedding.weight
    expect(decayGroups(tied).map(({ params }) => params.length)).toEqual([1, 0])
    expect(decayGroups(tied, { excludeEmbeddings: true }).map(({ params }) => params.length)).toEqual([0, 1])
  })
})
