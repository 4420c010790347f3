import { type Edge, edgeTo, type GradHook, type HookHandle, type Node } from './autograd.js'
import { checkBoolean, checkFunction, checkOptions, fail, showShape } from './check.js'
import { currentRecorder } from './context.js'
import { deviceIndex } from './device.js'
import { type DType, dtypeCode } from './dtype.js'
import { MoeError } from './errors.js'
import { consumed, releaseAll, share } from './handles.js'
import { asMethods } from './methods.js'
import { type Handle, native } from './native.js'
import {
  checkTensor,
  handleOf,
  isKept,
  leafHooksOf,
  putGrad,
  sourceOf,
  type Tensor,
  type TensorMeta,
  wrap,
} from './tensor.js'

/** The backward pass: gradients along the tape, and the hooks that see them. */

/** Options of {@link Tensor.backward}. */
export interface BackwardOptions {
  /** Keeps the graph and what it saved, for another backward. Default false. */
  retainGraph?: boolean
}

/** a + b; takes over b, and a once there is a sum. */
function accumulate(a: Handle, b: Handle): Handle {
  return consumed(b, () => {
    if (native.unique(a)) {
      native.addInPlace(a, b)
      return a
    }
    const sum = native.binary(a, b, 0)
    native.release(a)
    return sum
  })
}

/** Adds to `leaf.grad`, without a need for memory; takes over the gradient, which nobody else holds. */
function accumulateGrad(leaf: Tensor, grad: Handle): void {
  const held = leaf.grad
  currentRecorder()?.noteGrad(leaf, held, false)
  if (held && !held.disposed) {
    native.addInPlace(handleOf(held), grad)
    native.release(grad)
  } else putGrad(leaf, wrap(grad, leaf))
}

/** Gradients on their way, so that an exception anywhere frees them all. */
class Pending {
  readonly nodes = new Map<Node, (Handle | null)[]>()
  readonly leaves = new Map<Tensor, Handle>()

  /** Takes all of them over, those of edges that want none too. */
  addAll(edges: readonly Edge[], grads: readonly (Handle | null)[]): void {
    for (const [i, grad] of grads.entries()) {
      if (grad === null) continue
      try {
        this.add(edges[i], grad)
      } catch (error) {
        releaseAll(grads.slice(i + 1))
        throw error
      }
    }
  }

  add(edge: Edge, grad: Handle): void {
    if (edge === null) {
      native.release(grad)
    } else if ('leaf' in edge) {
      const held = this.leaves.get(edge.leaf)
      this.leaves.set(edge.leaf, held === undefined ? grad : accumulate(held, grad))
    } else {
      const grads = this.nodes.get(edge.node) ?? edge.node.hooks.map(() => null)
      const held = grads[edge.output]
      grads[edge.output] = held === null ? grad : accumulate(held, grad)
      this.nodes.set(edge.node, grads)
    }
  }

  take(node: Node): (Handle | null)[] | undefined {
    const grads = this.nodes.get(node)
    this.nodes.delete(node)
    return grads
  }

  /** Lets the hooks of leaves see and replace their gradients. */
  callLeafHooks(): void {
    for (const [leaf, grad] of [...this.leaves]) {
      const hooks = leafHooksOf(leaf)
      if (hooks.length === 0) continue
      this.leaves.delete(leaf) // applyHooks owns the gradient meanwhile
      this.leaves.set(leaf, applyHooks(hooks, grad, leaf))
    }
  }

  /** Adds to the `grad` of every leaf, of all or none: what needs memory comes first. */
  commit(): void {
    for (const [leaf, grad] of this.leaves) {
      const adds = leaf.grad !== null && !leaf.grad.disposed
      if (leaf.disposed || adds || native.unique(grad)) continue
      this.leaves.set(leaf, native.convert(grad, dtypeCode(leaf.dtype)))
      native.release(grad)
    }
    for (const [leaf, grad] of this.leaves) {
      this.leaves.delete(leaf)
      if (leaf.disposed) native.release(grad)
      else accumulateGrad(leaf, grad)
    }
  }

  release(): void {
    for (const grads of this.nodes.values()) releaseAll(grads)
    releaseAll([...this.leaves.values()])
  }
}

/** Lets hooks see and replace a gradient; takes it over and gives the one to go on with. */
function applyHooks(hooks: readonly GradHook[], grad: Handle, meta: TensorMeta): Handle {
  let current = grad
  for (const hook of [...hooks]) {
    const seen = wrap(share(current), meta)
    try {
      const replaced = hook(seen)
      if (replaced === undefined || replaced === null) continue
      checkTensor('backward', 'the gradient that a hook returns', replaced, seen)
      const handle = share(handleOf(replaced))
      native.release(current)
      current = handle
    } catch (error) {
      native.release(current)
      throw error
    } finally {
      if (!isKept(seen)) seen.dispose()
    }
  }
  return current
}

/** What the backward passes that are running now (a hook may start another) have to do at their end. */
const endings: (() => void)[][] = []

/** Calls `fn` when the innermost running backward ends, by an exception too. */
export function atBackwardEnd(fn: () => void): void {
  endings.at(-1)?.push(fn)
}

