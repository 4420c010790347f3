import { types } from 'node:util'
import { type Edge, edgeTo, type Node, nextNode, record } from '../autograd/autograd.js'
import {
  computeAgain,
  currentObserver,
  type HookHandle,
  isGradEnabled,
  type Observer,
  observing,
  within,
} from '../autograd/context.js'
import { type GeneratorState, loggingSamples, repeatingSamples } from '../autograd/random.js'
import { scope, tensorsIn } from '../autograd/scope.js'
import { copyArray, fail } from '../runtime/check.js'
import { show } from '../runtime/errors.js'
import type { Handle } from '../runtime/native.js'
import { share } from '../tensor/handles.js'
import { checkTensor, handleOf, setSource, sourceOf, type Tensor, wrap } from '../tensor/tensor.js'
import { mapTensors } from './hooks.js'

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
 * tensors that it uses, such as parameters, must live until the backward, and parameters changed meanwhile are an error;
 * a block in a block gets those that the outer one has made as inputs.
 * It returns a tensor, a `MoEResult`, or arrays and plain objects of these; what else is in the result, such as
 * `routing`, has no gradient. Forward hooks of modules in it run twice; {@link MoEMonitor} counts once. A hook that it
 * registers takes the place of that of the first forward.
 *
 * Errors: OPTION, also for an async block; those of the block. In the backward: UNSUPPORTED if the block returns tensors
 * of other types or in another order, samples more or fewer random numbers, or finds a module in another mode.
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
  return isGradEnabled() ? (new Recomputed(forward, given).run() as R) : (forward(given) as R)
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
    if (!types.isPromise(result)) return result
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
  /** That of the block around this one. */
  readonly #around = currentObserver()
  /** Each module with the modes that the forward read. */
  readonly #modes = new Map<object, Set<boolean>>()
  /** Those that the block has registered and not removed itself. */
  #hooks: BlockHook[] = []
  #samples: readonly GeneratorState[] = []
  #signature = ''

  constructor(forward: Forward, given: unknown[]) {
    this.#forward = forward
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
      const mode = (module: object, training: boolean) =>
        void this.#modes.set(module, (this.#modes.get(module) ?? new Set()).add(training))
      const hook: Observer['hook'] = (handle, fn) => void this.#hooks.push(new BlockHook(handle, fn))
      const observer = inBoth({ mode, hook }, this.#around)
      const { value, samples } = loggingSamples(() => observing(observer, () => this.#forward(inputs)))
      this.#samples = samples
      this.#hooks = this.#hooks.filter(({ isRemoved }) => !isRemoved)
      const made = (tensor: Tensor): Node | null => {
        const source = sourceOf(tensor)
        return source && source.node.id >= first ? source.node : null
      }
      const results: Tensor[] = []
      const outputs: Tensor[] = []
      const result = mapTensors(value, (tensor) => {
        if (!made(tensor)) return originals.get(tensor) ?? tensor
        results.push(tensor)
        outputs.push(wrap(share(handleOf(tensor)), tensor))
        return outputs[outputs.length - 1]
      })
      this.#signature = signatureOf(results)
      const { leaves, older } = sourcesOf(results, first)
      for (const tensor of tensorsIn(result)) if (made(tensor)) tensor.requiresGrad = false
      const all = [...this.#inputs.map(({ tensor }) => tensor), ...leaves.filter((leaf) => !originals.has(leaf))]
      const again = (saved: readonly Handle[]) => this.#again(saved)
      if (outputs.length > 0) record({ op, inputs: all, beside: older, outputs, saved: all, backward: { again } })
      return result
    })
  }

  /** The inputs with `make(input, i)` in the place of tensor i. */
  #withInputs(make: (input: Input, i: number) => Tensor): unknown[] {
    let next = 0
    return mapTensors(this.#given, () => make(this.#inputs[next], next++)) as unknown[]
  }

  #again(saved: readonly Handle[]): Edge[] {
    const removed = this.#hooks.filter(({ isRemoved }) => isRemoved)
    let next = 0
    const hook: Observer['hook'] = (handle, fn) => {
      const at = this.#hooks.findIndex((hook, i) => i >= next && hook.isFrom(fn))
      if (at < 0) return
      this.#hooks[at].continueAs(handle)
      next = at + 1
    }
    const mode = (module: object, training: boolean) => {
      if (this.#modes.get(module)?.has(training) === false)
        fail('UNSUPPORTED', op, 'the block has changed between training and evaluation since its forward')
    }
    return scope(() => {
      const inputs = this.#withInputs(({ tensor, source }, i) => {
        if (!source && !tensor.disposed) return tensor
        const again = wrap(share(saved[i]), tensor)
        if (source) setSource(again, source.node, source.output)
        return again
      })
      const first = nextNode()
      const run = () =>
        repeatingSamples(op, this.#samples, () => observing({ mode, hook }, () => this.#forward(inputs)))
      const value = within({ gradEnabled: true }, () => computeAgain(run))
      for (const hook of removed) hook.remove()
      const outputs: Tensor[] = []
      mapTensors(value, (tensor) => {
        const source = sourceOf(tensor)
        if (source && source.node.id >= first) outputs.push(tensor)
        return tensor
      })
      if (signatureOf(outputs) !== this.#signature)
        fail('UNSUPPORTED', op, 'the block returns other tensors the second time')
      return outputs.map((output) => {
        const edge = edgeTo(output) as { node: Node; output: number }
        edge.node.hold()
        return edge
      })
    })
  }
}

/** A hook that a block registers in each forward, or in the first alone. The handle of the first removes that of the last. */
class BlockHook {
  isRemoved = false
  readonly #source: string
  #remove: () => void

  constructor(handle: HookHandle, fn: object) {
    this.#source = textOf(fn)
    this.#remove = handle.remove
    handle.remove = () => this.remove()
  }

  remove(): void {
    this.isRemoved = true
    this.#remove()
  }

  /** Whether the block has registered `fn` in the same place: each forward makes a function of its own. */
  isFrom(fn: object): boolean {
    return this.#source === textOf(fn)
  }

  /** Another forward has registered it. */
  continueAs(handle: HookHandle): void {
    this.#remove()
    this.#remove = handle.remove
    this.isRemoved = false
  }
}

/** The source text, whatever the function says of itself. */
const textOf = (fn: object): string => Function.prototype.toString.call(fn)

/** What an inner block does is of the block around it, too. */
const inBoth = (inner: Observer, outer: Observer | null): Observer => ({
  mode: (module, training) => {
    inner.mode(module, training)
    outer?.mode(module, training)
  },
  hook: (handle, fn) => {
    inner.hook(handle, fn) // first: the outer one then has the handle that the inner one keeps up to date
    outer?.hook(handle, fn)
  },
})

/** The types of tensors, and the order in which they were made. */
function signatureOf(tensors: readonly Tensor[]): string {
  const sources = tensors.map((tensor) => sourceOf(tensor) as { node: Node; output: number })
  const order = [...sources.entries()].sort(([, a], [, b]) => a.node.id - b.node.id || a.output - b.output)
  return JSON.stringify([tensors.map(({ shape, dtype, device }) => [shape, dtype, device]), order.map(([i]) => i)])
}

/** The leaves and the older edges that lead to tensors made from node `first` on. */
function sourcesOf(tensors: readonly Tensor[], first: number): { leaves: Tensor[]; older: Edge[] } {
  const leaves = new Set<Tensor>()
  const older = new Map<Node, Edge>()
  const seen = new Set<Node>()
  const visit = (edge: Edge): void => {
    if (edge && 'leaf' in edge) leaves.add(edge.leaf)
    else if (edge && edge.node.id >= first) seen.add(edge.node)
    else if (edge) older.set(edge.node, edge)
  }
  tensors.map(edgeTo).forEach(visit)
  for (const node of seen) node.edges.forEach(visit)
  return { leaves: [...leaves], older: [...older.values()] }
}
