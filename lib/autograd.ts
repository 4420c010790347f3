import { dtypeCode } from './dtype.js'
import { MoeError } from './errors.js'
import { consumed, releaseAll, share } from './handles.js'
import { type Handle, native } from './native.js'
import { currentRecorder, type Recorder } from './recorder.js'
import { isGradEnabled } from './scope.js'
import {
  accumulateGrad,
  checkTensor,
  handleOf,
  isKept,
  leafHooksOf,
  setSource,
  sourceOf,
  type Tensor,
  type TensorMeta,
  wrap,
} from './tensor.js'

/**
 * The tape. It records which op made which tensor and what that op wants to see again; the mathematics is native.
 * Gradients travel as bare handles: whoever receives one owns it.
 */

/**
 * Gradients of the inputs of an op from those of its outputs. `grads[i]` is null where nothing flows into output i,
 * `needs[i]` says whether input i wants one. Reads `grads` and `saved`, owns neither; gives new handles.
 */
export type Backward = (
  grads: readonly (Handle | null)[],
  saved: readonly Handle[],
  needs: readonly boolean[],
) => readonly (Handle | null)[]

/** Sees a gradient in a backward; a tensor of its shape and dtype that it returns takes the gradient's place. */
export type GradHook = (grad: Tensor) => Tensor | undefined | null | void

/** What registering a hook gives. */
export interface HookHandle {
  /** The hook is not called again. A second call does nothing. */
  remove(): void
}

export interface Recording {
  op: string
  inputs: readonly (Tensor | null)[]
  /** Differentiable outputs. */
  outputs: readonly Tensor[]
  /** What the backward reads again: tensors (inputs or outputs) and handles of saved context, which the tape takes over. */
  saved?: readonly (Tensor | Handle)[]
  backward: Backward
}

type Edge = { node: Node; output: number } | { leaf: Tensor } | null

let nextId = 1

/** One recorded op. Lives while an output tensor or a later node holds it; then lets go of what it saved. */
export class Node {
  readonly id = nextId++
  readonly op: string
  readonly edges: readonly Edge[]
  readonly hooks: GradHook[][]
  readonly outputs: readonly TensorMeta[]
  /** The captured step that this op is part of. */
  readonly recorder: Recorder | null = currentRecorder()
  #holders = 0
  #saved: { handle: Handle; version: number }[] | null
  readonly #backward: Backward

  constructor(recording: Recording) {
    this.op = recording.op
    this.#backward = recording.backward
    this.hooks = recording.outputs.map(() => [])
    this.outputs = recording.outputs.map(({ shape, dtype, device }) => ({ shape, dtype, device }))
    this.edges = recording.inputs.map((input) => (input?.requiresGrad ? edgeTo(input) : null))
    this.#saved = (recording.saved ?? []).map((entry) => {
      const handle = typeof entry === 'number' ? entry : handleOf(entry)
      if (typeof entry !== 'number') native.retain(handle)
      return { handle, version: native.version(handle) }
    })
    for (const edge of this.edges) if (edge && 'node' in edge) edge.node.hold()
  }

  hold(): void {
    this.#holders++
  }

  /** The last holder's release frees the chain behind it, without recursion. */
  release(): void {
    const chain: Node[] = [this]
    for (let node = chain.pop(); node; node = chain.pop()) {
      if (--node.#holders > 0) continue
      node.free()
      for (const edge of node.edges) if (edge && 'node' in edge) chain.push(edge.node)
    }
  }

  /** Lets go of the saved tensors. */
  free(): void {
    for (const { handle } of this.#saved ?? []) native.release(handle)
    this.#saved = null
  }

  run(grads: readonly (Handle | null)[]): readonly (Handle | null)[] {
    if (this.#saved === null) {
      throw new MoeError(
        'UNSUPPORTED',
        'backward',
        `the graph of ${this.op} has been freed by an earlier backward; call backward(gradient, { retainGraph: true }) the first time`,
      )
    }
    for (const { handle, version } of this.#saved) {
      if (native.version(handle) !== version) {
        throw new MoeError(
          'UNSUPPORTED',
          'backward',
          `a tensor that ${this.op} needs for its gradient has been changed in place since (by an optimizer step or a load)`,
        )
      }
    }
    return this.#backward(
      grads,
      this.#saved.map(({ handle }) => handle),
      this.edges.map((edge) => edge !== null),
    )
  }
}

function edgeTo(tensor: Tensor): Edge {
  const source = sourceOf(tensor)
  return source ? { node: source.node, output: source.output } : { leaf: tensor }
}

/** Whether an op on these inputs will be recorded, so that its saved context is worth making. */
export const willRecord = (...inputs: readonly (Tensor | null | undefined)[]): boolean =>
  isGradEnabled() && inputs.some((input) => input?.requiresGrad)

/** Records an op. Without need for a gradient the handles in `saved` are released at once. */
export function record(recording: Recording): void {
  if (!willRecord(...recording.inputs)) {
    for (const entry of recording.saved ?? []) if (typeof entry === 'number') native.release(entry)
    return
  }
  const node = new Node(recording)
  for (const [output, tensor] of recording.outputs.entries()) setSource(tensor, node, output)
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
export function runBackward(root: Tensor, gradient: Handle, retainGraph: boolean): void {
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
