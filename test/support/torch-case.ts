import { Attention, ops, type StateDict, type Tensor } from '../../lib/index.js'
import { type Case, compareWith, type Finding, type Float, findingsOf, input, type Limits } from './golden-case.js'
import { values } from './numbers.js'

const limits: Limits = { f32: { forward: 1e-6, gradient: 1e-6 }, f64: { forward: 1e-12, gradient: 1e-12 } }

/** Compares a loss of PyTorch, or attention of transformers: inputs, the result `y`, its gradient `dy`, and `d<input>`. */
export function checkTorchCase(path: string, dtype: Float): Finding[] {
  return findingsOf(path, dtype, limits, (golden) => {
    const { y: wanted, dy: _, ...rest } = golden.tensors
    const gradients = Object.keys(rest).filter((name) => name[0] === 'd' && name.slice(1) in rest)
    const given: StateDict = {}
    for (const [name, value] of Object.entries(rest)) {
      if (gradients.includes(name)) continue
      given[name] = value.dtype === 'i32' ? value : input(golden, name).detach()
      given[name].requiresGrad = value.dtype !== 'i32'
    }
    const { y, leaves } = run(golden, given)
    y.mul(input(golden, 'dy')).sum().backward()
    compareWith(golden, 'forward', 'y', values(y), wanted)
    for (const name of gradients) compareWith(golden, 'gradient', name, values(leaves[name.slice(1)].grad!), rest[name])
  })
}

/** The result, and the leaves whose gradients count. */
function run({ metadata, dtype }: Case, given: StateDict): { y: Tensor; leaves: StateDict } {
  const options = JSON.parse(metadata.options)
  if (metadata.op === 'attention') return { y: ops.attention(given.q, given.k, given.v, options), leaves: given }
  if (metadata.op !== 'Attention') {
    const loss = ops[metadata.op as 'binaryCrossEntropyWithLogits']
    const { a, b, posWeight } = given
    return { y: loss(a, b, { ...options, ...(posWeight ? { posWeight } : {}) }), leaves: given }
  }
  const { x, mask, ...weights } = given
  const layer = new Attention(x.shape[2], { ...options, dtype })
  layer.loadStateDict(Object.fromEntries(Object.entries(weights).map(([name, value]) => [`${name}.weight`, value])))
  const { query, key, value, out } = layer
  const leaves = { x, query: query.weight, key: key.weight, value: value.weight, out: out.weight }
  return { y: layer.forward(x, { mask }), leaves }
}

/** Compares the text of a tensor, up to its dtype, with that of PyTorch. */
export function checkPrinted(path: string, dtype: Float): Finding[] {
  return findingsOf(path, dtype, limits, ({ tensors, metadata, findings }) => {
    const shown = tensors.x.toString()
    const same = shown.slice(0, shown.lastIndexOf(',', shown.lastIndexOf('['))) === `tensor(${metadata.text}`
    findings.push({
      name: same ? 'text' : `${shown}\ninstead of tensor(${metadata.text}`,
      error: same ? 0 : 1,
      limit: 0,
    })
  })
}
