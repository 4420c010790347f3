import { spawn, spawnSync } from 'node:child_process'
import { chmodSync, cpSync, existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterEach, describe, expect, test } from 'vitest'
import { some } from '../support/numbers.js'
import { temporary } from '../support/temporary.js'

// scripts/gpu-check in a folder of its own, on a machine that is made of small scripts: a GPU, CMake, nvcc, the tests
// and the benchmark. One of them fails, hangs, or is there when the whole is killed; what is left of the report says
// so.

const script = new URL('../../scripts/gpu-check', import.meta.url)
const stages = ['build', 'ops', 'benchmark', 'capture', 'golden', 'sanitizer']
const row = (name: string) => JSON.stringify({ config: name, pass: 'forward', ms: 1.5, ratio: 1.1 })

/** What the programs of the machine do, in bash. */
const programs = {
  'nvidia-smi': `case $1 in *name*) echo 'GPU of a test "A"';; *driver*) echo 575.1;; *compute_cap*) echo 12.0;; esac`,
  nvcc: `case $1 in --version) echo 'Cuda compilation tools, release 12.2, V12.2.1';; --list-gpu-arch) printf 'compute_80\\ncompute_90\\n';; esac`,
  'g++': 'echo 13.2.0',
  'compute-sanitizer': 'shift 6; exec "$@"',
  cmake: `case "$*" in
    --version) echo 'cmake version 3.22.1' ;;
    *'--target st_moe_cuda') mkdir -p build/Release; touch build/Release/libst_moe_cuda.so ;;
    *'--target cuda_layer_bench') mkdir -p build/gpu/native/cuda; cp bench build/gpu/native/cuda/cuda_layer_bench ;;
    *'--target cuda_ops'*) mkdir -p build/simt; for t in ops packed; do cp optest build/simt/cuda_\${t}_test; done ;;
    *) echo "$@" ;;
  esac`,
  node: `case "$*" in *gpu.ts*) printf '| layer | ms |\\n| --- | --- |\\n| small | 1.5 |\\n' ;; esac`,
}
const inFolder = {
  optest: 'echo "$0: 5 checks, 0 failures with $ST_MOE_CUDA_LIBRARY"',
  bench: `for file; do :; done; echo '${row('small')}' >>"$file"`,
}

const children: ReturnType<typeof spawn>[] = []
afterEach(() => {
  for (const child of children.splice(0))
    if (child.exitCode === null && child.signalCode === null) process.kill(-(child.pid as number), 'SIGKILL')
})

/** A machine in which some programs are others, or missing where they are null. */
function machine(changes: Record<string, string | null> = {}) {
  const folder = temporary('gpu-check-')
  for (const name of ['scripts', 'bin', 'node_modules']) mkdirSync(join(folder, name))
  cpSync(script, join(folder, 'scripts/gpu-check'))
  const write = (path: string, code: string | null) => {
    if (code === null) return
    writeFileSync(path, `#!/bin/bash\n${code}\n`)
    chmodSync(path, 0o755)
  }
  for (const [name, code] of Object.entries(programs))
    write(join(folder, 'bin', name), changes[name] === undefined ? code : changes[name])
  for (const [name, code] of Object.entries(inFolder))
    write(join(folder, name), changes[name] === undefined ? code : changes[name])
  const start = (args: string[] = [], env: Record<string, string> = {}) => {
    const child = spawn('/bin/bash', [join(folder, 'scripts/gpu-check'), ...args], {
      env: { PATH: `${join(folder, 'bin')}:/usr/bin:/bin`, ...env },
      stdio: ['ignore', 'pipe', 'pipe'],
      detached: true,
    })
    children.push(child)
    return child
  }
  const run = (args?: string[], env?: Record<string, string>) =>
    new Promise<{ code: number | null; output: string }>((resolve) => {
      const child = start(args, env)
      let output = ''
      child.stdout?.on('data', (text) => (output += text))
      child.stderr?.on('data', (text) => (output += text))
      child.once('close', (code) => resolve({ code, output }))
    })
  const out = join(folder, 'build/gpu-check')
  const json = () => JSON.parse(readFileSync(join(out, 'gpu-check.json'), 'utf8'))
  const markdown = () => readFileSync(join(out, 'gpu-check.md'), 'utf8')
  /** stage/step → result of the report that lies there. */
  const results = () =>
    Object.fromEntries(
      json().steps.map(({ stage, step, result }: Record<string, string>) => [`${stage}/${step}`, result]),
    ) as Record<string, string>
  const logged = () => spawnSync('tar', ['-tzf', join(out, 'logs.tar.gz')], { encoding: 'utf8' }).stdout
  return { folder, out, start, run, json, markdown, results, logged }
}

