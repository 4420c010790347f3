// What programs of a job share: they compare, count, and print one line of JSON with what was wrong.
import { writeSync } from 'node:fs'

const wrong = []
let tried = 0

export const range = (n, f) => Array.from({ length: n }, (_, i) => f(i))
export const numbers = (x) => Array.from(x.dataSync())

/** Nothing that a router samples. */
export const all = { secondPolicyTrain: 'all', secondPolicyEval: 'all' }

export function near(name, got, wanted, limit) {
  tried++
  let [difference, norm] = [0, 0]
  for (const [i, value] of wanted.entries()) {
    difference += (got[i] - value) ** 2
    norm += value ** 2
  }
  if (got.length !== wanted.length || !(Math.sqrt(difference) <= limit * Math.sqrt(norm)))
    wrong.push(`${name}: ${got.length} of ${wanted.length}, error ${Math.sqrt(difference / norm)}`)
}

export function expect(name, got, wanted) {
  tried++
  if (JSON.stringify(got) !== JSON.stringify(wanted))
    wrong.push(`${name}: ${JSON.stringify(got)}, wanted ${JSON.stringify(wanted)}`)
}

/** Runs the job that the command line names. */
export async function runJob(jobs) {
  await jobs[process.argv[2]]()
  writeSync(1, `${JSON.stringify({ tried, wrong })}\n`)
}
