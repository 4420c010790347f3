import type { Draw } from './numbers.js'
import {
  capacityOf,
  chance,
  choose,
  keys,
  type Problem,
  priorities,
  probabilities,
  route,
  sampled,
} from './reference.js'

/** The special properties of a random problem. */
export const kinds = [
  'plain',
  'empty experts',
  'all to one',
  'ties',
  'short',
  'many experts',
  'every expert',
  'masked',
  'noisy',
  'soft',
  'switch',
  'scores',
  'choices',
] as const
export type Kind = (typeof kinds)[number]

export interface Drawn {
  kind: Kind
  problem: Problem
  capacityFactor: number
  /** The option: one number, or K − 1. */
  threshold: number | number[]
}

/**
 * The nearest relative distance of two different probabilities, and of a uniform from its chance, that float32 keeps.
 */
const margin = 1e-4

function drawSizes(draw: Draw, kind: Kind): { B: number; N: number; E: number; K: number } {
  const few = draw.integer(1, 9)
  const E = kind === 'many experts' ? draw.integer(60, 300) : kind === 'empty experts' ? draw.integer(9, 40) : few
  const N = kind === 'short' ? draw.integer(1, 3) : kind === 'many experts' ? draw.integer(1, 9) : draw.integer(1, 26)
  const most = kind === 'many experts' && draw.boolean(0.9) ? 4 : E
  const K =
    kind === 'every expert' ? E : kind === 'switch' ? 1 : draw.integer(1, Math.min(E, draw.boolean(0.8) ? 3 : most))
  return { B: draw.integer(1, 3), N: kind === 'empty experts' ? draw.integer(1, 5) : N, E, K }
}

function drawThreshold(draw: Draw, K: number): number | number[] {
  const one = () => Math.fround(draw.of([0, 0.2, 0.2, draw.between(0.05, 0.9), 1e6]))
  return K > 1 && draw.boolean(0.4) ? Array.from({ length: K - 1 }, one) : one()
}

type Scores = Pick<Problem, 'scoreFunction' | 'expertBias' | 'routingGroups' | 'topGroups'>

function drawScores(draw: Draw, kind: Kind, E: number, K: number): Scores {
  if (kind !== 'scores') return { scoreFunction: 'softmax', expertBias: null, routingGroups: 1, topGroups: 1 }
  const routingGroups = draw.of([1, 2, 3, E].filter((groups) => E % groups === 0))
  return {
    scoreFunction: draw.of(['softmax', 'sigmoid', 'softmaxAfterTopk', 'sigmoidAfterTopk']),
    expertBias: draw.boolean() ? draw.array(E, () => Math.fround(0.5 * draw.normal())) : null,
    routingGroups,
    topGroups: draw.integer(Math.ceil((K * routingGroups) / E), routingGroups),
  }
}

type Choices = Pick<
  Problem,
  'prioritized' | 'ntlb' | 'importance' | 'secondPlaceLoss' | 'sampling' | 'temperature' | 'secondPlace'
>

function drawChoices(draw: Draw, kind: Kind, { B, N, E, K }: ReturnType<typeof drawSizes>): Choices {
  const some = (chance: number) => kind === 'choices' && draw.boolean(chance)
  const ntlb = some(0.3)
  const temperature = some(0.3) ? draw.of([0, 0.5, 1, 2]) : null
  const secondTemperature = draw.of([null, 0, 0.75])
  return {
    ntlb,
    temperature,
    prioritized: some(0.4),
    importance: some(0.4) ? draw.array(B * N, () => draw.of([0, 0.25, 0.5, 1, 1, 1])) : null,
    secondPlaceLoss: !ntlb && K > 1 && some(0.4),
    sampling: kind === 'choices' ? new Float64Array(B * N * E) : null,
    secondPlace: some(0.3)
      ? { uniforms: new Float64Array(B * N), prob: draw.of([0.3, 1]), temperature: secondTemperature }
      : null,
  }
}

