import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import {
  cpSync,
  existsSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { LanguageModel, trainingBytes } from '../lib/cli/language-model/model.js'
import { type Ended, runProgram } from './support/program.js'
import { sentences } from './support/sentences.js'

/** The program st-moe as it is built, in a process of its own. */

const root = fileURLToPath(new URL('..', import.meta.url))
const bin = join(root, 'dist/cli/bin.js')
const tiny = '--layers 1 --dim 16 --heads 2 --experts 4 --context 16 --batch 2 --threads 1'.split(' ')
let folder: string
const at = (name: string): string => join(folder, name)

const cli = (args: readonly string[], interruptAt?: string) =>
  runProgram([bin, ...args], { cwd: folder, interruptAt, env: { ...process.env, ST_MOE_CUDA_LIBRARY: '/nowhere.so' } })

async function succeeded(args: readonly string[]): Promise<string> {
  const { code, out, err } = await cli(args)
  expect({ code, err }).toEqual({ code: 0, err: '' })
  return out
}

/** One line, or two with where the help is; no stack trace. */
function expectRefused({ code, out, err }: Ended, expected: number, message: string | RegExp) {
  expect(err).toMatch(message)
  expect(code).toBe(expected)
  expect(err.trimEnd().split('\n')).toHaveLength(expected)
  expect(err).not.toContain('    at ')
  expect(out).toBe('')
}

const lines = (text: string) =>
  text
    .trimEnd()
    .split('\n')
    .map((line) => JSON.parse(line))

beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'st-moe-cli-'))
  writeFileSync(at('book.txt'), sentences(100))
  await succeeded(['train', 'book.txt', '--out', 'run', '--steps', '30', ...tiny])
})

afterAll(() => rmSync(folder, { recursive: true, force: true }))

describe('help', () => {
  test('names the commands', async () => {
    const out = await succeeded(['--help'])
    for (const name of ['doctor', 'train', 'generate', 'bench'])
      expect(out).toMatch(new RegExp(`st-moe ${name} +[A-Z]`))
    expect(await succeeded([])).toBe(out)
    expect(await succeeded(['help'])).toBe(out)
  })

  test.each(['doctor', 'train', 'generate', 'bench'])('of %s has its flags and examples', async (name) => {
    const out = await succeeded([name, '--help'])
    expect(out).toMatch(/^ {2}--json {2,}\w/m)
    expect(out).toMatch(new RegExp(`Examples:\n {2}# .*\n {2}st-moe ${name}`))
    expect(await succeeded(['help', name])).toBe(out)
  })

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
    [['doctor', 'book.txt'], "there is an argument too many: 'book.txt'"],
    [['train'], 'which FILE?'],
    [['train', '--resume'], 'which run? --out names its folder'],
    [['train', 'book.txt', '--text', 'book.txt'], 'FILE and --text name two texts'],
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
    [['train', 'book.txt', '--device', 'tpu'], "--device must be cpu, cuda or cuda:N, got 'tpu'"],
    [['train', 'book.txt', '--compute-dtype', 'f8'], "--compute-dtype must be one of f32, bf16, f16, got 'f8'"],
    [['train', 'book.txt', '--out', ''], '--out must not be empty'],
    [['train', '--resume', '--out', 'run', '--dim', '32'], '--dim cannot change in a resumed run: it is 16, got 32'],
    [['generate'], 'which FOLDER?'],
    [['generate', 'run', '--prompt', '漢 The 字'], '--prompt has characters that the model has never seen: "漢" "字"'],
    [['generate', 'run', '--temperature', '-1'], "--temperature must be a number of at least 0, got '-1'"],
    [['bench', '--experts', '2', '--top-n', '3'], '--top-n must be at most --experts, got 3 and 2'],
  ])('%j', async (args, message) => {
    const ended = await cli(args)
    expectRefused(ended, 2, message)
    expect(ended.err).toMatch(/ --help shows what it takes\n$/)
  })
})

