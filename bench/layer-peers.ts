import { loadSafetensorsSync, rand, saveSafetensorsSync, scope, tensor } from '../lib/index.js'
import { agreement } from './agreement.js'
import type { Kind, Layer } from './layer.js'
import type { Participant } from './measured.js'
import { Peer } from './peer.js'

export type Implementation = 'st-moe-pytorch' | 'index-pytorch'
/** `bf16`: the weights are held so; `autocast`: float32 weights are rounded in each forward. */
export type PeerCompute = 'f32' | 'bf16' | 'autocast'

export interface PeerCase {
  suite: string
  kind: Kind
  /** Has the same sizes. */
  ours: Layer
  threads: number
  compute?: PeerCompute
  atMost?: number
}

/** The layers of PyTorch, with the weights of one of ours. */
export class LayerPeers extends Peer {
  readonly #layer: Layer
  /** Relative errors of those that were compared with ours. */
  readonly #errors = new Map<string, number>()

  constructor(layer: Layer) {
    super()
    this.#layer = layer
    scope(() => saveSafetensorsSync(this.file('state'), layer.moe.stateDict()))
  }

  /** Makes one. Throws if it differs from `like` by more than `tolerance`. */
  async make(implementation: Implementation, like?: Layer, tolerance = 0, compute: PeerCompute = 'f32'): Promise<void> {
    const { dim, experts } = this.#layer.sizes
    const name = `${implementation} ${compute}`
    await this.ask({ do: 'layer', name, implementation, compute, dim, experts, state: this.file('state') })
    if (like) this.#errors.set(name, await this.#agreement(name, like, tolerance))
  }

  /** Random input for it from now on. Returns what takes part in the turns. */
  async participant(implementation: Implementation, one: PeerCase): Promise<Participant> {
    const { suite, kind, ours, threads, compute = 'f32', atMost } = one
    const { batch, tokens } = ours.sizes
    const name = `${implementation} ${compute}`
    await this.ask({ do: 'input', name, batch, tokens })
    const fractions = await this.ask<{ kept: number; occupancy: number }>({ do: 'kept', name })
    return {
      name: `${implementation}/${suite}/${kind}`,
      params: { N: tokens, threads, compute },
      time: () => this.time(name, kind),
      atMost,
      flops: ours.flops(kind),
      error: this.#errors.get(name),
      ...fractions,
    }
  }

  /**
   * Runs `layer` and the one under `name` on one input with the same random numbers. The largest relative error among
   * outputs, losses and gradients of input and router; throws if it is above `tolerance`.
   */
  async #agreement(name: string, layer: Layer, tolerance: number): Promise<number> {
    const { batch, tokens, dim } = this.#layer.sizes
    const [given, found] = [this.file('given'), this.file('found')]
    using uniforms = rand([2, batch, tokens])
    using x = tensor(layer.x.dataSync(), [batch, tokens, dim], { requiresGrad: true })
    saveSafetensorsSync(given, { x, dy: layer.dy, uniforms })
    await this.ask({ do: 'outputs', name, given, to: found })
    return scope(() => {
      const { outputs, totalAuxLoss } = layer.moe.forward(x, { random: { uniforms } })
      outputs.mul(layer.dy).sum().add(totalAuxLoss).backward()
      const ours = { outputs, totalAuxLoss, dx: x.grad!, dGate: layer.moe.gate.toGates.weight.grad! }
      const error = agreement(name, ours, loadSafetensorsSync(found).tensors, tolerance)
      layer.moe.zeroGrad()
      return error
    })
  }
}
