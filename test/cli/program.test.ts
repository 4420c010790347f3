import { spawnSync } from 'node:child_process'
import { cpSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, expect, test } from 'vitest'
import { root } from '../support/blocks.js'
import { at, bin, cli, expectRefused, folder, jsonLines, succeeded, tiny } from '../support/cli.js'
import { emulator, emulatorBuilt } from '../support/emulator.js'
import { runProgram } from '../support/program.js'
import { sentences } from '../support/sentences.js'
import { temporary } from '../support/temporary.js'

/** Help, wrong command lines, doctor and bench of the program st-moe; cli-train.test.ts and cli-generate.test.ts have the rest. */

describe('help', () => {
  test('names the commands', async () => {
    const out = await succeeded(['--help'])
    for (const name of ['doctor', 'train', 'show', 'generate', 'bench', 'launch', 'build'])
      expect(out).toMatch(new RegExp(`st-moe ${name} +[A-Z]`))
    expect(await succeeded([])).toBe(out)
    expect(await succeeded(['help'])).toBe(out)
  })

  test.each(['doctor', 'train', 'show', 'generate', 'bench', 'launch'])(
    'of %s has its flags and examples',
    async (name) => {
      const out = await succeeded([name, '--help'])
      expect(out).toMatch(/^ {2}--json {2,}\w/m)
      expect(out).toMatch(new RegExp(`Examples:\n {2}# .*\n {2}st-moe ${name}`))
      expect(await succeeded(['help', name])).toBe(out)
    },
  )

  test('--version is that of the package', async () => {
    const { version } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'))
    expect(await succeeded(['--version'])).toBe(`${version}\n`)
  })
})

describe('a wrong command line', () => {
  test.each<[string[], string]>([
    [['doctr'], 'st-moe: unknown command doctr; did you mean doctor?'],
    [['--verson'], 'unknown flag --verson; did you mean --version?'],
    [['train', 'book.txt', '--step', '3'], 'st-moe train: unknown flag --step; did you mean --steps?'],
    [['train', 'book.txt', '--expert=3'], 'unknown flag --expert; did you mean --experts?'],
    [['generate', 'run', '-seed', '3'], 'unknown flag -seed; did you mean --seed?'],
    [['bench', '--qqqqqqqqqqqqqqqqq'], 'unknown flag --qqqqqqqqqqqqqqqqq\n'],
    [['doctor', '--json=yes'], "--json is a switch and takes no value, got 'yes'"],
    [['doctor', 'book.txt'], "unexpected argument 'book.txt'"],
    [['train'], 'missing FILE'],
    [['train', '--resume'], '--resume needs --out FOLDER'],
    [
      ['train', '--resume', '--overwrite', '--out', 'run'],
      '--resume continues a run, --overwrite replaces it: give one',
    ],
    [['train', 'book.txt', '--text', 'book.txt'], 'give FILE or --text, not both'],
    [['train', 'book.txt', '--steps'], '--steps needs a value: --steps N'],
    [['train', 'book.txt', '--steps', '--json'], '--steps needs a value: --steps N'],
    [['train', 'book.txt', '--steps='], "--steps must be a whole number of at least 1, got ''"],
    [['train', 'book.txt', '--steps', '0'], "--steps must be a whole number of at least 1, got '0'"],
    [['train', 'book.txt', '--steps', '-5'], "--steps must be a whole number of at least 1, got '-5'"],
    [['train', 'book.txt', '--steps', '1.5'], "--steps must be a whole number of at least 1, got '1.5'"],
    [['train', 'book.txt', '--seed', '9007199254740993'], 'from 0 to 9007199254740991'],
    [['train', 'book.txt', '--lr', 'NaN'], "--lr must be a number of at least 0, got 'NaN'"],
    [['train', 'book.txt', '--lr', '0x10'], "--lr must be a number of at least 0, got '0x10'"],
    [['train', 'book.txt', '--threads', '1000'], "--threads must be a whole number from 1 to 256, got '1000'"],
    [['train', 'book.txt', '--dim', '30'], '--dim must be a multiple of --heads, got 30 and 4'],
    [['train', 'book.txt', '--experts', '1'], '--top-n must be at most --experts, got 2 and 1'],
    [['train', 'book.txt', '--router', 'top'], '--router must be one of topk, switch, '],
    [['train', 'book.txt', '--router', 'expertChoice'], '--router expertChoice is not for a language model'],
    [
      ['train', 'book.txt', '--router', 'switch', '--top-n', '3'],
      '--top-n is for --router "topk", got --router "switch"',
    ],
    [['train', 'book.txt', '--router', 'switch', '--second-policy', 'all'], '--second-policy is for --router "topk"'],
    [['train', 'book.txt', '--activation', 'tanh'], "relu2, got 'tanh'"],
    [
      ['train', 'book.txt', '--shared-experts', '-1'],
      "--shared-experts must be a whole number from 0 to 4096, got '-1'",
    ],
    [['train', 'book.txt', '--dropless=no'], "--dropless is a switch and takes no value, got 'no'"],
    [['train', 'book.txt', '--device', 'tpu'], "--device must be cpu, cuda or cuda:N, got 'tpu'"],
    [['train', 'book.txt', '--compute-dtype', 'f8'], "--compute-dtype must be one of f32, bf16, bf16x3, f16, got 'f8'"],
    [['train', 'book.txt', '--out', ''], '--out must not be empty'],
    [['train', '--resume', '--out', 'run', '--dim', '32'], '--dim cannot change in a resumed run: it is 16, got 32'],
    [
      ['train', '--resume', '--out', 'run', '--router', 'switch'],
      '--router cannot change in a resumed run: it is topk, got switch',
    ],
    [['generate'], 'missing FOLDER'],
    [
      ['generate', 'run', '--prompt', '漢 The 字'],
      '--prompt contains characters outside the model\'s vocabulary: "漢" "字"',
    ],
    [['generate', 'run', '--temperature', '-1'], "--temperature must be a number of at least 0, got '-1'"],
    [['bench', '--experts', '2', '--top-n', '3'], '--top-n must be at most --experts, got 3 and 2'],
  ])('%j', async (args, message) => {
    const ended = await cli(args)
    expectRefused(ended, 2, message)
    expect(ended.err).toMatch(/run st-moe( \w+)? --help for usage\n$/)
  })
})

