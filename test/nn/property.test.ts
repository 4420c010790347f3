import { expect, test } from 'vitest'
import { scope } from '../../lib/index.js'
import { emulated } from '../support/child.js'
import { type Drawn, drawProblem, kinds } from '../support/draw-problem.js'
import { forwardOptions, layerOf, toTensor } from '../support/from-problem.js'
import type { Float } from '../support/golden-case.js'
import { Draw, long, type Numbers, runSeed, values } from '../support/numbers.js'
import { outputs, type Routing, route } from '../support/reference.js'
import { gradients } from '../support/reference-gradient.js'

const seed = runSeed()
const limits = { f32: { forward: 1e-5, gradient: 1e-4 }, f64: { forward: 1e-12, gradient: 1e-10 } }

const normOf = (list: Numbers): number => Math.sqrt(Array.from(list).reduce((total, v) => total + v * v, 0))

/**
 * ‖a − b‖ / ‖b‖, or over what numbers of size 0.3 would have for a norm where b is smaller: all inputs are of size 1,
 * so there large terms have cancelled, and float32 keeps the rounding errors of the terms.
 */
function distance(a: Numbers, b: Numbers): number {
  if (a.length !== b.length) return Infinity
  const floor = 0.3 * Math.sqrt(Math.max(1, Array.from(b).filter((v) => v !== 0).length))
  const error = normOf(Array.from(b, (v, i) => a[i] - v)) / Math.max(normOf(b), floor)
  return Number.isNaN(error) ? Infinity : error
}

/** All results of one layer for a problem, vs. the loops. Lists what is wrong. */
function differences(drawn: Drawn, expected: Routing, y: Float64Array, dtype: Float, dy: Float64Array): string[] {
  const { problem: p } = drawn
  const dtotal = 0.7
  const wrong: string[] = []
  const near = (name: string, limit: number, actual: Numbers, wanted: Numbers) => {
    const error = distance(actual, wanted)
    if (!(error <= limit)) wrong.push(`${name}: ${error}`)
  }
  const same = (name: string, actual: Numbers, wanted: Numbers) => {
    const at = Array.from(wanted).findIndex((entry, i) => entry !== actual[i])
    if (at >= 0 || actual.length !== wanted.length) wrong.push(`${name}[${at}]: ${actual[at]}, not ${wanted[at]}`)
  }
  using layer = layerOf(drawn, dtype)
  const x = toTensor(p.x, [p.B, p.N, p.D], dtype)
  x.requiresGrad = true
  const result = layer.forward(x, forwardOptions(p, dtype))
  const { routing } = result
  const { forward, gradient } = limits[dtype]
  same('capacity', [routing.capacity], [p.C])
  same('expertIndex', values(routing.expertIndex), expected.expertIndex)
  same('kept', values(routing.kept), expected.kept)
  same('position', values(routing.position), expected.position)
  near('gate', forward, values(routing.gate), expected.gate)
  near('weight', forward, values(routing.weight), expected.weight)
  near('outputs', forward, values(result.outputs), y)
  near('balanceLoss', forward, values(result.balanceLoss), [expected.balance])
  near('routerZLoss', forward, values(result.routerZLoss), [expected.z])
  near('totalAuxLoss', forward, values(result.totalAuxLoss), [expected.total])
  if (wrong.length > 0) return wrong

  const objective = result.outputs.mul(toTensor(dy, [p.B, p.N, p.D], dtype)).sum()
  objective.add(result.totalAuxLoss.mul(dtotal)).backward()
  const wanted = gradients(p, expected, dy, dtotal)
  const { w1, b1, multBias, w2, b2 } = layer.experts as unknown as Record<string, typeof x>
  const leaves = { x, router: layer.gate.toGates.weight, w1, b1, multBias, w2, b2 }
  for (const [name, leaf] of Object.entries(leaves)) {
    near(`gradient of ${name}`, gradient, values(leaf.grad!), wanted[name as keyof typeof wanted])
  }
  return wrong
}

const rounds = process.env.ST_MOE_TEST_DEVICE || emulated ? 40 : long ? 200 : 30 // a GPU may be an emulator, too, which is slow

test.each(kinds)(`a layer equals the plain loop: %s (seed ${seed})`, (kind) => {
  const draw = new Draw(seed + kinds.indexOf(kind))
  const count = kind === 'many experts' && !long ? rounds / 4 : rounds // the largest shapes
  for (let round = 0; round < count; round++) {
    const drawn = drawProblem(draw, kind)
    const { problem: p } = drawn
    const expected = route(p)
    const y = outputs(p, expected)
    const dy = draw.array(p.x.length, () => Math.fround(draw.normal()))
    for (const dtype of ['f32', 'f64'] as const) {
      const wrong = scope(() => differences(drawn, expected, y, dtype, dy))
      const { B, N, D, E, K, H, C } = p
      expect(wrong, `round ${round}, ${dtype}, ${JSON.stringify({ B, N, D, E, K, H, C })}`).toEqual([])
    }
  }
})
