import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { loadSafetensorsSync, rand, saveSafetensorsSync, scope, type Tensor, tensor } from '../lib/index.js'
import type { Kind, Layer } from './layer.js'
import { Peer } from './peer.js'
import type { Participant } from './turns.js'

export type Implementation = 'st-moe-pytorch' | 'index-pytorch'
/** `bf16`: the weights are held so; `autocast`: float32 weights are rounded in each forward. */
export type PeerCompute = 'f32' | 'bf16' | 'autocast'

/** The layers of PyTorch, with the weights of one of ours. */
export class LayerPeers {
  readonly peer = new Peer()
  readonly #folder = mkdtempSync(join(tmpdir(), 'st-moe-bench-'))
  readonly #layer: Layer

  constructor(layer: Layer) {
    this.#layer = layer
    scope(() => saveSafetensorsSync(this.#file('state'), layer.moe.stateDict()))
  }

  /** Makes one under `name`. */
  async make(name: string, implementation: Implementation, compute: PeerCompute = 'f32'): Promise<void> {
    const { dim, experts } = this.#layer.sizes
    await this.peer.ask({ do: 'layer', name, implementation, compute, dim, experts, state: this.#file('state') })
  }

  /** Random input for it from now on. Gives what takes part in the turns. */
  async participant(
    name: string,
    kind: Kind,
    { suite, implementation, compute = 'f32', ours, threads, atMost }: PeerCase,
  ): Promise<Participant> {
    const { batch, tokens } = ours.sizes
    await this.peer.ask({ do: 'input', name, batch, tokens })
    const shares = await this.peer.ask<{ kept: number; occupancy: number }>({ do: 'kept', name })
    return {
      name: `${implementation}/${suite}/${kind}`,
      params: { N: tokens, threads, compute },
      time: () => this.peer.time(name, kind),
      atMost,
      flops: ours.flops(kind),
      ...shares,
    }
  }

  /**
   * Runs `layer` and the one under `name` on one input with the same random numbers. The largest relative error among
   * outputs, losses and gradients of input and router; throws where it is above `tolerance`.
   */
  async agreement(name: string, layer: Layer, tolerance: number): Promise<number> {
    const { batch, tokens, dim } = this.#layer.sizes
    const [given, found] = [this.#file('given'), this.#file('found')]
    using uniforms = rand([2, batch, tokens])
    using x = tensor(layer.x.dataSync(), [batch, tokens, dim], { requiresGrad: true })
    saveSafetensorsSync(given, { x, dy: layer.dy, uniforms })
    await this.peer.ask({ do: 'outputs', name, given, to: found })
    return scope(() => {
      const { outputs, totalAuxLoss } = layer.moe.forward(x, { random: { uniforms } })
      outputs.mul(layer.dy).sum().add(totalAuxLoss).backward()
      const ours: Record<string, Tensor> = {
        outputs,
        totalAuxLoss,
        dx: x.grad!,
        dGate: layer.moe.gate.toGates.weight.grad!,
      }
      const theirs = loadSafetensorsSync(found).tensors
      let worst = 0
      for (const [what, tensor] of Object.entries(ours)) {
        const error = relativeError(tensor.dataSync(), theirs[what].dataSync())
        if (!(error <= tolerance)) throw new Error(`${what} of ${name} differs from ours by ${error.toExponential(1)}`)
        worst = Math.max(worst, error)
      }
      layer.moe.zeroGrad()
      return worst
    })
  }

  end(): void {
    this.peer.end()
    rmSync(this.#folder, { recursive: true, force: true })
  }

  #file(name: string): string {
    return join(this.#folder, `${name}.safetensors`)
  }
}

export interface PeerCase {
  suite: string
  implementation: Implementation
  compute?: PeerCompute
  /** Has the same sizes. */
  ours: Layer
  threads: number
  atMost?: number
}

/** ‖a − b‖ / ‖b‖ */
export function relativeError(a: ArrayLike<number>, b: ArrayLike<number>): number {
  if (a.length !== b.length) return Number.NaN
  let [difference, norm] = [0, 0]
  for (let i = 0; i < a.length; i++) {
    difference += (a[i] - b[i]) ** 2
    norm += b[i] ** 2
  }
  return Math.sqrt(difference / norm)
}
