import { readFileSync } from 'node:fs'
import { main } from './main.js'
import { evaluated, type Line } from './measured.js'
import { resultTable } from './table.js'

/** The table of what cuda_layer_bench has written: the samples in gpu-check.json or in files of JSON lines. */

function linesOf(path: string): Line[] {
  const text = readFileSync(path, 'utf8')
  if (path.endsWith('.json')) return JSON.parse(text).benchmarks
  return text.split('\n').flatMap((line) => (line.startsWith('{') && line.endsWith('}') ? [JSON.parse(line)] : []))
}

export function gpuTable(lines: readonly Line[]): string {
  const groups = lines.map(({ cases = [] }) => evaluated(cases))
  // Without the hardware limits that are measured beside every case: the ratios to them are there.
  const compared = groups.flatMap((group) => {
    const results = group.filter(({ ratios }) => ratios.length > 0)
    return results.length > 0 ? results : group
  })
  const notes = lines.flatMap(({ name, params, failed, leftOut }) => [
    ...(failed === undefined ? [] : [`${name} failed: ${failed}`]),
    ...(leftOut === undefined ? [] : [`${name} ${JSON.stringify(params)} is left out: ${leftOut}`]),
  ])
  return [resultTable(compared, []), ...notes].join('\n\n')
}

await main(import.meta.url, 'bench:gpu', (files) => {
  for (const file of files) console.log(gpuTable(linesOf(file)))
})
