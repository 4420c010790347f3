import {
  Adafactor,
  ConstantSchedule,
  CosineSchedule,
  InverseSqrtSchedule,
  LinearSchedule,
  Parameter,
  PlateauSchedule,
  SGD,
} from '../../lib/index.js'
import {
  type Case,
  compare,
  type Finding,
  type Float,
  findingsOf,
  input,
  type Limits,
  statesOf,
} from './golden-case.js'
import { listOf, values } from './numbers.js'

const limits: Limits = { f32: { forward: 1e-12, gradient: 1e-6 }, f64: { forward: 1e-12, gradient: 1e-12 } }

/** Compares the rates of a schedule, which are double precision, or the parameters that Adafactor has stepped. */
export function checkOptimizerCase(path: string, dtype: Float): Finding[] {
  return findingsOf(path, dtype, limits, (golden) => {
    if (golden.metadata.kind === 'schedule') checkSchedule(golden)
    else checkAdafactor(golden)
  })
}

const schedules = { ConstantSchedule, CosineSchedule, InverseSqrtSchedule, LinearSchedule, PlateauSchedule }

function checkSchedule(golden: Case): void {
  const { tensors, metadata } = golden
  const Schedule = schedules[metadata.name as 'LinearSchedule']
  const optimizer = new SGD(listOf(tensors.base).map((lr) => ({ params: [], lr })))
  const schedule = new Schedule(optimizer, JSON.parse(metadata.options))
  const rates = listOf(tensors.metrics).flatMap((metric) => {
    const now = optimizer.groups.map(({ lr }) => lr)
    if (schedule instanceof PlateauSchedule) schedule.step(metric)
    else schedule.step()
    return now
  })
  compare(golden, 'forward', 'rates', rates)
  golden.findings.push({ name: 'different rates', error: Math.max(0, 5 - new Set(rates).size), limit: 0 })
}

function checkAdafactor(golden: Case): void {
  const starts = Object.keys(statesOf(golden, 'p.'))
  const parameters = starts.map((i) => new Parameter(input(golden, `p.${i}`).clone()))
  const optimizer = new Adafactor(parameters, JSON.parse(golden.metadata.options))
  const steps = Object.keys(statesOf(golden, 'g.')).length / starts.length
  for (let step = 0; step < steps; step++) {
    for (const i of starts) parameters[starts.indexOf(i)].grad = input(golden, `g.${step}.${i}`).clone()
    optimizer.step()
  }
  for (const [at, i] of starts.entries()) compare(golden, 'gradient', i, values(parameters[at]))
}