/** Of ntlb, whose other options have their defaults. */
const ntlbOptions = { assigned: true, normalization: 'none', secondPolicy: 'random' } as const

/** A problem whose routing float32 decides as float64 does. All numbers are float32. */
export function drawProblem(draw: Draw, kind: Kind): Drawn {
  const sizes = drawSizes(draw, kind)
  const { B, N, E, K } = sizes
  const choices = drawChoices(draw, kind, sizes)
  const D = draw.integer(1, 10)
  const H = Math.max(1, draw.integer(1, 12))
  const capacityFactor = draw.of([1.25, 2, 0.7, draw.between(0.3, 4)])
  const threshold = choices.ntlb ? 0.2 : drawThreshold(draw, K)
  const scaled = (size: number, scale: number, shift = 0) =>
    draw.array(size, () => Math.fround(shift + scale * draw.normal()))
  const problem: Problem = {
    ...{ B, N, D, E, K, H, C: capacityOf(N, E, capacityFactor) },
    x: scaled(B * N * D, 1),
    router: scaled(E * D, draw.between(0.5, 3) / Math.sqrt(D)),
    w1: scaled(E * 2 * H * D, 1.5 / Math.sqrt(D)),
    b1: scaled(E * 2 * H, 0.3),
    multBias: scaled(E * H, 0.3, 1),
    w2: scaled(E * D * H, 1.5 / Math.sqrt(H)),
    b2: scaled(E * D, 0.3),
    thresholds: [1e-9, ...(typeof threshold === 'number' ? Array(K - 1).fill(threshold) : threshold)].map(Math.fround),
    uniforms: new Float64Array(K * B * N),
    gumbel:
      kind === 'noisy' || (kind !== 'scores' && kind !== 'choices' && draw.boolean(0.1))
        ? new Float64Array(B * N * E)
        : null,
    noiseMult: kind === 'scores' || kind === 'choices' ? 1 : draw.of([1, 0.5, draw.between(0, 2)]),
    mask: kind === 'masked' ? Int32Array.from({ length: B * N }, () => Number(draw.boolean(0.7))) : null,
    training: draw.boolean(0.7),
    eps: 1e-9,
    balanceLossCoef: draw.of([0, 1e-2, draw.between(0, 3)]),
    routerZLossCoef: draw.of([0, 1e-3, draw.between(0, 2)]),
    assigned: draw.boolean(0.2),
    normalization: draw.of(['topk', 'topk', 'none', 'kept']),
    secondPolicy: draw.of(['random', 'random', 'all', 'none', 'threshold']),
    ...drawScores(draw, kind, E, K),
    differentiableTopk: kind === 'soft',
    straightThrough: draw.boolean(),
    ...choices,
    ...(choices.ntlb && ntlbOptions),
  }
  if (kind === 'ties') makeTies(draw, problem)
  if (kind === 'all to one') collapse(draw, problem)
  do for (let t = 0; t < B * N; t++) settleToken(draw, problem, t, kind)
  while (hasCloseRanks(problem))
  return { kind, problem, capacityFactor, threshold }
}

/** Small integers: equal logits are equal in every precision and order of addition. */
function makeTies(draw: Draw, p: Problem): void {
  p.gumbel = null
  p.router = draw.array(p.router.length, () => draw.integer(-1, 1))
  p.x = draw.array(p.x.length, () => draw.integer(-1, 1))
}

function collapse(draw: Draw, p: Problem): void {
  const overloaded = draw.integer(0, p.E - 1)
  p.gumbel = null
  for (let t = 0; t < p.B * p.N; t++) p.x[t * p.D] = 1
  for (let e = 0; e < p.E; e++) p.router[e * p.D] = e === overloaded ? 8 : -6
}

