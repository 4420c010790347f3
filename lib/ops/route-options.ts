import { boolean, number, oneOf } from '../options.js'

/** Numbers and switches of routing that the op and the layers around it share. */
export const routerOptions = {
  /** Factor of the load-balancing loss in `totalAuxLoss`. Default 1e-2. */
  balanceLossCoef: number({ default: 1e-2 }),
  /** Factor of the router z-loss in `totalAuxLoss`. Default 1e-3. */
  routerZLossCoef: number({ default: 1e-3 }),
  /**
   * Gates by 20 iterations of coordinate descent, so that every expert's score gets a gradient (CoLT5, arXiv
   * 2303.09752). Default false.
   */
  differentiableTopk: boolean({ default: false }),
  /** Adds Gumbel noise to the logits, in evaluation too: noiseMult · −log(−log u), u uniform in [0, 1). Default false. */
  noiseGates: boolean({ default: false }),
  /** Factor of the noise. Default 1. */
  noiseMult: number({ default: 1 }),
  /**
   * What the load-balancing loss counts. 'kept': top-1 choices that found a slot (st-moe-pytorch); 'assigned': all (Mesh
   * TensorFlow, ST-MoE paper). Default 'kept'.
   */
  balanceDensity: oneOf(['kept', 'assigned'], { default: 'kept' }),
  /** Floor of the sum of the chosen probabilities, and of a threshold. Default 1e-9. */
  eps: number({ min: 0, default: 1e-9 }),
}
