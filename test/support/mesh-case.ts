import { concat, MoE, type MoEOptions, type Tensor, zeros } from '../../lib/index.js'
import {
  type Case,
  camel,
  compare,
  compareState,
  type Finding,
  type Float,
  findingsOf,
  input,
  type Limits,
  statesOf,
} from './golden-case.js'
import { values } from './numbers.js'

const limits: Limits = { f32: { forward: 2e-6, gradient: 2e-5 }, f64: { forward: 1e-12, gradient: 1e-12 } }
/** Mesh TensorFlow adds 1e-9 to the sum of the gates of top-k. */
const normalized: Limits = { ...limits, f64: { forward: 1e-8, gradient: 1e-8 } }

/** Compares a case of Mesh TensorFlow in one dtype. */
export function checkMeshCase(path: string, dtype: Float): Finding[] {
  return findingsOf(path, dtype, limits, (golden) => {
    if (golden.metadata.gating.startsWith('top_')) golden.limits = normalized
    checkLayer(golden)
  })
}

function leaf(golden: Case, name: string): Tensor {
  const x = input(golden, name).clone()
  x.requiresGrad = true
  return x
}

/** What the router looks at: Mesh's moe_word_embed_mode. */
function routerInput(mode: string, x: Tensor, embeddings: Tensor): Tensor {
  if (mode === 'concat') return concat([x, embeddings], 2)
  return mode === 'add' ? x.add(embeddings) : embeddings
}

function checkLayer(golden: Case): void {
  const { tensors, metadata, dtype } = golden
  using layer = new MoE({ ...(JSON.parse(metadata.config) as MoEOptions), dtype })
  layer.loadStateDict({ ...layer.stateDict(), ...statesOf(golden, 'state.') }) // thresholds are options in these files
  layer.train(metadata.mode === 'train')
  const leaves: Record<string, Tensor> = { input: leaf(golden, 'input') }
  const random = Object.keys(statesOf(golden, 'random.')).map((name) => [camel(name), input(golden, `random.${name}`)])
  const options: Record<string, unknown> = { random: Object.fromEntries(random) }
  for (const name of ['mask', 'importance']) if (tensors[name]) options[name] = input(golden, name)
  if (tensors.token_embeddings) {
    leaves.token_embeddings = leaf(golden, 'token_embeddings')
    options.routerInput = routerInput(metadata.router_input, leaves.input, leaves.token_embeddings)
  }
  const result = layer.forward(leaves.input, options)
  const { outputs, totalAuxLoss: total_aux_loss, balanceLoss: balance_loss, routerZLoss: router_z_loss } = result
  for (const [name, value] of Object.entries({ outputs, total_aux_loss, balance_loss, router_z_loss }))
    if (tensors[`expected.${name}`]) compare(golden, 'forward', name, values(value))
  const objective = outputs.mul(input(golden, 'grad_output')).sum()
  objective.add(total_aux_loss.mul(Number(metadata.aux_weight))).backward()
  const grads = Object.entries(leaves).map(([name, { grad, shape }]) => [name, grad ?? zeros(shape)])
  compareState(golden, 'grad.', { ...Object.fromEntries(grads), ...layer.gradDict() })
}
