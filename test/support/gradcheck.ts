import { type Module, scope, type Tensor, tensor } from '../../lib/index.js'
import type { Float } from './golden-case.js'
import { Draw, long, relativeError, values } from './numbers.js'

export interface Leaf {
  shape: readonly number[]
  data: Float64Array
}
export type Leaves = Record<string, Leaf>
type Tensors = Record<string, Tensor>

/** A function of some leaves whose gradient is checked. */
export interface Subject {
  label: string
  leaves: Leaves
  /**
   * Calls `use` with the results of the function in one dtype and a way to read the gradients of the leaves. Results
   * of dtype i32 are decisions: they must not change when a leaf is moved by eps.
   */
  run<T>(leaves: Leaves, dtype: Float, use: (results: Tensor[], gradients: () => Tensors) => T): T
  /** Step of the central differences. */
  eps: number
  /** Frees the module, if it is one. */
  dispose(): void
}

const toTensors = (leaves: Leaves, dtype: Float): Tensors =>
  Object.fromEntries(
    Object.entries(leaves).map(([name, { shape, data }]) => [name, tensor(data, shape, { dtype, requiresGrad: true })]),
  )

const gradOf = (leaf: Tensor): Tensor => leaf.grad ?? leaf.detach().mul(0)

/** A subject that is a function of tensors. */
export function functionSubject(
  label: string,
  leaves: Leaves,
  f: (inputs: Tensors, dtype: Float) => Tensor | Tensor[],
  eps = 1e-6,
): Subject {
  return {
    label,
    leaves,
    eps,
    dispose: () => {},
    run: (current, dtype, use) =>
      scope(() => {
        const inputs = toTensors(current, dtype)
        const results = [f(inputs, dtype)].flat()
        return use(results, () =>
          Object.fromEntries(Object.entries(inputs).map(([name, leaf]) => [name, gradOf(leaf)])),
        )
      }),
  }
}

/** A subject whose leaves are inputs and all parameters of a module, the latter under their names in the state dict. */
export function moduleSubject<M extends Module>(
  label: string,
  make: (dtype: Float) => M,
  inputs: Leaves,
  f: (module: M, inputs: Tensors, dtype: Float) => Tensor | Tensor[],
  prepare: (state: Leaves) => void = () => {},
): Subject {
  const modules = new Map<Float, M>()
  const loaded = new Map<M, Leaves>()
  const moduleOf = (dtype: Float): M => {
    const module = modules.get(dtype) ?? make(dtype)
    modules.set(dtype, module)
    return module
  }
  const state: Leaves = scope(() => {
    const trained = Object.keys(moduleOf('f64').gradDict())
    const all = moduleOf('f64').stateDict()
    return Object.fromEntries(
      trained.map((name) => [name, { shape: all[name].shape, data: Float64Array.from(values(all[name])) }]),
    )
  })
  prepare(state)
  return {
    label,
    leaves: { ...inputs, ...state },
    eps: 1e-6,
    dispose: () => modules.forEach((module) => void module.dispose()),
    run: (current, dtype, use) =>
      scope(() => {
        const module = moduleOf(dtype)
        const pick = (from: Leaves) => Object.fromEntries(Object.keys(from).map((name) => [name, current[name]]))
        module.zeroGrad()
        const wanted = pick(state)
        const changed = Object.entries(wanted).filter(([name, leaf]) => loaded.get(module)?.[name] !== leaf)
        module.loadStateDict(toTensors(Object.fromEntries(changed), dtype), { strict: false })
        loaded.set(module, wanted)
        const given = toTensors(pick(inputs), dtype)
        const results = [f(module, given, dtype)].flat()
        return use(results, () => ({
          ...Object.fromEntries(Object.entries(given).map(([name, leaf]) => [name, gradOf(leaf)])),
          ...module.gradDict(),
        }))
      }),
  }
}

const isDecision = (t: Tensor): boolean => t.dtype === 'i32'
const decisions = (results: Tensor[]): string =>
  results
    .filter(isDecision)
    .map((t) => values(t))
    .join(';')

interface Evaluation {
  outputs: Float64Array[]
  gradients: Record<string, Float64Array>
  decisions: string
}