const names = (results: Record<string, string>, stage: string) =>
  Object.entries(results)
    .filter(([name]) => name.startsWith(`${stage}/`))
    .map(([, result]) => result)

test('all stages: a table, a JSON file and an archive of logs, for the architecture that nvcc knows', async () => {
  const { run, json, markdown, results, logged } = machine()
  const { code, output } = await run()
  expect({ code, output: code === 0 ? '' : output }).toEqual({ code: 0, output: '' })
  expect(json()).toMatchObject({
    state: 'finished',
    gpu: 'GPU of a test "A"',
    driver: '575.1',
    computeCapability: '12.0',
    cuda: '12.2',
    hostCompiler: '13.2.0',
    cmake: '3.22.1',
  })
  expect(json().benchmarks).toEqual([JSON.parse(row('small')), JSON.parse(row('small'))]) // and with TF32
  expect(new Set(Object.values(results()))).toEqual(new Set(['passed']))
  expect(new Set(json().steps.map(({ stage }: { stage: string }) => stage))).toEqual(new Set(stages))
  expect(markdown()).toContain('| ops | ops | passed |')
  expect(markdown()).toContain('| small | 1.5 |')
  expect(logged()).toContain('logs/configure-the-plugin.log')
})

test('without Node the samples are there, and how to compute the table of them', async () => {
  const { run, json, markdown } = machine({ node: null })
  expect((await run(['build', 'benchmark'])).code).toBe(0)
  expect(json().benchmarks).toHaveLength(2)
  expect(markdown()).toContain('`npm run bench:gpu gpu-check.json` computes the table')
})

test('stages can be chosen; an unknown one is refused', async () => {
  const { run, results, out } = machine()
  await run(['build'])
  expect((await run(['ops'])).code).toBe(0)
  expect(Object.keys(results()).every((name) => name.startsWith('ops/'))).toBe(true)
  const { code, output } = await run(['opps'])
  expect(code).toBe(2)
  expect(output).toContain("there is no stage 'opps', only: build ops")
  expect(existsSync(out)).toBe(true)
})

describe('what fails is in the report, and nothing else stops', () => {
  test('an old CMake', async () => {
    const text = 'CMake Error: CMake 3.18 or higher is required.  You are running version 3.16.3'
    const { run, results, json, markdown } = machine({
      cmake: `[ "$1" = --version ] && echo 'cmake version 3.16.3' && exit; echo '${text}' >&2; exit 1`,
    })
    expect((await run()).code).toBe(1)
    expect(names(results(), 'build')).toEqual(['failed', 'skipped', 'skipped', 'failed'])
    for (const stage of stages.slice(1)) expect(new Set(names(results(), stage)), stage).toEqual(new Set(['skipped']))
    expect(json().steps[0].note).toContain(text)
    expect(markdown()).toContain(text)
    expect(json()).toMatchObject({ state: 'finished', cmake: '3.16.3' })
  })

  test('a header that is missing: only the benchmark is', async () => {
    const text = 'bench.cu:3:10: fatal error: header.h: No such file or directory\t"quoted"'
    const { run, results, json } = machine({
      cmake: `case "$*" in *cuda_layer_bench) printf '%s\\n' '${text}'; exit 2;; esac\n${programs.cmake}`,
    })
    expect((await run()).code).toBe(1)
    expect(results()).toMatchObject({
      'build/build the plugin': 'passed',
      'build/build the benchmark': 'failed',
      'ops/packed again': 'passed',
      'benchmark/benchmark': 'skipped',
      'capture/captured steps': 'passed',
    })
    expect(json().steps.find(({ result }: { result: string }) => result === 'failed').note).toBe(text)
  })

  test('no nvcc, no Node, no sanitizer, no GPU', async () => {
    const { run, results, json } = machine({
      nvcc: null,
      node: null,
      'compute-sanitizer': 'shift 6; exec "$@"',
      'nvidia-smi': null,
      cmake: `case "$*" in *st_moe_cuda|*bench) echo 'needs nvcc'; exit 1;; esac\n${programs.cmake}`,
    })
    expect((await run()).code).toBe(1)
    expect(json()).toMatchObject({ gpu: 'none', driver: 'none' })
    if (json().cuda === '') expect(results()['build/build the plugin']).toBe('failed')
    expect(names(results(), 'sanitizer')[0]).toBe('skipped')
    expect(results()['golden/golden cases and gradients']).toBe('skipped')
  })

  test('tests that fail', async () => {
    const { run, results, json } = machine({ optest: 'case $0 in *packed*) echo "FAIL packed: got 1"; exit 1;; esac' })
    expect((await run()).code).toBe(1)
    expect(results()).toMatchObject({ 'ops/packed': 'failed', 'ops/packed again': 'failed', 'ops/ops': 'passed' })
    expect(json().steps.find(({ result }: { result: string }) => result === 'failed').note).toBe('FAIL packed: got 1')
  })
})

