import { checkFunction, fail, showShape } from '../runtime/check.js'
import { deviceIndex } from '../runtime/device.js'
import { type DType, dtypeCode } from '../runtime/dtype.js'
import { MoeError } from '../runtime/errors.js'
import { type Handle, native } from '../runtime/native.js'
import { binaryKind } from '../runtime/native-ops.js'
import { boolean, type OptionsOf, reader } from '../runtime/options.js'
import { consumed, releaseAll, share } from '../tensor/handles.js'
import { asMethods } from '../tensor/methods.js'
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
} from '../tensor/tensor.js'
import { type Edge, edgeTo, type GradHook, type Node } from './autograd.js'
import { currentObserver, currentRecorder, type HookHandle } from './context.js'

/** The backward pass: gradients along the tape, and hooks on them. */

const backwardOptions = {
  /** Keeps the graph and its saved tensors for another backward. Default false. */
  retainGraph: boolean({ default: false }),
}

/** Options of {@link Tensor.backward}. */
export interface BackwardOptions extends OptionsOf<typeof backwardOptions> {}

const readOptions = reader(backwardOptions)

/** a + b; takes ownership of b, and of a once the sum exists. */
function accumulate(a: Handle, b: Handle): Handle {
  return consumed(b, () => {
    if (native.unique(a)) {
      native.addInPlace(a, b)
      return a
    }
    const sum = native.binary(a, b, binaryKind.add)
    native.release(a)
    return sum
  })
}

/** Adds to `leaf.grad`; takes ownership of the gradient, which has no other owner. Only recording takes memory. */
function accumulateGrad(leaf: Tensor, grad: Handle): void {
  const held = leaf.grad
  currentRecorder()?.noteGrad(leaf, held, false)
  if (held && !held.disposed) {
    try {
      native.addInPlace(handleOf(held), grad)
    } finally {
      native.release(grad)
    }
  } else putGrad(leaf, wrap(grad, leaf))
}

/** The pending gradients of a backward; an exception frees them all. */
class Pending {
  readonly nodes = new Map<Node, (Handle | null)[]>()
  readonly leaves = new Map<Tensor, Handle>()

  /** Takes ownership of all gradients, also those of edges that need none. */
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

  /** Takes what an edge has so far; with `own` only what nobody else has. */
  takeSoFar(edge: Edge, own = false): Handle | null {
    if (edge === null) return null
    const grads = 'node' in edge ? this.nodes.get(edge.node) : undefined
    const held = 'leaf' in edge ? this.leaves.get(edge.leaf) : grads?.[edge.output]
    if (held === undefined || held === null || (own && !native.unique(held))) return null
    if ('leaf' in edge) this.leaves.delete(edge.leaf)
    else grads![edge.output] = null
    return held
  }

  /** Calls the hooks of leaves, which may replace their gradients. */
  callLeafHooks(): void {
    for (const [leaf, grad] of [...this.leaves]) {
      const hooks = leafHooksOf(leaf)
      if (hooks.length === 0) continue
      this.leaves.delete(leaf) // applyHooks owns the gradient meanwhile
      this.leaves.set(leaf, applyHooks(hooks, grad, leaf))
    }
  }

  /** Calls those that exchange gradients with other processes. */
  callExchanges(): void {
    const take = (leaf: Tensor): Tensor | null => {
      const grad = this.leaves.get(leaf)
      this.leaves.delete(leaf)
      return grad === undefined ? null : wrap(grad, leaf)
    }
    const put = (leaf: Tensor, grad: Tensor): void => this.add({ leaf }, share(handleOf(grad)))
    const callbacks = [...this.leaves.keys()].flatMap((leaf) => [...(exchanges.get(leaf) ?? [])])
    for (const fn of new Set(callbacks)) fn({ take, put })
  }

  /** Adds to the `grad` of all leaves or of none: allocations come first. */
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

/** Calls hooks on a gradient; takes ownership of it and returns the resulting one. */
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

/** What a backward is about to add to the `grad` of its leaves. */
export interface LeafGradients {
  /** Takes that of a leaf, of its shape and dtype, which is not added then; null if it has none. */
  take(leaf: Tensor): Tensor | null
  /** Adds this one. */
  put(leaf: Tensor, grad: Tensor): void
}
type LeafExchange = (gradients: LeafGradients) => void

const exchanges = new WeakMap<Tensor, Set<LeafExchange>>()

/**
 * Calls `fn` at the end of each backward that has a gradient for a leaf, after the hooks of leaves and before a `grad` changes:
 * once, if it is that of several leaves.
 */
export function registerExchange(leaf: Tensor, fn: LeafExchange): HookHandle {
  const callbacks = exchanges.get(leaf) ?? new Set()
  exchanges.set(leaf, callbacks.add(fn))
  return { remove: () => void callbacks.delete(fn) }
}

/** Callbacks at the end of each running backward (a hook may start another). */
const endings: (() => void)[][] = []

/** Calls `fn` when the innermost running backward ends, also by an exception. */
export function atBackwardEnd(fn: () => void): void {
  endings.at(-1)?.push(fn)
}

/** The nodes of a running backward. The newest is next: the inputs of an op are older than the op. */
class Queue {
  /** All that are not of a forward that ran again. */
  readonly lasting: Node[] = []
  readonly #known = new Set<Node>()
  readonly #again = new Set<Node>()
  readonly #held: Node[] = []
  #next: Node[] = []

