import {
  AdamW,
  getDefaultDevice,
  loadSafetensorsSync,
  type Module,
  MoE,
  mseLoss,
  type ops,
  SoftMoE,
  SparseMoEBlock,
  type StateDict,
  scope,
  type Tensor,
  TopNGating,
  tensor,
} from '../../lib/index.js'
import { type Numbers, relativeError, values } from './numbers.js'

export type Float = 'f32' | 'f64'

/** One comparison: the relative error of a tensor and how much of it is allowed. */
export interface Finding {
  name: string
  error: number
  limit: number
}

export type Limits = Record<Float, { forward: number; gradient: number }>

const limits: Limits = { f32: { forward: 1e-5, gradient: 1e-4 }, f64: { forward: 1e-12, gradient: 1e-10 } }

export interface Case {
  tensors: StateDict
  metadata: Record<string, string>
  dtype: Float
  limits: Limits
  findings: Finding[]
}

export type Options = Record<string, unknown>

export const camel = (name: string): string => name.replaceAll(/_([a-z])/g, (_, letter) => letter.toUpperCase())

/** Options under our names from JSON under the reference's. */
function optionsOf(json: string | undefined): Options {
  return Object.fromEntries(Object.entries(JSON.parse(json ?? '{}')).map(([name, value]) => [camel(name), value]))
}

/** What `check` finds in a file of the form described in test/golden/README.md in one dtype. */
export function findingsOf(path: string, dtype: Float, limits: Limits, check: (golden: Case) => void): Finding[] {
  return scope(() => {
    const golden: Case = { ...loadSafetensorsSync(path), dtype, limits, findings: [] }
    check(golden)
    return golden.findings
  })
}

/** Compares a case of st-moe-pytorch or soft-moe-pytorch. */
export function checkCase(path: string, dtype: Float): Finding[] {
  return findingsOf(path, dtype, limits, (golden) => {
    const { kind } = golden.metadata
    if (kind === 'train') checkTraining(golden)
    else if (kind === 'topn_gating') checkGating(golden)
    else if (kind === 'soft_moe') checkSoftMoE(golden)
    else checkLayer(golden)
  })
}

export const input = ({ tensors, dtype }: Case, name: string): Tensor<Float> =>
  tensors[name].to(dtype).to(getDefaultDevice())

export function statesOf({ tensors }: Case, prefix: string): StateDict {
  const entries = Object.entries(tensors).filter(([name]) => name.startsWith(prefix))
  return Object.fromEntries(entries.map(([name, value]) => [name.slice(prefix.length), value]))
}

type Kind = 'forward' | 'gradient'

/** Compares with `expected.<name>`. */
export function compare(golden: Case, kind: Kind, name: string, actual: Numbers): void {
  compareWith(golden, kind, name, actual, golden.tensors[`expected.${name}`])
}

export function compareWith(
  { limits, dtype, findings }: Case,
  kind: Kind,
  name: string,
  actual: Numbers,
  expected: Tensor,
): void {
  findings.push({ name, error: relativeError(actual, values(expected)), limit: limits[dtype][kind] })
}

function compareRouting(golden: Case, routing: ops.Routing): void {
  const { expertIndex, kept, position, gate, capacity } = routing
  for (const [name, actual] of Object.entries({ expert_index: expertIndex, kept, position })) {
    const expected = values(golden.tensors[`expected.route.${name}`])
    const got = values(actual)
    const wrong = Array.from(expected).filter((entry, i) => entry !== got[i]).length
    golden.findings.push({ name: `route.${name}`, error: expected.length === got.length ? wrong : Infinity, limit: 0 })
  }
  compare(golden, 'forward', 'route.gate', values(gate))
  golden.findings.push({ name: 'capacity', error: Math.abs(capacity - Number(golden.metadata.capacity)), limit: 0 })
}

/** Every expectation under `expected.<prefix>` must be in `actual` and the other way round. */
export function compareState(golden: Case, prefix: string, actual: StateDict): void {
  const expected = statesOf(golden, `expected.${prefix}`)
  const names = new Set([...Object.keys(expected), ...Object.keys(actual)])
  for (const name of names) {
    if (!expected[name] || !actual[name]) throw new Error(`${prefix}${name} is only on one side`)
    compare(golden, 'gradient', prefix + name, values(actual[name]))
  }
}

function buildLayer({ metadata, dtype }: Case): MoE | SparseMoEBlock {
  const { addFfBefore, addFfAfter, ...options } = optionsOf(metadata.config)
  const moe = new MoE({ ...(options as { dim: number }), dtype })
  if (metadata.kind !== 'block') return moe
  return new SparseMoEBlock(moe, { addFfBefore: addFfBefore as boolean, addFfAfter: addFfAfter as boolean })
}

function prepare(golden: Case, module: Module): void {
  module.loadStateDict(statesOf(golden, 'state.'))
  module.train(golden.metadata.mode === 'train')
}