/** Outputs, and the gradients of Σ outputs · cotangents by the tape. */
function evaluate(subject: Subject, dtype: Float, cotangents: (sizes: number[]) => Float64Array[]): Evaluation {
  return subject.run(subject.leaves, dtype, (results, gradients) => {
    const outputs = results.filter((result) => !isDecision(result))
    const weights = cotangents(outputs.map(({ size }) => size))
    const terms = outputs.map((output, i) =>
      output.mul(tensor(weights[i], output.shape, { dtype: output.dtype })).sum(),
    )
    terms.reduce((a, b) => a.add(b)).backward()
    const entries = Object.entries(gradients()).map(([name, grad]) => [name, Float64Array.from(values(grad))])
    return {
      outputs: outputs.map((output) => Float64Array.from(values(output))),
      gradients: Object.fromEntries(entries),
      decisions: decisions(results),
    }
  })
}

/** Where to move a leaf to, as numbers to be added to it. */
interface Direction {
  of: string
  by: Float64Array
}

/** Of a leaf one by one; on a GPU, which may be the emulator and slow, only all at once. */
const entriesPerLeaf = process.env.ST_MOE_TEST_DEVICE ? 0 : long ? 24 : 2

/** All numbers of a leaf at once, each up or down, and some numbers one by one. */
function directions(name: string, size: number, draw: Draw): Direction[] {
  const signs = { of: `${name}, all numbers`, by: draw.array(size, () => (draw.boolean() ? 1 : -1)) }
  const single = Array.from({ length: Math.min(size, entriesPerLeaf) }, (_, i) => {
    const at = size <= entriesPerLeaf ? i : draw.integer(0, size - 1)
    const by = new Float64Array(size)
    by[at] = 1
    return { of: `${name}[${at}]`, by }
  })
  return [signs, ...single]
}

/** Σ outputs · cotangents with one leaf moved. */
function moved(
  subject: Subject,
  name: string,
  { of, by }: Direction,
  step: number,
  cotangents: Float64Array[],
  decided: string,
) {
  const leaf = subject.leaves[name]
  const data = Float64Array.from(leaf.data, (x, i) => x + step * by[i])
  return subject.run({ ...subject.leaves, [name]: { ...leaf, data } }, 'f64', (results) => {
    if (decisions(results) !== decided) throw new Error(`moving ${of} by ${step} changes a decision`)
    const outputs = results.filter((result) => !isDecision(result)).map((output) => values(output))
    return outputs.reduce((total, y, i) => total + dot(cotangents[i], y), 0)
  })
}

const dot = (a: Float64Array, b: ArrayLike<number>): number => a.reduce((sum, x, i) => sum + x * b[i], 0)

const tolerance = { absolute: 1e-6, relative: 1e-5 }

/** Backward against central differences in float64, then float32 against float64. Lists what is wrong. */
export function gradcheck(subject: Subject, seed = 1): string[] {
  const draw = new Draw(seed)
  const wrong: string[] = []
  let cotangents: Float64Array[] = []
  const exact = evaluate(subject, 'f64', (sizes) => {
    cotangents = sizes.map((size) => draw.array(size))
    return cotangents
  })
  for (const [name, { data }] of Object.entries(subject.leaves))
    for (const direction of directions(name, data.length, draw)) {
      const [up, down] = [1, -1].map((sign) =>
        moved(subject, name, direction, sign * subject.eps, cotangents, exact.decisions),
      )
      const numeric = (up - down) / (2 * subject.eps)
      const tape = dot(direction.by, exact.gradients[name])
      if (!(Math.abs(tape - numeric) <= tolerance.absolute + tolerance.relative * Math.abs(numeric)))
        wrong.push(`${direction.of}: backward ${tape}, central difference ${numeric}`)
    }
  const rounded = evaluate(subject, 'f32', () => cotangents)
  if (rounded.decisions !== exact.decisions) wrong.push('float32 decides otherwise than float64')
  for (const [i, y] of exact.outputs.entries()) {
    const error = relativeError(rounded.outputs[i], y)
    if (!(error <= 1e-5)) wrong.push(`output ${i}: float32 is ${error} from float64`)
  }
  // A gradient may be zero, or nearly, because large terms cancel; float32 keeps their rounding errors.
  const floor = 1e-2 * Math.hypot(...cotangents.map((c) => Math.hypot(...c)))
  for (const [name, grad] of Object.entries(exact.gradients)) {
    const difference = Math.hypot(...grad.map((g, i) => g - rounded.gradients[name][i]))
    const error = difference / Math.max(Math.hypot(...grad), floor)
    if (!(error <= 1e-4)) wrong.push(`gradient of ${name}: float32 is ${error} from float64`)
  }
  return wrong
}
