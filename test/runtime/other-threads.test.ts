import { inspect } from 'node:util'
import { MessageChannel } from 'node:worker_threads'
import { expect, test } from 'vitest'
import { AdamW, Generator, getDefaultDevice, Linear, MoE, ones, randn, scope } from '../../lib/index.js'

// Tensors are memory of one thread. What would copy them as empty objects says so instead, and what to do.

const layer = new Linear(2, 2)
const objects: [name: string, value: () => object][] = [
  ['a tensor', () => ones([2])],
  ['a parameter', () => layer.weight],
  ['a module', () => layer],
  ['a nested module', () => new MoE({ dim: 4, numExperts: 2 })],
  ['a state dict', () => layer.stateDict()],
  ['an optimizer', () => new AdamW(layer.parameters())],
  ['a result', () => new MoE({ dim: 4, numExperts: 2 }).forward(randn([1, 2, 4]))],
]

test.each(objects)('structuredClone and postMessage of %s', (_, value) =>
  scope(() => {
    const { port1, port2 } = new MessageChannel()
    try {
      for (const copy of [structuredClone, (object: object) => port1.postMessage(object)]) {
        const text =
          /a Tensor belongs to its thread: send the arrays of dataSync\(\).*stateDict\(\).*could not be cloned/
        expect(() => copy(value())).toThrow(expect.toSatisfy((error: Error) => error.name === 'DataCloneError'))
        expect(() => copy(value())).toThrow(text)
      }
    } finally {
      port1.close()
      port2.close()
    }
  }),
)

test.each(objects)('JSON.stringify of %s', (_, value) =>
  scope(() => {
    expect(() => JSON.stringify({ value: value() })).toThrow(
      expect.objectContaining({
        code: 'UNSUPPORTED',
        message: expect.stringMatching(/^\[\w+\.toJSON\] .*: .*save(Safetensors|Checkpoint)/),
      }),
    )
  }),
)

test('a generator is its seed and step', () => {
  const generator = new Generator(7, 3)
  const copy = new Generator()
  copy.setState(JSON.parse(JSON.stringify(generator)))
  expect([copy.seed, copy.step]).toEqual([7, 3])
  expect(() => structuredClone(generator)).toThrow(/send \{ seed, step \}.*could not be cloned/)
})

test('what is printed stays short', () => {
  const device = getDefaultDevice()
  expect([ones([2]), layer, new Generator(7, 3)].map((value) => inspect(value, { breakLength: Infinity }))).toEqual([
    `tensor([1., 1.], [2], f32, ${device})`,
    `Linear { computeDtype: 'f32', weight: Tensor([2, 2], f32, ${device}), bias: Tensor([2], f32, ${device}) }`,
    'Generator(seed 7, step 3)',
  ])
})
