// What makes the package warn, and what does not: the first argument.
import { setImmediate } from 'node:timers/promises'
import {
  decodeSafetensors,
  encodeSafetensors,
  keep,
  Module,
  MoE,
  memory,
  ones,
  Parameter,
  scope,
} from '../../dist/index.js'

const [what] = process.argv.slice(2)
const steps = 51_000 // two tensors each
const x = ones([1])
const moe = new MoE({ dim: 2, numExperts: 2 })
const forward = () => moe.forwardWithGrad(new Float32Array(2), [1, 1, 2])

const one = () => keep(ones([1]))
class Many extends Module {
  constructor(size) {
    super()
    this.list = Array.from({ length: size }, () => new Parameter(one()))
  }
  forward() {}
}

await {
  'a loop without a scope'() {
    for (let i = 0; i < steps; i++) x.mul(2).add(1)
  },
  'a loop in one scope'() {
    scope(() => {
      for (let i = 0; i < steps; i++) x.mul(2).add(1)
    })
  },
  'a loop with scopes'() {
    for (let i = 0; i < steps; i++) scope(() => void x.mul(2).add(1))
    for (let i = 0; i < 2 * steps; i++) x.mul(2).dispose()
  },
  'kept tensors'() {
    for (let i = 0; i < 2 * steps; i++) keep(ones([1]))
  },
  'parameters and gradients'() {
    for (const parameter of new Many(101_000).list) parameter.grad = parameter.detach()
  },
  'state dicts and files'() {
    const states = new Many(26_000).stateDict()
    const file = encodeSafetensors(states)
    const loaded = [1, 2, 3, 4].map(() => decodeSafetensors(file))
    if (loaded.length * Object.keys(states).length < 100_001) throw new Error('too few')
  },
  'forwards without a backward'() {
    for (let i = 0; i < 110; i++) forward()
  },
  'forwards with a backward, or freed'() {
    for (let i = 0; i < 110; i++) forward().backward(new Float32Array(2))
    for (let i = 0; i < 110; i++) forward().dispose()
    for (let i = 0; i < 100; i++) forward()
  },
  async 'forwards that nobody holds'() {
    const before = memory().tensors
    for (let round = 0; round < 4; round++) {
      for (let i = 0; i < 50; i++) forward()
      for (let turn = 0; turn < 5; turn++) {
        globalThis.gc()
        await setImmediate()
      }
    }
    if (memory().tensors > before) throw new Error(`${memory().tensors - before} tensors are left`)
  },
}[what]()
