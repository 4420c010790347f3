import { type Edge, edgeTo, type Node, nextNode, record } from '../autograd.js'
import { copyArray, fail, sameShape } from '../check.js'
import { computeAgain, isGradEnabled, within } from '../context.js'
import { show } from '../errors.js'
import { share } from '../handles.js'
import type { Handle } from '../native.js'
import { type GeneratorState, loggingSamples, repeatingSamples } from '../random.js'
import { scope, tensorsIn } from '../scope.js'
import { checkTensor, handleOf, setSource, sourceOf, type Tensor, wrap } from '../tensor.js'
import { mapTensors } from './hooks.js'
import { Module } from './module.js'

const op = 'recompute'

/** What {@link recompute} can call besides functions, such as a module. */
export interface Recomputable<A extends unknown[], R> {
  /** The call. */
  forward(...inputs: A): R
}

/**
 * Calls a module or a function, and keeps only the inputs for its backward, which runs the forward again. What the
 * forward saves then exists for one block at a time (Chen et al., arXiv 1604.06174; torch.utils.checkpoint). Outputs
 * and gradients are those without, bit for bit: the second forward takes the same random numbers (routing, dropout,
 * `randn`) from the same generators, which do not advance again. Blocks nest, and can be part of a captured step.
 *
 * The block must do the same both times. It gets tensors of its inputs also within arrays and plain objects; other
 * tensors that it uses, such as parameters, must live until the backward, and parameters changed meanwhile are an error.
 * It returns a tensor, a `MoEResult`, or arrays and plain objects of these; what else is in the result, such as
 * `routing`, has no gradient. Hooks of modules in it run twice; {@link MoEMonitor} counts once.
 *
 * Errors: OPTION, also for an async block; those of the block. In the backward: UNSUPPORTED if the block does something
 * else the second time.
 *
 * @example
 * ```ts
 * const block = new SparseMoEBlock(new MoE({ dim: 16, numExperts: 4 }))
 * const x = randn([2, 8, 16], { requiresGrad: true })
 * const { outputs, totalAuxLoss } = recompute(block, [x])
 * outputs.square().mean().add(totalAuxLoss).backward()
 * console.log(x.grad?.shape) // → [ 2, 8, 16 ]
 * ```
 */
export function recompute<A extends unknown[], R>(block: ((...inputs: A) => R) | Recomputable<A, R>, inputs: A): R {
  const forward = forwardOf(block)
  const given = copyArray(op, 'inputs', inputs, 1000)
  return isGradEnabled() ? (new Recomputed(block, forward, given).run() as R) : (forward(given) as R)
}

type Forward = (inputs: readonly unknown[]) => unknown

function forwardOf(block: unknown): Forward {
  const isFunction = typeof block === 'function'
  const method = isFunction ? block : (block as { forward?: unknown } | null | undefined)?.forward
  if (typeof method !== 'function')
    fail('OPTION', op, `block must be a function, or a module with a forward, got ${show(block)}`)
  return (inputs) => {
    const result = isFunction
      ? block(...inputs)
      : (block as { forward: (...inputs: unknown[]) => unknown }).forward(...inputs)
    if (!(result instanceof Promise)) return result
    result.catch(() => {})
    return fail('OPTION', op, 'the block must not be async')
  }
}

/** A tensor among the inputs, and what made it. */
interface Input {
  readonly tensor: Tensor
  readonly source: { node: Node; output: number } | null
}

class Recomputed {
  readonly #forward: Forward
  /** Arrays and plain objects are copies. */
  readonly #given: unknown
  readonly #inputs: Input[] = []
  readonly #modules: readonly Module[]
  readonly #modes: readonly boolean[]
  #samples: readonly GeneratorState[] = []
  #outputs: readonly (readonly number[])[] = []

  constructor(block: unknown, forward: Forward, given: unknown[]) {
    this.#forward = forward
    this.#modules = block instanceof Module ? [...block.modules()] : []
    this.#modes = this.#modules.map(({ training }) => training)
    this.#given = mapTensors(given, (tensor) => {
      this.#inputs.push({ tensor: checkTensor(op, 'input', tensor), source: sourceOf(tensor) })
      return tensor
    })
  }

  /** Runs the forward on tensors without history, and records one op that has its outputs. */
  run(): unknown {
    return scope(() => {
      const first = nextNode()
      const originals = new Map<Tensor, Tensor>()
      const inputs = this.#withInputs(({ tensor, source }) => {
        if (!source) return tensor
        const alone = wrap(share(handleOf(tensor)), tensor)
        alone.requiresGrad = true
        originals.set(alone, tensor)
        return alone
      })
      const { value, samples } = loggingSamples(() => this.#forward(inputs))
      this.#samples = samples
      const made = (tensor: Tensor): Node | null => {
        const source = sourceOf(tensor)
        return source && source.node.id >= first ? source.node : null
      }
      const outputs: Tensor[] = []
      const roots: Node[] = []
      const result = mapTensors(value, (tensor) => {
        const node = made(tensor)
        if (!node) return originals.get(tensor) ?? tensor
        roots.push(node)
        outputs.push(wrap(share(handleOf(tensor)), tensor))
        return outputs[outputs.length - 1]
      })
      const leaves = leavesOf(roots, first).filter((leaf) => !originals.has(leaf))
      for (const tensor of tensorsIn(result)) if (made(tensor)) tensor.requiresGrad = false
      this.#outputs = outputs.map(({ shape }) => shape)
      const all = [...this.#inputs.map(({ tensor }) => tensor), ...leaves]
      if (outputs.length > 0)
        record({ op, inputs: all, outputs, saved: all, backward: { again: (saved) => this.#again(saved) } })
      return result
    })
  }

  /** The inputs with `make(input, i)` in the place of tensor i. */
  #withInputs(make: (input: Input, i: number) => Tensor): unknown[] {
    let next = 0
    return mapTensors(this.#given, () => make(this.#inputs[next], next++)) as unknown[]
  }

  #again(saved: readonly Handle[]): Edge[] {
    if (this.#modules.some(({ training }, i) => training !== this.#modes[i]))
      fail('UNSUPPORTED', op, 'the block has changed between training and evaluation since its forward')
    return scope(() => {
      const inputs = this.#withInputs(({ tensor, source }, i) => {
        if (!source && !tensor.disposed) return tensor
        const again = wrap(share(saved[i]), tensor)
        if (source) setSource(again, source.node, source.output)
        return again
      })
      const first = nextNode()
      const run = () => repeatingSamples(op, this.#samples, () => this.#forward(inputs))
      const value = within({ gradEnabled: true }, () => computeAgain(run))
      const outputs: Tensor[] = []
      mapTensors(value, (tensor) => {
        const source = sourceOf(tensor)
        if (source && source.node.id >= first) outputs.push(tensor)
        return tensor
      })
      if (
        outputs.length !== this.#outputs.length ||
        !outputs.every(({ shape }, i) => sameShape(shape, this.#outputs[i]))
      )
        fail('UNSUPPORTED', op, 'the block returns other tensors the second time')
      return outputs.map((output) => {
        const edge = edgeTo(output) as { node: Node; output: number }
        edge.node.hold()
        return edge
      })
    })
  }
}

/** The leaves below nodes that are not older than `first`. */
function leavesOf(roots: readonly Node[], first: number): Tensor[] {
  const leaves = new Set<Tensor>()
  const seen = new Set(roots)
  for (const node of seen)
    for (const edge of node.edges) {
      if (edge && 'leaf' in edge) leaves.add(edge.leaf)
      else if (edge && edge.node.id >= first) seen.add(edge.node)
    }
  return [...leaves]
}