/** A machine in which one stage never ends. */
const hanging = (stage: string) => {
  const forever = 'touch begun; exec sleep 1000'
  const changes: Record<string, Record<string, string>> = {
    build: { cmake: `case "$*" in *st_moe_cuda) ${forever};; esac\n${programs.cmake}` },
    ops: { optest: `[ -z "$ST_MOE_TEST_SMALL" ] || exit 0; case $0 in *cuda_ops*) ${forever};; esac` },
    benchmark: { bench: `${inFolder.bench}\n${forever}` },
    capture: { node: `case "$*" in *capture*) ${forever};; esac` },
    golden: { node: `case "$*" in *answers*) ${forever};; esac` },
    sanitizer: { 'compute-sanitizer': `${forever}` },
  }
  return machine(changes[stage])
}

// The benchmark's report grows while it runs.
describe.each(some(['benchmark', ...stages.filter((stage) => stage !== 'benchmark')], 1))('a hanging %s', (stage) => {
  test('ends at its time limit, and the other stages run', async () => {
    const { run, json, results } = hanging(stage)
    expect((await run([], { GPU_CHECK_LIMIT: '1' })).code).toBe(1)
    expect(json().state).toBe('finished')
    expect(names(results(), stage)).toContain('timed out after 1 s')
    for (const other of stages)
      if (other !== stage && !(stage === 'build'))
        expect(new Set(names(results(), other)), other).toEqual(new Set(['passed']))
    if (stage === 'benchmark') expect(json().benchmarks).toHaveLength(2) // what was measured before
  })

  test.each(['SIGKILL', 'SIGTERM'] as const)('and is killed by %s: the report that is left says so', async (signal) => {
    const { folder, start, json, results, markdown, out } = hanging(stage)
    const child = start([], { GPU_CHECK_LIMIT: '60' }) // an orphan ends, too
    const closed = new Promise((resolve) => child.once('exit', resolve))
    const measured = () => stage !== 'benchmark' || json().benchmarks.length > 0
    const begun = () => existsSync(join(folder, 'begun')) && measured()
    await expect.poll(begun).toBe(true)
    process.kill(child.pid as number, signal)
    await closed
    const last = signal === 'SIGKILL' ? 'unfinished' : 'killed'
    expect(names(results(), stage).at(-1)).toBe(last)
    expect(json().state).toBe(signal === 'SIGKILL' ? 'running' : `killed during ${stage}`)
    expect(markdown()).toContain(`| ${last} |`)
    for (const earlier of stages.slice(0, stages.indexOf(stage)))
      expect(new Set(names(results(), earlier)), earlier).toEqual(new Set(['passed']))
    if (stage === 'benchmark') expect(json().benchmarks).toEqual([JSON.parse(row('small'))])
    if (signal === 'SIGTERM') expect(existsSync(join(out, 'logs.tar.gz'))).toBe(true)
  })
})
