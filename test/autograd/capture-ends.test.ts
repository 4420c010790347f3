import { expect, test } from 'vitest'
import { captureStep, Linear, memory, ones, scope, type Tensor } from '../../lib/index.js'

// What a capture leaves of the gradients and tensors that there were before it, and of its own.

/** A layer with a gradient, and a step of it. */
function layerWithGradient() {
  const layer = new Linear(3, 2)
  const x = ones([4, 3])
  const step = (): Tensor => {
    layer.zeroGrad()
    const loss = layer.forward(x).square().sum()
    loss.backward()
    return loss
  }
  scope(() => void step())
  return { layer, x, step }
}

test('gradients that a step replaces are freed', () => {
  const before = memory().tensors
  const { layer, x, step } = layerWithGradient()
  const captured = captureStep(step)
  captured.replay()
  layer.zeroGrad()
  for (const owned of [captured, layer, x]) owned.dispose()
  expect(memory().tensors).toBe(before)
})

test('a capture that fails gives gradients back and frees what its function returned', () => {
  const before = memory().tensors
  const { layer, x, step } = layerWithGradient()
  const there = memory().tensors
  const gradient = layer.weight.grad!
  const values = [...gradient.dataSync()]
  const thrown = (): never => {
    throw new Error('mine')
  }
  expect(() => captureStep(() => [step(), thrown()])).toThrow('mine')
  expect(layer.weight.grad).toBe(gradient)
  expect([...gradient.dataSync()]).toEqual(values)
  layer.weight.grad = null
  layer.bias!.grad = null
  const unclear = () => {
    const loss = layer.forward(x).sum()
    loss.backward()
    return { loss, doubled: x.mul(2) }
  }
  const without = memory().tensors
  expect(() => captureStep(unclear)).toThrow(/call zeroGrad\(\) at the start of the step/)
  expect(memory().tensors).toBe(without)
  expect(without).toBe(there - 2)
  for (const owned of [layer, x]) owned.dispose()
  expect(memory().tensors).toBe(before)
})
