import { readFileSync } from 'node:fs'
import { main } from './main.js'
import { evaluated, type Line } from './measured.js'
import type { Result } from './report.js'
import { digits, markdownTable, withSpread, workPerSecond } from './table.js'

/** The table of what cuda_layer_bench has written: the samples in gpu-check.json or in files of JSON lines. */

function linesOf(path: string): Line[] {
  const text = readFileSync(path, 'utf8')
  if (path.endsWith('.json')) return JSON.parse(text).benchmarks
  return text.split('\n').flatMap((line) => (line.startsWith('{') && line.endsWith('}') ? [JSON.parse(line)] : []))
}

const named = (name = '', params = {}): string[] => [
  name,
  Object.entries(params)
    .map(([key, value]) => `${key} ${value}`)
    .join(', '),
]

/** Without the hardware limits that are measured beside every case: the ratios to them are there. */
const shown = (group: readonly Result[]): Result[] => {
  const compared = group.filter(({ ratios }) => ratios.length > 0)
  return compared.length > 0 ? compared : [...group]
}

export function gpuTable(lines: readonly Line[]): string {
  const rows = lines.flatMap(({ cases = [], name, params, failed, leftOut }) => [
    ...(failed === undefined ? [] : [[...named(name, params), `failed: ${failed}`, '', '', '', '']]),
    ...(leftOut === undefined ? [] : [[...named(name, params), `left out: ${leftOut}`, '', '', '', '']]),
    ...shown(evaluated(cases)).map((result) => [
      ...named(result.name, result.params),
      withSpread(result.wallMs),
      result.deviceMs ? withSpread(result.deviceMs) : '',
      workPerSecond(result).join(', '),
      result.ratios.map(({ name, measure, wall }) => `${digits(wall.median)} ${measure} of ${name}`).join('; '),
      `${result.kernels} + ${result.gemms}`,
    ]),
  ])
  return markdownTable(['case', 'with', 'ms', 'ms of the GPU', 'rate', 'ratios', 'kernels + GEMMs'], rows)
}

await main(import.meta.url, 'bench:gpu', (files) => {
  for (const file of files) console.log(gpuTable(linesOf(file)))
})