function forwardOptions(golden: Case): Options {
  const { tensors, metadata } = golden
  const random: StateDict = { uniforms: input(golden, 'random.uniforms') }
  if (tensors['random.gumbel_uniforms']) random.gumbelUniforms = input(golden, 'random.gumbel_uniforms')
  return { ...optionsOf(metadata.forward_options), random }
}

function checkLayer(golden: Case): void {
  using layer = buildLayer(golden)
  prepare(golden, layer)
  const x = input(golden, 'input').clone()
  x.requiresGrad = true
  const result = layer.forward(x, forwardOptions(golden))
  compare(golden, 'forward', 'outputs', values(result.outputs))
  compare(golden, 'forward', 'total_aux_loss', values(result.totalAuxLoss))
  compare(golden, 'forward', 'balance_loss', values(result.balanceLoss))
  compare(golden, 'forward', 'router_z_loss', values(result.routerZLoss))
  compareRouting(golden, result.routing)
  const objective = result.outputs.mul(input(golden, 'grad_output')).sum()
  objective.add(result.totalAuxLoss.mul(Number(golden.metadata.aux_weight))).backward()
  compareState(golden, 'grad.', { input: x.grad!, ...layer.gradDict() })
}

/**
 * The reference's gating returns dense tensors [b, n, E, C]. Ours returns weights and slots: dispatch has a 1 and
 * combine the weight at (e_k, position_k), so cotangents of both reduce to one of the weight there.
 */
function checkGating(golden: Case): void {
  const { straightThroughDispatchTensor, ...options } = optionsOf(golden.metadata.config)
  using gating = new TopNGating({ ...(options as { dim: number; numGates: number }), dtype: golden.dtype })
  prepare(golden, gating)
  const x = input(golden, 'input').clone()
  x.requiresGrad = true
  const routing = gating.forward(x, forwardOptions(golden))
  compareRouting(golden, routing)
  compare(golden, 'forward', 'balance_loss', values(routing.balanceLoss))
  compare(golden, 'forward', 'router_z_loss', values(routing.routerZLoss))

  const [index, position, weight] = [routing.expertIndex, routing.position, routing.weight].map(values)
  const { numExperts: E, capacity: C } = routing
  const K = routing.weight.shape[2]
  const [gradDispatch, gradCombine] = [golden.tensors.grad_dispatch, golden.tensors.grad_combine].map(values)
  const dense = { dispatch: new Float64Array(gradDispatch.length), combine: new Float64Array(gradDispatch.length) }
  const cotangent = new Float64Array(index.length)
  for (let i = 0; i < index.length; i++) {
    if (position[i] < 0) continue
    const at = (Math.floor(i / K) * E + index[i]) * C + position[i]
    dense.dispatch[at] += 1
    dense.combine[at] += weight[i]
    cotangent[i] = gradCombine[at] + (straightThroughDispatchTensor ? gradDispatch[at] : 0)
  }
  compare(golden, 'forward', 'dispatch', dense.dispatch)
  compare(golden, 'forward', 'combine', dense.combine)
  const objective = routing.weight.mul(tensor(cotangent, routing.weight.shape).to(golden.dtype)).sum()
  const losses = routing.balanceLoss.add(routing.routerZLoss)
  objective.add(losses.mul(Number(golden.metadata.aux_weight))).backward()
  compareState(golden, 'grad.', { input: x.grad!, ...gating.gradDict() })
}

function checkSoftMoE(golden: Case): void {
  const { tensors, metadata, dtype } = golden
  const { useLayernorm, ...options } = optionsOf(metadata.config)
  using layer = new SoftMoE({ ...(options as { dim: number }), useLayerNorm: useLayernorm as boolean, dtype })
  prepare(golden, layer)
  const x = input(golden, 'input').clone()
  x.requiresGrad = true
  const gumbelUniforms = tensors['random.gumbel_uniforms']
  const y = layer.forward(x, { ...optionsOf(metadata.forward_options), mask: tensors.mask, random: { gumbelUniforms } })
  compare(golden, 'forward', 'outputs', values(y))
  y.backward(input(golden, 'grad_output'))
  compareState(golden, 'grad.', { input: x.grad!, ...layer.gradDict() })
}

function checkTraining(golden: Case): void {
  const { metadata } = golden
  using layer = buildLayer(golden)
  prepare(golden, layer)
  const { name, ...options } = optionsOf(metadata.optimizer)
  if (name !== 'AdamW') throw new Error(`a case with the optimizer ${name}`)
  using optimizer = new AdamW(layer.parameters(), options)
  const x = input(golden, 'input')
  const target = input(golden, 'target')
  const losses = Array.from({ length: Number(metadata.steps) }, (_, step) => {
    const random = { uniforms: input(golden, `random.uniforms.${step}`) }
    const { outputs, totalAuxLoss } = layer.forward(x, { random })
    const loss = mseLoss(outputs, target).add(totalAuxLoss)
    loss.backward()
    optimizer.step()
    optimizer.zeroGrad()
    return loss.item()
  })
  compare(golden, 'forward', 'loss', losses)
  const { 'gate.threshold_train': _, 'gate.threshold_eval': __, ...final } = layer.stateDict()
  compareState(golden, 'final.', final)
}