describe('doctor', () => {
  test('--json tells all', async () => {
    const [report] = lines(await succeeded(['doctor', '--json']))
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
    expect(cuda.reason).toContain('/nowhere.so: there is no such file')
  })

  test('says the same in words', async () => {
    const out = await succeeded(['doctor'])
    expect(out).toContain(`Node.js ${process.versions.node}`)
    expect(out).toMatch(/^addon +\/.*\.node$/m)
    expect(out).toMatch(/^ +self-test passed: outputs within \d/m)
    expect(out).toMatch(/^cuda +cannot be used \(stage plugin\): \/nowhere\.so/m)
  })

  const emulator = join(root, 'build/libst_moe_simt.so')
  test.skipIf(!existsSync(emulator))('tests a card that is there', async () => {
    const env = { ...process.env, ST_MOE_CUDA_LIBRARY: emulator }
    const { code, out } = await runProgram([bin, 'doctor', '--json'], { env })
    expect(code).toBe(0)
    expect(lines(out)[0].devices[1]).toMatchObject({ device: 'cuda:0', available: true, selfTest: { passed: true } })
  })

  test('without an addon it tells the rest and why, and ends with 1', () => {
    const installed = mkdtempSync(join(tmpdir(), 'st-moe-doctor-'))
    for (const name of ['package.json', 'dist']) cpSync(join(root, name), join(installed, name), { recursive: true })
    const doctor = (...args: string[]) =>
      spawnSync(process.execPath, [join(installed, 'dist/cli/bin.js'), ...args], { encoding: 'utf8' })
    try {
      const { status, stdout, stderr } = doctor('doctor')
      expect({ status, stderr }).toEqual({ status: 1, stderr: '' })
      expect(stdout).toMatch(/^processor +\w/m)
      expect(stdout).toMatch(/^addon +not loaded$/m)
      expect(stdout).toMatch(/the native addon could not be loaded on .*\nTried:\n(.*\n)*To build it.*install\.cjs/)
      const json = doctor('doctor', '--json')
      expect(json.status).toBe(1)
      expect(JSON.parse(json.stdout)).toMatchObject({ healthy: false, error: expect.stringContaining('Tried:') })
      expect(doctor('train', '--help').status).toBe(0)
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

describe('train', () => {
  const checkpoint = (run: string): Buffer => readFileSync(at(`${run}/checkpoint.safetensors`))
  /** The tensors of a checkpoint; its header also holds times. */
  const weights = (run: string): Buffer => {
    const bytes = checkpoint(run)
    return bytes.subarray(8 + Number(bytes.readBigUInt64LE()))
  }

  test('stopped by Ctrl-C and resumed it ends as if it had not been, bit for bit', async () => {
    const sizes = [...tiny, '--steps', '500', '--evaluate-every', '100']
    await succeeded(['train', 'book.txt', '--out', 'whole', ...sizes])
    const first = await cli(['train', 'book.txt', '--out', 'parts', ...sizes], 'step 100 ')
    expect({ code: first.code, err: first.err }).toEqual({ code: 130, err: '' })
    expect(first.out).toMatch(/step \d+ of 500, report and checkpoint in parts; go on with --resume --out parts\n$/)
    expect(readdirSync(at('parts'))).not.toContain('lock')
    expect(weights('parts').equals(weights('whole'))).toBe(false)
    await succeeded(['train', '--resume', '--out', 'parts'])
    expect(weights('parts').equals(weights('whole'))).toBe(true)
  })

  test('killed, it goes on from the last checkpoint, and its lock is no obstacle', async () => {
    const child = spawn(process.execPath, [bin, 'train', 'book.txt', '--out', 'killed', '--steps', '100000', ...tiny], {
      cwd: folder,
    })
    for await (const data of child.stdout) if (String(data).includes('step 200 ')) break
    // While it runs, nobody else writes there.
    expectRefused(await cli(['train', 'book.txt', '--out', 'killed', ...tiny]), 1, /killed is in use by process \d+/)
    child.kill('SIGKILL')
    await once(child, 'close')
    expect(existsSync(at('killed/lock'))).toBe(true)
    const events = lines(await succeeded(['train', '--resume', '--out', 'killed', '--steps', '210', '--json']))
    expect(events[0]).toEqual({ event: 'resume', step: 200 })
    expect(events.at(-1)).toMatchObject({ event: 'end', step: 210, steps: 210, out: 'killed' })
    expect(readdirSync(at('killed'))).not.toContain('lock')
  })

  test('--json is a line for each event', async () => {
    const events = lines(await succeeded(['train', 'book.txt', '--out', 'json', '--steps', '3', '--json', ...tiny]))
    expect(events.map(({ event }) => event)).toEqual([
      'start',
      'evaluation',
      'step',
      'step',
      'step',
      'evaluation',
      'end',
    ])
    expect(events[0]).toMatchObject({ text: 'book.txt', charactersPerStep: 32 })
    expect(events[2].loss).toBeGreaterThan(0)
  })

  test('Windows newlines, a byte order mark and any script are text', async () => {
    writeFileSync(at('unicode.txt'), `\ufeff${'Ünïcödé 漢字 😀 text, ligne après ligne.\r\n'.repeat(60)}`)
    await succeeded(['train', 'unicode.txt', '--steps', '2', ...tiny])
    const { text } = JSON.parse(readFileSync(at('runs/unicode/run.json'), 'utf8'))
    expect(text.vocabulary).toContain('😀')
    expect(text.vocabulary).not.toContain('\r')
    expect(text.vocabulary).not.toContain('\ufeff')
    expect(await succeeded(['generate', 'runs/unicode', '--prompt', '😀 ', '--length', '9'])).toMatch(/^😀 /)
  })

  test('one expert, one choice; a text of one character', async () => {
    writeFileSync(at('same.txt'), 'a'.repeat(500))
    await succeeded(['train', 'same.txt', '--steps', '2', ...tiny, '--experts', '1', '--top-n', '1'])
  })

  test('a run is not lost by starting another one there', async () => {
    const before = checkpoint('run')
    const again = await cli(['train', 'book.txt', '--out', 'run', ...tiny])
    expectRefused(again, 1, /run holds a run: --resume goes on with it, --overwrite starts anew/)
    expect(checkpoint('run').equals(before)).toBe(true)
    cpSync(at('run'), at('again'), { recursive: true })
    await succeeded(['train', 'book.txt', '--out', 'again', '--overwrite', '--steps', '2', ...tiny])
    expect(checkpoint('again').equals(before)).toBe(false)
  })

  test.each<[string, string, string | Buffer | null, RegExp]>([
    ['no file', 'none.txt', null, /no such file or directory, stat .*none\.txt/],
    ['a folder', '.', null, /is not a file/],
    ['a device', '/dev/zero', null, /\/dev\/zero is not a file/],
    ['an empty file', 'empty.txt', '', /empty\.txt is empty/],
    ['one byte', 'byte.txt', 'a', /has 1 characters; a context of 16 needs at least 170/],
    ['a short file', 'short.txt', 'a'.repeat(160), /has 160 characters; a context of 16 needs at least 170/],
    ['zero bytes', 'binary.txt', Buffer.alloc(4096), /is not a text: it holds a zero byte/],
    ['Latin-1', 'latin.txt', Buffer.from([0xe9, 0x20, 0x61]), /is not a text in UTF-8/],
  ])('%s is no text', async (_what, name, content, message) => {
    if (content !== null) writeFileSync(at(name), content)
    expectRefused(await cli(['train', name, '--out', 'bad', ...tiny]), 1, message)
    expect(existsSync(at('bad'))).toBe(false)
  })

  test.each([
    ['/proc/nothing/here', /cannot be written to: ENOENT/],
    ['/proc/self', /cannot be written to/],
    ['book.txt', /book\.txt cannot be written to: it is not a folder/],
    ['book.txt/under', /cannot be written to: ENOTDIR/],
    ['long'.repeat(100), /cannot be written to: ENAMETOOLONG/],
  ])('--out %s cannot be written to', async (out, message) => {
    expectRefused(await cli(['train', 'book.txt', '--out', out, ...tiny]), 1, message)
  })

  test.each<[string, string[], RegExp]>([
    ['sizes', ['--dim', '1e9'], /training at this size needs at least \S+ GB of memory, there are/],
    ['batches', ['--batch', '1e12'], /training at this size needs/],
    ['a device that is not there', ['--device', 'cuda'], /device 'cuda:0' cannot be used: plugin: \/nowhere\.so/],
  ])('%s', async (_what, args, message) => {
    expectRefused(await cli(['train', 'book.txt', '--out', 'big', ...tiny, ...args]), 1, message)
  })

  test('what it needs at least is less than what it has', () => {
    const options = { vocabulary: 50, context: 16, dim: 16, layers: 2, heads: 2, experts: 4, topN: 2 }
    const model = new LanguageModel({ ...options, computeDtype: 'f32' })
    const weights = [...model.parameters()].reduce((sum, { size }) => sum + size, 0)
    model.dispose()
    const estimate = trainingBytes({ ...options, computeDtype: 'f32' }, 0)
    expect(estimate).toBeLessThan(16 * weights)
    expect(estimate).toBeGreaterThan(0.8 * 16 * weights)
  })
})

describe('a damaged run', () => {
  const damage: [string, (run: string) => void, RegExp][] = [
    ['none', () => {}, /there is no run in .*: st-moe train makes one/],
    ['cut short', (run) => truncateSync(join(run, 'checkpoint.safetensors'), 1000), /the file has 1000/],
    ['empty', (run) => truncateSync(join(run, 'checkpoint.safetensors')), /at least 8 bytes, this has 0/],
    ['no run.json', (run) => rmSync(join(run, 'run.json')), /run\.json cannot be read: ENOENT/],
    ['bad JSON', (run) => writeFileSync(join(run, 'run.json'), '{'), /run\.json cannot be read: /],
    ['other JSON', (run) => writeFileSync(join(run, 'run.json'), '{}'), /run\.json does not describe a run/],
    [
      'another model',
      (run) => {
        const file = join(run, 'run.json')
        writeFileSync(file, readFileSync(file, 'utf8').replace('"dim": 16', '"dim": 32'))
      },
      /checkpoint\.safetensors does not hold the model that .*run\.json describes/,
    ],
  ]
  test.each(damage)('%s', async (name, spoil, message) => {
    const run = at(`damaged-${name.replaceAll(' ', '-')}`)
    if (name !== 'none') cpSync(at('run'), run, { recursive: true })
    spoil(run)
    expectRefused(await cli(['train', '--resume', '--out', run]), 1, message)
    expectRefused(await cli(['generate', run]), 1, message)
  })

  test('another text', async () => {
    writeFileSync(at('other.txt'), `${sentences(100)}!`)
    expectRefused(await cli(['train', 'other.txt', '--resume', '--out', 'run']), 1, /is not the text that this run/)
  })
})

describe('generate', () => {
  const write = (...args: string[]) => succeeded(['generate', 'run', '--length', '50', ...args])

  test('the same seed writes the same, with any number of threads', async () => {
    const text = await write('--seed', '3', '--threads', '1')
    expect(await write('--seed', '3', '--threads', '2')).toBe(text)
    expect(await write('--seed', '4')).not.toBe(text)
    const [json] = lines(await write('--seed', '3', '--json'))
    expect(json).toMatchObject({ text: text.slice(0, 50), prompt: '', seed: 3 })
    expect([...json.text]).toHaveLength(50)
  })

  test('continues a prompt, longer than the context too', async () => {
    const prompt = 'The old whale sees the sea.\nThe '
    expect((await write('--prompt', prompt)).startsWith(prompt)).toBe(true)
  })

  test('at temperature 0, and from the likeliest alone, chance has no part', async () => {
    const text = await write('--temperature', '0')
    expect(await write('--top-k', '1', '--seed', '9')).toBe(text)
    expect(await write('--temperature', '1e-300')).toBe(text)
  })
})

test('bench measures the layer beside its products', async () => {
  const small = ['--dim', '32', '--experts', '4', '--batch', '2', '--tokens', '32', '--repetitions', '2']
  const [{ rows, kept, ...settings }] = lines(await succeeded(['bench', ...small, '--threads', '2', '--json']))
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
  expect(await succeeded(['bench', ...small])).toMatch(/forward \+ backward .* floor \S+ ms/)
})

describe('output that nobody reads', () => {
  const shell = (command: string) =>
    spawnSync('bash', ['-c', `${command}; echo "\${PIPESTATUS[@]}"`], {
      cwd: folder,
      env: { ...process.env, PROGRAM: `${process.execPath} ${bin}` },
      encoding: 'utf8',
    })

  test.each([
    ['doctor', 1],
    ['bench --dim 16 --experts 2 --tokens 16 --repetitions 1', 1],
    ['generate run --length 100000', 1],
    [`train book.txt --out piped --steps 100000 ${tiny.join(' ')}`, 2],
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