  /** Adds the nodes that lead to these outputs, of the forward that `after` has run again, if there is one. */
  add(outputs: readonly Edge[], after?: Node): void {
    const fresh = new Set<Node>()
    const visit = (edge: Edge): void => {
      if (edge && 'node' in edge && !this.#known.has(edge.node)) fresh.add(edge.node)
    }
    for (const edge of outputs) {
      visit(edge)
      if (after && edge && 'node' in edge) this.#held.push(edge.node)
    }
    for (const node of fresh) node.edges.forEach(visit)
    for (const node of fresh) {
      if (node.recorder !== currentRecorder())
        throw new MoeError(
          'UNSUPPORTED',
          'backward',
          `${node.op} ran ${node.recorder ? 'inside' : 'outside'} a captured step and its backward would not; run both in the same place`,
        )
      this.#known.add(node)
      if (after && node.id > after.id) this.#again.add(node)
      else this.lasting.push(node)
    }
    this.#next = [...this.#next, ...fresh].sort((a, b) => a.id - b.id)
  }

  take(): Node | undefined {
    return this.#next.pop()
  }

  /** Frees at once what a forward saved that ran again for this backward alone. */
  done(node: Node): void {
    if (this.#again.has(node)) node.free()
  }

  release(): void {
    for (const node of this.#held) node.release()
  }
}

/**
 * Runs the backward from `root` and takes ownership of `gradient`. Leaf gradients change only at the end; an error
 * keeps the graph.
 */
function runBackward(root: Tensor, gradient: Handle, retainGraph: boolean): void {
  const pending = new Pending()
  const rootEdge = edgeTo(root)
  const rootNode = rootEdge && 'node' in rootEdge ? rootEdge.node : null
  const queue = new Queue()
  pending.add(rootEdge, gradient)
  rootNode?.hold() // a hook may dispose the root
  endings.push([])
  try {
    queue.add([rootEdge])
    for (let node = queue.take(); node; node = queue.take()) {
      const grads = pending.take(node) ?? (node.always ? node.outputs.map(() => null) : null)
      if (!grads) continue
      const addends: Handle[] = []
      const addend = (edge: Edge, own?: boolean): Handle | null => {
        const held = pending.takeSoFar(edge, own)
        if (held !== null) addends.push(held)
        return held
      }
      try {
        for (const [i, hooks] of node.hooks.entries()) {
          const grad = grads[i]
          if (grad === null || hooks.length === 0) continue
          grads[i] = null // applyHooks owns it meanwhile
          grads[i] = applyHooks(hooks, grad, node.outputs[i])
        }
        const found = node.run(grads, addend)
        if ('grads' in found) {
          pending.addAll(node.edges, found.grads)
        } else {
          queue.add(found.outputs, node)
          pending.addAll(found.outputs, grads.splice(0))
        }
      } finally {
        releaseAll(grads)
        releaseAll(addends)
      }
      queue.done(node)
    }
    pending.callLeafHooks()
    pending.callExchanges()
    pending.commit()
    if (!retainGraph) for (const node of queue.lasting) node.free()
  } finally {
    for (const end of endings.pop() ?? []) end()
    pending.release()
    queue.release()
    rootNode?.release()
  }
}

function backward(tensor: Tensor, gradient?: Tensor | null, options?: BackwardOptions): void {
  const op = 'Tensor.backward'
  const { retainGraph } = readOptions(op, options)
  const { shape, dtype, device, size, requiresGrad } = checkTensor(op, 'this', tensor)
  if (!requiresGrad) fail('UNSUPPORTED', op, 'this tensor does not depend on any tensor with requiresGrad')
  if (gradient === undefined || gradient === null) {
    if (size !== 1) fail('SHAPE', op, `a tensor of shape ${showShape(shape)} needs a gradient of the same shape`)
    const ones = native.full({ shape, dtype: dtypeCode(dtype), device: deviceIndex(op, device), value: 1 })
    runBackward(tensor, ones, retainGraph)
    return
  }
  checkTensor(op, 'gradient', gradient, tensor)
  runBackward(tensor, share(handleOf(gradient)), retainGraph)
}

function registerHook(tensor: Tensor, fn: GradHook): HookHandle {
  const op = 'Tensor.registerHook'
  checkTensor(op, 'this', tensor)
  checkFunction(op, 'fn', fn)
  if (!tensor.requiresGrad) fail('OPTION', op, 'this tensor does not require a gradient')
  const source = sourceOf(tensor)
  const hooks = source ? source.node.hooks[source.output] : leafHooksOf(tensor)
  const entry: GradHook = (grad) => fn(grad)
  hooks.push(entry)
  const handle = {
    remove: () => {
      const at = hooks.indexOf(entry)
      if (at >= 0) hooks.splice(at, 1)
    },
  }
  currentObserver()?.hook(handle, fn)
  return handle
}

declare module '../tensor/tensor.js' {
  interface Tensor<D extends DType> {
    /**
     * Adds d(this)/d(leaf) to `leaf.grad` for every leaf with `requiresGrad`. `gradient` has the shape of this tensor
     * and is optional for a tensor with one element. Frees the graph unless `retainGraph`, so a second call is an
     * error.
     *
     * Errors: UNSUPPORTED if nothing was recorded, the graph has been freed, or a tensor that it needs has been changed
     * in place; SHAPE, DTYPE, DEVICE of `gradient`. An error, also one in a hook, changes no `grad` and keeps the
     * graph.
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
     * Calls `fn` with the gradient of this tensor in every backward; a returned tensor replaces the gradient. The
     * gradient is disposed after the call unless `fn` keeps or clones it. Errors: OPTION unless this tensor requires a
     * gradient.
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
