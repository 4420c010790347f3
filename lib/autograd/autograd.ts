import { MoeError } from '../runtime/errors.js'
import { type Handle, native } from '../runtime/native.js'
import { share } from '../tensor/handles.js'
import { handleOf, setSource, sourceOf, type Tensor, type TensorMeta } from '../tensor/tensor.js'
import { currentRecorder, isGradEnabled } from './context.js'
import type { Recorder } from './recorder.js'

/**
 * The tape records which op produced which tensor, and what its backward needs; the computation is native. Gradients
 * are bare handles, owned by their receiver.
 */

/**
 * Computes the gradients of the inputs of an op from those of its outputs. `grads[i]` is null if output i has none;
 * `needs[i]` tells whether input i needs one. `addend(i)` takes the gradient that input i has so far, if any: what is
 * returned for it must then be the sum. With `own` only if nobody else has it: it may then become the sum in place.
 * Reads all these handles without owning them; returns new ones.
 */
export type Backward = (
  grads: readonly (Handle | null)[],
  saved: readonly Handle[],
  needs: readonly boolean[],
  addend: (input: number, own?: boolean) => Handle | null,
) => readonly (Handle | null)[]

/** What a backward returns for an input whose gradient is a new one, or has been added to an own addend. */
export const newOrSum = (made: Handle | null, sum: Handle | null): Handle | null => (sum === null ? made : share(sum))

/**
 * Instead of gradients: computes the outputs of an op again, recorded this time, and returns where the gradient of each
 * goes on. Reads `saved` without owning it; the nodes it returns are held.
 */
export type Again = (saved: readonly Handle[]) => readonly Edge[]

/** Receives a gradient in a backward. A returned tensor, of the same shape and dtype, replaces it. */
export type GradHook = (grad: Tensor) => Tensor | undefined | null | void

export interface Recording {
  op: string
  inputs: readonly (Tensor | null)[]
  /** Where gradients go on besides the inputs. */
  beside?: readonly Edge[]
  /** Differentiable outputs. */
  outputs: readonly Tensor[]
  /** Recorded even if no input needs a gradient, and run without one: other processes wait for the backward. */
  always?: boolean
  /** What the backward reads: tensors (inputs or outputs), and handles of saved context, which the tape then owns. */
  saved?: readonly (Tensor | Handle)[]
  backward: Backward | { again: Again }
}

export type Edge = { node: Node; output: number } | { leaf: Tensor } | null

let nextId = 1

/** The id of the next node. */
export const nextNode = (): number => nextId

/** A recorded op. Lives while an output tensor or a later node references it, then releases what it saved. */
export class Node {
  readonly id = nextId++
  readonly op: string
  readonly edges: readonly Edge[]
  readonly hooks: GradHook[][]
  readonly outputs: readonly TensorMeta[]
  readonly always: boolean
  /** The captured step that contains this op. */
  readonly recorder: Recorder | null = currentRecorder()
  #references = 0
  #saved: { handle: Handle; version: number }[] | null
  readonly #backward: Recording['backward']

  constructor(recording: Recording) {
    this.op = recording.op
    this.always = recording.always ?? false
    this.#backward = recording.backward
    this.hooks = recording.outputs.map(() => [])
    this.outputs = recording.outputs.map(({ shape, dtype, device }) => ({ shape, dtype, device }))
    const edges = recording.inputs.map((input) => (input?.requiresGrad ? edgeTo(input) : null))
    this.edges = recording.beside ? [...edges, ...recording.beside] : edges
    this.#saved = (recording.saved ?? []).map((entry) => {
      const handle = typeof entry === 'number' ? entry : handleOf(entry)
      if (typeof entry !== 'number') native.retain(handle)
      return { handle, version: native.version(handle) }
    })
    for (const edge of this.edges) if (edge && 'node' in edge) edge.node.hold()
  }

  hold(): void {
    this.#references++
  }

  /** Releasing the last reference frees the chain of earlier nodes, without recursion. */
  release(): void {
    const chain: Node[] = [this]
    for (let node = chain.pop(); node; node = chain.pop()) {
      if (--node.#references > 0) continue
      node.free()
      for (const edge of node.edges) if (edge && 'node' in edge) chain.push(edge.node)
    }
  }

  /** Releases the saved tensors. */
  free(): void {
    for (const { handle } of this.#saved ?? []) native.release(handle)
    this.#saved = null
  }

  /** Gradients of the inputs, or where those of the outputs go on. */
  run(
    grads: readonly (Handle | null)[],
    addend: (edge: Edge, own?: boolean) => Handle | null,
  ): { grads: readonly (Handle | null)[] } | { outputs: readonly Edge[] } {
    const saved = this.#live()
    if ('again' in this.#backward) return { outputs: this.#backward.again(saved) }
    const needs = this.edges.map((edge) => edge !== null)
    return { grads: this.#backward(grads, saved, needs, (input, own) => addend(this.edges[input], own)) }
  }

  #live(): readonly Handle[] {
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
    return this.#saved.map(({ handle }) => handle)
  }
}

export function edgeTo(tensor: Tensor): Edge {
  const source = sourceOf(tensor)
  return source ? { node: source.node, output: source.output } : { leaf: tensor }
}

/** Whether an op on these inputs will be recorded, and thus needs its saved context. */
export const willRecord = (...inputs: readonly (Tensor | null | undefined)[]): boolean =>
  isGradEnabled() && inputs.some((input) => input?.requiresGrad)

/** Releases the handles among what a backward would have needed. */
export function releaseSaved(saved: Iterable<Tensor | Handle | null>): void {
  for (const entry of saved) if (typeof entry === 'number') native.release(entry)
}

/** Records an op on the tape. If no gradient goes on from it, releases the handles in `saved` instead. */
export function record(recording: Recording): void {
  const { inputs, beside, always } = recording
  if (!willRecord(...inputs) && !((beside?.length || always) && isGradEnabled())) {
    releaseSaved(recording.saved ?? [])
    return
  }
  const node = new Node(recording)
  for (const [output, tensor] of recording.outputs.entries()) setSource(tensor, node, output)
}