function redrawToken(draw: Draw, p: Problem, t: number, kind: Kind): void {
  const entry = kind === 'ties' ? () => draw.integer(-1, 1) : () => Math.fround(draw.normal())
  const from = kind === 'all to one' ? 1 : 0
  p.x.set(draw.array(Math.max(0, p.D - from), entry), t * p.D + from)
  p.gumbel?.set(drawGumbel(draw, p.E), t * p.E)
  p.sampling?.set(drawGumbel(draw, p.E), t * p.E)
}

const drawGumbel = (draw: Draw, size: number) => draw.array(size, () => Math.fround(draw.next() * (1 - 2 ** -24)))

/** Samples the random numbers of a token, and the token again, until no decision about it is close. */
function settleToken(draw: Draw, p: Problem, t: number, kind: Kind): void {
  redrawToken(draw, p, t, kind)
  if (p.secondPlace) p.secondPlace.uniforms[t] = drawAwayFrom(draw, p.secondPlace.prob)
  for (let tries = 0; isClose(p, t); tries++) {
    if (tries === 500) throw new Error(`no token without a close decision in ${tries} draws (E = ${p.E}, K = ${p.K})`)
    redrawToken(draw, p, t, kind)
  }
  const { gates } = choose(p, t, probabilities(p, t))
  for (let k = 0; k < p.K; k++) {
    p.uniforms[k * p.B * p.N + t] = drawAwayFrom(draw, chance(p, k, gates[k]))
  }
}

function drawAwayFrom(draw: Draw, limit: number): number {
  let u = 0
  do u = Math.fround(draw.next() * (1 - 2 ** -24))
  while (Math.abs(u - limit) < margin)
  return u
}

/** Whether two tokens of a sequence have different priorities, but by little. */
function hasCloseRanks(p: Problem): boolean {
  if (!p.prioritized) return false
  const routing = route(p)
  return Array.from({ length: p.B }, (_, b) => priorities(p, routing, b).sort()).some((sorted) =>
    sorted.some((v, n) => n > 0 && v > sorted[n - 1] && v - sorted[n - 1] < margin * v),
  )
}

/** Whether two numbers that decide the selection differ, but by little. */
function isClose(p: Problem, t: number): boolean {
  const scored = probabilities(p, t)
  if (p.secondPolicy === 'threshold')
    for (const [k, gate] of choose(p, t, scored).gates.entries())
      if (k > 0 && Math.abs(gate - p.thresholds[k]) < margin * Math.max(gate, p.thresholds[k])) return true
  const least = p.scoreFunction === 'softmax' && !p.expertBias ? 0 : 0.1
  const close = (list: Float64Array, count: number): boolean => {
    const sorted = list.sort().reverse()
    for (let k = 0; k < Math.min(count, list.length - 1); k++) {
      const gap = (sorted[k] - sorted[k + 1]) / Math.max(Math.abs(sorted[k]), Math.abs(sorted[k + 1]), least)
      if (gap > 1e-12 && gap < Math.min(margin, 1 / p.E ** 2)) return true
    }
    return false
  }
  const { own, groups } = keys(p, scored)
  if (p.temperature !== null && close(sampled(p, t, scored), 1)) return true
  if (p.secondPlace && isCloseSecondPlace(p, t, close)) return true
  // Groups may be left out, so any two keys may decide.
  return close(own, p.routingGroups > 1 ? p.E : p.K) || close(Float64Array.from(groups), p.topGroups)
}

/** Whether another expert could be lowered, or be sampled instead of the lowered one. */
function isCloseSecondPlace(p: Problem, t: number, close: (list: Float64Array, count: number) => boolean): boolean {
  const { logits } = probabilities({ ...p, secondPlace: null }, t)
  const best = logits.indexOf(Math.max(...logits))
  const rest = logits.map((l, e) => (e === best ? -1e9 : l))
  const temperature = p.secondPlace?.temperature ?? 0
  return close(logits.slice(), 1) || close(sampled({ ...p, temperature }, t, { logits: rest, probs: rest }), 1)
}