function reachable(root: Node): Node[] {
  const seen = new Set<Node>([root])
  for (const node of seen) for (const edge of node.edges) if (edge && 'node' in edge) seen.add(edge.node)
  return [...seen].sort((a, b) => b.id - a.id) // an op's inputs are older than itself
}

/**
 * Runs the tape from `root` with `gradient` (taken over). Leaf gradients change only when everything has run; after an
 * error the graph is still there.
 */
function runBackward(root: Tensor, gradient: Handle, retainGraph: boolean): void {
  const pending = new Pending()
  const rootEdge = edgeTo(root)
  pending.add(rootEdge, gradient)
  const nodes = rootEdge && 'node' in rootEdge ? reachable(rootEdge.node) : []
  const stray = nodes.find(({ recorder }) => recorder !== currentRecorder())
  if (stray) {
    pending.release()
    throw new MoeError(
      'UNSUPPORTED',
      'backward',
      `${stray.op} has run ${stray.recorder ? 'inside' : 'outside'} of a captured step and its backward would not; forward and backward belong together`,
    )
  }
  nodes[0]?.hold() // a hook may dispose the root
  endings.push([])
  try {
    for (const node of nodes) {
      const grads = pending.take(node)
      if (!grads) continue
      try {
        for (const [i, hooks] of node.hooks.entries()) {
          const grad = grads[i]
          if (grad === null || hooks.length === 0) continue
          grads[i] = null // applyHooks owns it meanwhile
          grads[i] = applyHooks(hooks, grad, node.outputs[i])
        }
        pending.addAll(node.edges, node.run(grads))
      } finally {
        releaseAll(grads)
      }
    }
    pending.callLeafHooks()
    pending.commit()
    if (!retainGraph) for (const node of nodes) node.free()
  } finally {
    for (const end of endings.pop() ?? []) end()
    pending.release()
    nodes[0]?.release()
  }
}

function backward(tensor: Tensor, gradient?: Tensor | null, options?: BackwardOptions): void {
  const op = 'Tensor.backward'
  const { retainGraph = false } = checkOptions<BackwardOptions>(op, options, ['retainGraph'])
  checkBoolean(op, 'retainGraph', retainGraph)
  const { shape, dtype, device, size, requiresGrad } = checkTensor(op, 'this', tensor)
  if (!requiresGrad) fail('UNSUPPORTED', op, 'this tensor does not depend on any tensor with requiresGrad')
  if (gradient === undefined || gradient === null) {
    if (size !== 1) fail('SHAPE', op, `a tensor of shape ${showShape(shape)} needs a gradient of the same shape`)
    runBackward(tensor, native.full(shape, dtypeCode(dtype), deviceIndex(op, device), 1), retainGraph)
    return
  }
  checkTensor(op, 'gradient', gradient, tensor)
  runBackward(tensor, share(handleOf(gradient)), retainGraph)
}

function registerHook(tensor: Tensor, fn: GradHook): HookHandle {
  const op = 'Tensor.registerHook'
  checkFunction(op, 'fn', fn)
  if (!tensor.requiresGrad) fail('OPTION', op, 'this tensor does not require a gradient')
  const source = sourceOf(tensor)
  const hooks = source ? source.node.hooks[source.output] : leafHooksOf(tensor)
  const entry: GradHook = (grad) => fn(grad)
  hooks.push(entry)
  return {
    remove: () => {
      const at = hooks.indexOf(entry)
      if (at >= 0) hooks.splice(at, 1)
    },
  }
}

declare module './tensor.js' {
  interface Tensor<D extends DType> {
    /**
     * Adds d(this)/d(leaf) to `leaf.grad` for every leaf with `requiresGrad`. `gradient` has the shape of this tensor
     * and may be left out where it has one element. Frees the graph unless `retainGraph`, so a second call is an error.
     *
     * Errors: UNSUPPORTED where nothing was recorded, where the graph has been freed, or where a tensor that it needs has
     * been changed in place; SHAPE, DTYPE, DEVICE of `gradient`. An error, one of a hook too, changes no `grad`
     * and leaves the graph as it was.
     *
     * @example
     * ```ts
     * const x = tensor([1, 2, 3], null, { requiresGrad: true })
     * x.mul(x).backward(tensor([1, 0, 1]))
     * console.log(x.grad?.dataSync()) // → Float32Array(3) [ 2, 0, 6 ]
     * ```
     */
    backward(gradient?: Tensor | null, options?: BackwardOptions): void

    /**
     * Calls `fn` with the gradient of this tensor in every backward; a tensor that it returns takes the gradient's place.
     * The gradient is disposed after the call unless kept or cloned. Errors: OPTION unless this requires a gradient.
     *
     * @example
     * ```ts
     * const x = tensor([1, 2], null, { requiresGrad: true })
     * x.registerHook((grad) => grad.mul(10))
     * x.sum().backward()
     * console.log(x.grad?.dataSync()) // → Float32Array(2) [ 10, 10 ]
     * ```
     */
    registerHook(fn: GradHook): HookHandle
  }
}
asMethods({ backward, registerHook })
