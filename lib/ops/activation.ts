import { checkNumber, checkOneOf, fail } from '../runtime/check.js'
import { type Option, type OptionsOf, oneOf, onlyIf, onlyIfSet } from '../runtime/options.js'

/** An activation of experts, see {@link ActivationOptions}. */
export type Activation = 'geglu' | 'swiglu' | 'reglu' | 'gelu' | 'relu' | 'silu' | 'relu2'

const gated: readonly Activation[] = ['geglu', 'swiglu', 'reglu']
const plain: readonly Activation[] = ['gelu', 'relu', 'silu', 'relu2']

export const activations = [...gated, ...plain]

const geluApproximate: Option<'none' | 'tanh'> = {
  default: 'none',
  check(op, name, value, { activation }) {
    const approximate = checkOneOf(op, name, value, ['none', 'tanh'])
    if (approximate === 'tanh' && activation !== 'geglu' && activation !== 'gelu')
      fail('OPTION', op, `${name} 'tanh' is for the activations 'geglu' and 'gelu', got '${activation}'`)
    return approximate
  },
}

const positive: Option<number | null> = {
  default: null,
  check(op, name, value) {
    if (value === null) return null
    const checked = checkNumber(op, name, value)
    return checked > 0 ? checked : fail('OPTION', op, `${name} must be above 0, got ${checked}`)
  },
}

export const activationOptions = {
  /**
   * Gated: h = f(γ) ⊙ v ⊙ μ with [v ; γ] = x w1ᵀ + b1 and w1 [E, 2H, D] (Shazeer, arXiv 2002.05202); f is gelu in
   * 'geglu', silu in 'swiglu', relu in 'reglu'. Plain: h = f(x w1ᵀ + b1) with w1 [E, H, D] and no multiplicative bias μ:
   * 'gelu', 'relu', 'silu', 'relu2' (relu squared: So et al., arXiv 2109.08668). Default 'geglu'.
   */
  activation: oneOf(activations, { default: 'geglu' }),
  /** 'tanh': gelu by its tanh formula instead of erf; for 'geglu' and 'gelu' only. Default 'none'. */
  geluApproximate,
  ...onlyIf('activation', ['swiglu'], {
    /**
     * The clamped form of gpt-oss: h = γ' sigmoid(α γ') ⊙ (v' + 1) ⊙ μ with γ' = min(γ, limit) and v' = v clamped to
     * ±limit. Default null: the plain form.
     */
    swigluLimit: positive,
  }),
  ...onlyIfSet('swigluLimit', {
    /** α with a `swigluLimit`. Default null: 1.702. */
    swigluAlpha: positive,
  }),
}

/** What experts compute between their two linear maps. */
export interface ActivationOptions extends OptionsOf<typeof activationOptions> {}

/**
 * Whether the first linear map of an expert with this activation has a gate, and so 2H rows.
 *
 * @example
 * ```ts
 * console.log(isGatedActivation('swiglu'), isGatedActivation('relu')) // → true false
 * ```
 */
export const isGated = (activation: Activation): boolean => gated.includes(activation)
