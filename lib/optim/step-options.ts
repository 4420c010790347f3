import { fail } from '../runtime/check.js'
import type { Device } from '../runtime/device.js'
import { show } from '../runtime/errors.js'
import { type OptionsOf, oneOf, reader, unchecked } from '../runtime/options.js'
import { checkTensor, type Tensor } from '../tensor/tensor.js'

const stepOptions = {
  /**
   * What happens if a gradient is not finite. 'skip': nothing changes, and `step` returns false; 'throw': a NON_FINITE
   * error; both wait for a GPU. In a captured step the device decides in each replay whether to 'skip', and `step` returns
   * true. Default 'propagate': the step is taken.
   */
  onNonFinite: oneOf(['propagate', 'throw', 'skip'], { default: 'propagate' }),
  /**
   * Decides instead of the optimizer's own gradients: the norm that {@link clipGradNorm} returns, a number or a tensor f64 [].
   * Several optimizers with one norm skip together. Not with 'propagate'.
   */
  norm: unchecked<number | Tensor>(),
}

/** Options of {@link Optimizer.step}. */
export interface StepOptions extends OptionsOf<typeof stepOptions> {}

const read = reader(stepOptions)

/** The options of a step on a device, or of one without gradients. */
export function readStepOptions(op: string, options: StepOptions | undefined, device: Device | undefined) {
  const { onNonFinite, norm } = read(op, options)
  if (norm !== undefined && onNonFinite === 'propagate')
    fail('OPTION', op, "norm is for onNonFinite 'skip' and 'throw', got 'propagate'")
  if (device && norm !== undefined && typeof norm !== 'number')
    checkTensor(op, 'norm', norm, { shape: [], dtype: 'f64', device })
  return { onNonFinite, norm }
}

/** The norm by which the replays of a captured step decide. */
export function normInStep(op: string, norm: number | Tensor): Tensor {
  if (typeof norm === 'number')
    fail('OPTION', op, `norm must be a tensor in a captured step (clipGradNorm with wait: false), got ${show(norm)}`)
  return norm
}
