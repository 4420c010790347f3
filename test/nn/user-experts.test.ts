import { expect, test } from 'vitest'
import { Generator, Module, MoE, Parameter, randn, type StateDict, scope, type Tensor } from '../../lib/index.js'
import { type Drawn, drawProblem, kinds } from '../support/draw-problem.js'
import { forwardOptions, layerOf, optionsOf, stateOf, toTensor } from '../support/from-problem.js'
import { Draw, relativeError, values } from '../support/numbers.js'

/** What the built-in experts compute, as a custom module. Names are those of the built-in state. */
class Geglu extends Module {
  readonly names = ['net.0.weight', 'net.0.bias', 'net.1.mult_bias', 'net.2.weight', 'net.2.bias']
  weights: Parameter[]

  constructor(state: StateDict, index: number) {
    super()
    this.weights = this.names.map((name) => new Parameter(state[`experts.experts.${index}.${name}`]))
  }

  forward(x: Tensor): Tensor {
    const [w1, b1, mu, w2, b2] = this.weights
    const a = x.matmul(w1.transpose()).add(b1)
    const H = mu.size
    const hidden = a
      .slice(2, H)
      .gelu()
      .mul(a.slice(2, 0, H))
      .mul(mu)
    return hidden.matmul(w2.transpose()).add(b2)
  }
}

const limit = 1e-12

function compareLayers(drawn: Drawn, dy: Float64Array): void {
  const { problem: p } = drawn
  const shape = [p.B, p.N, p.D]
  const state = stateOf(p, 'f64')
  const experts = Array.from({ length: p.E }, (_, i) => new Geglu(state, i))
  using builtIn = layerOf(drawn, 'f64')
  using own = new MoE({ ...optionsOf(drawn), dtype: 'f64', experts }).train(p.training)
  own.loadStateDict(Object.fromEntries(Object.entries(state).filter(([name]) => name.startsWith('gate.'))), {
    strict: false,
  })
  const run = (moe: MoE) => {
    const x = toTensor(p.x, shape, 'f64')
    x.requiresGrad = true
    const { outputs, totalAuxLoss } = moe.forward(x, forwardOptions(p, 'f64'))
    outputs
      .mul(toTensor(dy, shape, 'f64'))
      .sum()
      .add(totalAuxLoss)
      .backward()
    return { outputs, x: x.grad!, router: moe.gate.toGates.weight.grad! }
  }
  const [theirs, ours] = [run(own), run(builtIn)]
  expect(relativeError(values(theirs.outputs), values(ours.outputs)), 'outputs').toBeLessThan(limit)
  expect(relativeError(values(theirs.x), values(ours.x)), 'gradient of x').toBeLessThan(limit)
  const [a, b] = [theirs.router, ours.router].map(values)
  const difference = Math.hypot(...Array.from(a, (v, i) => v - b[i]))
  expect(difference, 'gradient of the router').toBeLessThan(limit * (1 + Math.hypot(...Array.from(b))))
  const grads = builtIn.gradDict()
  for (const [i, expert] of experts.entries()) {
    for (const [j, name] of expert.names.entries()) {
      const expected = values(grads[`experts.experts.${i}.${name}`])
      expect(relativeError(values(expert.weights[j].grad!), expected), `${i}.${name}`).toBeLessThan(limit)
    }
  }
}

test.each(kinds)('custom experts return the same as the built-in ones: %s', (kind) => {
  const draw = new Draw(99 + kinds.indexOf(kind))
  for (let round = 0; round < 8; round++) {
    const drawn = drawProblem(draw, kind)
    scope(() => compareLayers(drawn, draw.array(drawn.problem.x.length)))
  }
})

test('expertInputs are further arguments, by the rows of their tokens', () => {
  class Scaled extends Module {
    shapes: (readonly number[])[] = []
    forward(x: Tensor, factor: Tensor, shift: Tensor): Tensor {
      this.shapes.push(x.shape, factor.shape, shift.shape)
      return x.mul(factor).add(shift)
    }
  }
  for (const more of [{}, { groupSize: 4 }, { scaleInput: true }])
    scope(() => {
      const experts = [new Scaled(), new Scaled()]
      const options = { gatingTopN: 1, gateNormalization: 'none', capacityFactorTrain: 2, ...more } as const
      const moe = new MoE({ dim: 6, experts, dtype: 'f64', straightThroughDispatchTensor: false, ...options })
      const [x, factor, shift] = [6, 1, 6].map((last) =>
        randn([2, 8, last], { dtype: 'f64', generator: new Generator(last), requiresGrad: true }),
      )
      const { outputs, routing } = moe.forward(x, { expertInputs: [factor, shift] })
      outputs.sum().backward()
      const weight = routing.weight.reshape([2, 8, 1])
      const expected =
        'scaleInput' in more ? x.mul(weight).mul(factor).add(shift) : x.mul(factor).add(shift).mul(weight)
      expect(relativeError(values(outputs), values(expected))).toBeLessThan(1e-14)
      const ofShift = 'scaleInput' in more ? weight.mul(0).add(1) : weight
      expect(relativeError(values(shift.grad!.sum(2)), values(ofShift.mul(6).reshape([2, 8])))).toBeLessThan(1e-14)
      const [B, C] = [routing.expertIndex.shape[0], routing.capacity]
      expect(experts[0].shapes).toEqual([6, 1, 6].map((last) => [B, C, last]))
    })
  const moe = new MoE({ dim: 6, experts: [new Scaled(), new Scaled()] })
  const bad = (expertInputs: unknown) => () => moe.forward(randn([2, 8, 6]), { expertInputs: expertInputs as Tensor[] })
  expect(bad(3)).toThrow('[MoE.forward] expertInputs must be an array, got 3')
  expect(bad([randn([2, 7, 1])])).toThrow('[MoE.forward] expertInputs[0] must be [2, 8, 1], got [2, 7, 1]')
  expect(bad([randn([2, 8, 1]), 5])).toThrow('[MoE.forward] expertInputs[1] must be a Tensor, got 5')
  expect(bad([randn([2, 8, 1], { dtype: 'f64' })])).toThrow('[MoE.forward] expertInputs[0] must be f32, got f64')
  const builtIn = new MoE({ dim: 6, numExperts: 2 })
  expect(() => builtIn.forward(randn([2, 8, 6]), { expertInputs: [randn([2, 8, 1])] })).toThrow(
    '[MoE.forward] expertInputs is for experts of your own',
  )
})