test('a device that cannot be used is an error that names the flag', async () => {
  for (const args of [['train', 'book.txt'], ['generate', 'run'], ['bench']]) {
    const refused = await cli([...args, '--device', 'cuda'])
    expect([refused.code, refused.out]).toEqual([1, ''])
    expect(refused.err).toContain(`st-moe ${args[0]}: [--device] device 'cuda:0' cannot be used: plugin: /nowhere.so`)
  }
})

describe('doctor', () => {
  test('--json reports everything', async () => {
    const [report] = jsonLines(await succeeded(['doctor', '--json']))
    expect(report).toMatchObject({
      healthy: true,
      runtime: { name: 'Node.js', version: process.versions.node, modules: process.versions.modules, supported: true },
      platform: `${process.platform}-${process.arch}`,
      plugin: '/nowhere.so',
    })
    expect(existsSync(report.addon)).toBe(true)
    expect(report.threads).toBeGreaterThan(0)
    const [cpu, cuda] = report.devices
    expect(cpu).toMatchObject({ device: 'cpu', available: true, selfTest: { passed: true } })
    expect(cpu.selfTest.outputError).toBeGreaterThan(0)
    expect(cuda).toMatchObject({ device: 'cuda', available: false, stage: 'plugin' })
    expect(cuda.reason).toBe('/nowhere.so: there is no such file. ST_MOE_CUDA_LIBRARY names this file')
  })

  test('says the same in words', async () => {
    const out = await succeeded(['doctor'])
    expect(out).toContain(`Node.js ${process.versions.node}`)
    expect(out).toMatch(/^addon +\/.*\.node$/m)
    expect(out).toMatch(/^ +self-test passed: outputs within \d/m)
    expect(out).toMatch(/^cuda +cannot be used \(stage plugin\): \/nowhere\.so/m)
  })

  test('says what ST_MOE_ISA selects, how bf16 is computed with it, and which values it takes', async () => {
    const withIsa = (isa: string, ...args: string[]) =>
      runProgram([bin, 'doctor', ...args], { env: { ...process.env, ST_MOE_ISA: isa } })
    const wrong = await withIsa('avx1024')
    expect(wrong.code).toBe(1)
    const [, names] = /^\[st-moe\] ST_MOE_ISA must be one of (.*) on this machine, got "avx1024"$/m.exec(wrong.out)!
    expect(names.split(', ')).toContain('baseline')
    for (const name of names.split(', ')) {
      const [{ bf16DotSpeed, devices }] = jsonLines((await withIsa(name, '--json')).out)
      expect(devices[0].variant).toBe(name)
      expect(bf16DotSpeed > 0).toBe(/(avx512|neon)bf16/.test(names))
      const plain = !/bf16|amx/.test(name)
      const line = /^ +bf16: rounded operands in float32; dot products would do \d\.\d\d times/m
      expect(line.test((await withIsa(name)).out), name).toBe(plain && bf16DotSpeed > 0)
    }
  })

  test.skipIf(!emulatorBuilt)('lists GPUs without opening them', async () => {
    const driverFile = join(temporary(), 'version')
    writeFileSync(
      driverFile,
      'NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\n',
    )
    const env = {
      ...process.env,
      ST_MOE_CUDA_LIBRARY: emulator,
      SIMT_DEVICES: '2',
      SIMT_UNAVAILABLE: '0',
      SIMT_DRIVER: '12040',
      SIMT_DRIVER_FILE: driverFile,
    }
    const { code, out } = await runProgram([bin, 'doctor'], { env })
    expect(code).toBe(0)
    for (const device of ['cuda:0', 'cuda:1'])
      expect(out).toMatch(
        new RegExp(`^${device} +emulated GPU, 4.3 GB of memory, driver 550.54.15, CUDA 12.4\n(?! +self-test)`, 'm'),
      )
  })

  test.skipIf(!emulatorBuilt)('tests a GPU', async () => {
    const env = { ...process.env, ST_MOE_CUDA_LIBRARY: emulator }
    const { code, out } = await runProgram([bin, 'doctor', '--json', '--self-test'], { env })
    expect(code).toBe(0)
    expect(jsonLines(out)[0].devices[1]).toMatchObject({
      device: 'cuda:0',
      available: true,
      selfTest: { passed: true },
    })
  })

  test.skipIf(!emulatorBuilt)('reports why the self-test of a GPU fails, and exits with 1', async () => {
    const env = { ...process.env, ST_MOE_CUDA_LIBRARY: emulator, SIMT_FULL_AT: '4' }
    const [json, words] = await Promise.all(
      [['--json'], []].map((args) => runProgram([bin, 'doctor', '--self-test', ...args], { env })),
    )
    expect([json.code, words.code]).toEqual([1, 1])
    const [report] = jsonLines(json.out)
    expect(report).toMatchObject({ healthy: false, devices: [{ device: 'cpu', selfTest: { passed: true } }, {}] })
    expect(report.devices[1]).toMatchObject({ device: 'cuda:0', available: true, selfTest: { passed: false } })
    expect(report.devices[1].selfTest.error).toMatch(/not enough memory on cuda/)
    expect(words.out).toMatch(/^ +self-test failed: .*not enough memory on cuda/m)
    expect(words.out).toMatch(/\nA self-test failed\.\n$/)
  })

  test('without an addon it reports the rest and why, and exits with 1', () => {
    const installed = mkdtempSync(join(tmpdir(), 'st-moe-doctor-'))
    for (const name of ['package.json', 'dist']) cpSync(join(root, name), join(installed, name), { recursive: true })
    const doctor = (...args: string[]) =>
      spawnSync(process.execPath, [join(installed, 'dist/cli.js'), ...args], { encoding: 'utf8' })
    try {
      const { status, stdout, stderr } = doctor('doctor')
      expect({ status, stderr }).toEqual({ status: 1, stderr: '' })
      expect(stdout).toMatch(/^processor +\w/m)
      expect(stdout).toMatch(/^addon +not loaded$/m)
      expect(stdout).toMatch(/the native addon could not be loaded on .*\nTried:\n(.*\n)*To build it.*npx st-moe build/)
      const json = doctor('doctor', '--json')
      expect(json.status).toBe(1)
      expect(JSON.parse(json.stdout)).toMatchObject({ healthy: false, error: expect.stringContaining('Tried:') })
      expect(doctor('train', '--help').status).toBe(0)
      expect(doctor('build', '--help').stdout).toMatch(/^Examples:\n {2}# .*\n {2}st-moe build$/m)
      mkdirSync(join(installed, 'scripts'))
      cpSync(join(root, 'scripts/install.cjs'), join(installed, 'scripts/install.cjs'))
      const build = doctor('build')
      expect(build.status).toBe(1)
      expect(build.stderr).toMatch(/cannot be compiled\. Missing:\n(.*\n)*.*npm install cmake-js node-addon-api/)
      const permission = process.allowedNodeEnvironmentFlags.has('--permission') ? '' : 'experimental-'
      const denied = spawnSync(
        process.execPath,
        ['--no-warnings', `--${permission}permission`, '--allow-fs-read=*', join(installed, 'dist/cli.js'), 'build'],
        { encoding: 'utf8' },
      )
      expect(denied.stderr).toMatch(/^st-moe build: .* cannot be started: .*\n$/)
      writeFileSync(join(installed, 'book.txt'), sentences(100))
      const train = doctor('train', join(installed, 'book.txt'), '--out', join(installed, 'run'))
      expect(train.status).toBe(1)
      expect(train.stderr).toMatch(/^st-moe train: \[st-moe\] the native addon could not be loaded/)
      expect(train.stderr).not.toContain('    at ')
    } finally {
      rmSync(installed, { recursive: true })
    }
  })
})

test('bench measures the layer vs. its GEMMs', async () => {
  const small = ['--dim', '32', '--experts', '4', '--batch', '2', '--tokens', '32', '--repetitions', '2']
  const [{ rows, kept, ...settings }] = jsonLines(await succeeded(['bench', ...small, '--threads', '2', '--json']))
  expect(settings).toMatchObject({ dim: 32, experts: 4, repetitions: 2, device: 'cpu', threads: 2 })
  expect(kept).toBeGreaterThan(0.3)
  expect(kept).toBeLessThanOrEqual(1)
  expect(rows.map(({ what }: { what: string }) => what)).toEqual(['forward', 'forward + backward'])
  for (const { ms, fastest, slowest, floorMs, tokensPerSecond } of rows) {
    expect(fastest).toBeLessThanOrEqual(ms)
    expect(ms).toBeLessThanOrEqual(slowest)
    expect(floorMs).toBeGreaterThan(0)
    expect(tokensPerSecond).toBeCloseTo((64 / ms) * 1000, 6)
  }
  expect(await succeeded(['bench', ...small])).toMatch(/forward \+ backward .* \S+× its GEMMs, \S+ ms/)
})

test.each([
  ['--dim', '1e9'],
  ['--tokens', '1e12'],
  ['--dim', '1e5', '--experts', '4096'],
])('bench %s is refused', async (...args) => {
  expectRefused(await cli(['bench', ...args]), 1, /this benchmark at this size needs at least \S+ GB of memory/)
})

describe('output that nobody reads', () => {
  const shell = (command: string) =>
    spawnSync('bash', ['-c', `${command}; echo "\${PIPESTATUS[@]}"`], {
      cwd: folder,
      env: { ...process.env, PROGRAM: `${process.execPath} ${bin}` },
      encoding: 'utf8',
      timeout: 60_000,
    })

  test.each([
    ['doctor', 1],
    ['bench --dim 16 --experts 2 --tokens 16 --repetitions 1', 1],
    ['generate run --length 1000000', 1], // which would take minutes
    [`train book.txt --out piped --steps 1000000000 ${tiny.join(' ')}`, 2],
  ])('%s ends quietly', (command, count) => {
    const { stdout, stderr } = shell(`$PROGRAM ${command} | head -${count}`)
    expect(stderr).toBe('')
    expect(stdout).toMatch(/\n0 0\n$/)
  })

  test('what was trained until then is saved', () =>
    expect(readdirSync(at('piped'))).toContain('checkpoint.safetensors'))

  test.skipIf(!existsSync('/dev/full'))('a full disk is an error', () => {
    const { stdout, stderr } = shell('$PROGRAM doctor > /dev/full')
    expect(stderr).toMatch(/^st-moe doctor: standard output: ENOSPC.*\n$/)
    expect(stdout).toBe('1\n')
  })
})
