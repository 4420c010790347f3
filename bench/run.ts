import { execFileSync } from 'node:child_process'
import { mkdirSync, writeFileSync } from 'node:fs'
import { cpus, loadavg, release, totalmem, type } from 'node:os'
import { dirname } from 'node:path'
import { parseArgs } from 'node:util'
import { devices, getNumThreads } from '../lib/index.js'
import { captureSuite } from './capture-suite.js'
import { generateSuite } from './generate-suite.js'
import { bf16Suite, growthSuite, layerSuite, routerSuite } from './layer-suites.js'
import { main } from './main.js'
import { memorySuite } from './memory-suite.js'
import { modelSuite } from './model-suite.js'
import { nativeSuite, opSuite } from './native-suite.js'
import { processesSuite } from './processes-suite.js'
import type { Report, Suite } from './report.js'
import { serverSuite } from './server-suite.js'
import { softSuite } from './soft-suite.js'
import { mebibytes, resultTable } from './table.js'
import { targetTable } from './targets.js'

const suites: Record<string, Suite> = {
  native: nativeSuite,
  ops: opSuite,
  layer: layerSuite,
  growth: growthSuite,
  bf16: bf16Suite,
  routers: routerSuite,
  soft: softSuite,
  model: modelSuite,
  capture: captureSuite,
  server: serverSuite,
  generate: generateSuite,
  memory: memorySuite,
  processes: processesSuite,
}

const help = `npm run bench -- [options]

  --suite NAME[,NAME]   ${Object.keys(suites).join(', ')} (all)
  --threads N[,N]       numbers of threads (1 and what the machine has)
  --repetitions N       turns of what is not slow (7)
  --json FILE           the report (build/bench.json)
  --no-peers            without PyTorch
  --quick               small shapes and two turns: tests the program, says nothing about speed

bench/README.md says what is measured and how to read it.
`

function parse(args: string[]) {
  const text = { type: 'string' } as const
  const flag = { type: 'boolean', default: false } as const
  const { values } = parseArgs({
    args,
    options: {
      suite: { ...text, default: Object.keys(suites).join() },
      threads: { ...text, default: [...new Set([1, getNumThreads()])].join() },
      repetitions: { ...text, default: '7' },
      json: { ...text, default: 'build/bench.json' },
      'no-peers': flag,
      quick: flag,
      help: flag,
    },
  })
  const whole = (name: string, value: string): number => {
    if (!/^[1-9]\d{0,3}$/.test(value)) throw new Error(`--${name} must be whole numbers of at least 1, got '${value}'`)
    return Number(value)
  }
  const names = values.suite.split(',')
  const unknown = names.find((name) => !Object.hasOwn(suites, name))
  if (unknown !== undefined) throw new Error(`--suite must be ${Object.keys(suites).join(', ')}, got '${unknown}'`)
  return {
    ...values,
    names,
    bench: {
      threads: values.threads.split(',').map((value) => whole('threads', value)),
      repetitions: values.quick ? 2 : whole('repetitions', values.repetitions),
      quick: values.quick,
      peers: !values['no-peers'],
    },
  }
}

function machine(): Report['machine'] {
  const list = cpus()
  return {
    cpu: list[0].model.trim(),
    cores: list.length,
    memoryGiB: Math.round(totalmem() / 2 ** 30),
    system: `${type()} ${release()}`,
  }
}

function commit(): Record<string, string> {
  try {
    return { commit: execFileSync('git', ['rev-parse', '--short', 'HEAD'], { encoding: 'utf8', stdio: 'pipe' }).trim() }
  } catch {
    return {} // not in a clone
  }
}

await main(import.meta.url, 'bench', async (args) => {
  const { help: asked, names, json, bench } = parse(args)
  if (asked) return void process.stdout.write(help)
  const report: Report = {
    date: new Date().toISOString(),
    command: ['npm run bench --', ...args].join(' ').replace(/ --$/, ''),
    quick: bench.quick,
    machine: machine(),
    load: loadavg()[0],
    versions: { node: process.versions.node, variant: devices()[0].variant!, ...commit() },
    results: [],
    memory: [],
  }
  if (report.load > 0.5)
    console.error(
      `Other processes are busy (load ${report.load.toFixed(1)}): the figures, PyTorch's most of all, will suffer.`,
    )
  mkdirSync(dirname(json), { recursive: true })
  for (const name of names) {
    const start = performance.now()
    const { results, memory = [], versions = {} } = await suites[name](bench)
    report.results.push(...results)
    report.memory.push(...memory)
    Object.assign(report.versions, versions)
    // After each suite: a run that is stopped leaves what it had.
    writeFileSync(json, `${JSON.stringify(report)}\n`)
    console.error(`${name}: ${((performance.now() - start) / 1e3).toFixed(0)} s`)
  }
  // st-moe-bench's cases have been printed.
  const measured = report.results.filter(({ name }) => name.split('/').length === 3)
  if (measured.length > 0) console.log(resultTable(measured, report.results))
  for (const { implementation, resident } of report.memory)
    console.log(`${implementation}/memory: ${mebibytes(resident)}`)
  console.log(`\n${targetTable(report)}\nThe report is in ${json}.`)
})
