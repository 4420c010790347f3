import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import {
  cpSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { hostname, constants as system } from 'node:os'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest'
import { TrainingFolder } from '../../cli/trainer/folder.js'
import { CharacterTokenizer, LanguageModel, saveLanguageModel } from '../../language-model/index.js'
import { MoeError } from '../../lib/index.js'
import { lockFile } from '../../lib/io/lock.js'
import { native } from '../../lib/runtime/native.js'
import { root } from '../support/blocks.js'
import { at, bin, cli, expectRefused, folder, succeeded, tiny } from '../support/cli.js'
import { some } from '../support/numbers.js'
import { runProgram } from '../support/program.js'

/** One process at a time writes to a run folder, and the run can resume however that process ends. */

const train = (out: string, ...args: string[]): string[] => ['train', 'book.txt', '--out', out, ...tiny, ...args]

/** A run that continues until stopped, after its first checkpoint; `wrapper` starts it. */
async function training(out: string, wrapper: readonly string[] = []) {
  const [program, ...args] = [
    ...wrapper,
    process.execPath,
    bin,
    ...train(out, '--steps', '1000000', '--evaluate-every', '20'),
  ]
  const child = spawn(program, args, { cwd: folder, stdio: ['ignore', 'pipe', 'pipe'] })
  let [said, err] = ['', '']
  child.stderr.on('data', (data) => {
    err += data
  })
  const ready = new Promise<void>((resolve, reject) => {
    child.stdout.on('data', (data) => {
      said += data
      if (said.includes('step 20 ')) resolve()
    })
    child.on('close', () => reject(new Error(`it ended: ${said}${err}`)))
  })
  const closed = once(child, 'close')
  await ready
  const end = async (signal: NodeJS.Signals) => {
    child.kill(signal)
    const [code, by] = await closed
    return { code, signal: by, err, said }
  }
  return { child, end }
}

/** Starts a program as process 1 of a container. */
const container = ['unshare', '--user', '--map-root-user', '--pid', '--fork', '--kill-child', '--mount-proc']
const hasContainers = spawnSync(container[0], [...container.slice(1), 'true']).status === 0

describe('the lock of a run', () => {
  test.skipIf(!hasContainers)('is seen by another container, whose process has the same number', async () => {
    const { end } = await training('shared', container)
    try {
      const { status, stderr } = spawnSync(
        container[0],
        [...container.slice(1), process.execPath, bin, ...train('shared', '--overwrite', '--steps', '2')],
        { cwd: folder, encoding: 'utf8' },
      )
      expect(stderr).toMatch(/^st-moe train: shared is in use by process 1 on \S+\n$/)
      expect(status).toBe(1)
    } finally {
      await end('SIGKILL')
    }
  })

  test.each([
    ['empty, as a full disk leaves it', ''],
    ['that names a process which runs', String(process.pid)],
    ['of other content', '\x1b[31m\0'.repeat(1000)],
  ])('a file %s is no obstacle', async (what, content) => {
    const name = `left ${what}`
    mkdirSync(at(name))
    writeFileSync(at(`${name}/run.lock`), content)
    for (const file of readdirSync(at('run'))) writeFileSync(at(`${name}/${file}.0123456789abcdef.tmp`), 'left, too')
    await succeeded(train(name, '--steps', '2'))
    expect(readdirSync(at(name)).sort()).toEqual(readdirSync(at('run')).sort())
  })

  test.each<[string, (path: string) => void, RegExp]>([
    ['folder', (path) => mkdirSync(path), /cannot be written to: EISDIR/],
    ['link', (path) => symlinkSync(at('book.txt'), path), /cannot be written to: ELOOP/],
    ['pipe', (path) => spawnSync('mkfifo', [path]), /cannot be written to: .*run\.lock is not a file/],
  ])('a %s in its place is refused', async (what, make, message) => {
    mkdirSync(at(`lock-${what}`))
    make(at(`lock-${what}/run.lock`))
    const text = readFileSync(at('book.txt'), 'utf8')
    expectRefused(await cli(train(`lock-${what}`, '--steps', '2')), 1, message)
    expect(readFileSync(at('book.txt'), 'utf8')).toBe(text)
  })
})

describe('a lock file', () => {
  let file: string
  beforeEach(() => {
    mkdirSync(at('lock'))
    file = at('lock/run.lock')
  })
  afterEach(() => {
    vi.restoreAllMocks()
    rmSync(at('lock'), { recursive: true })
  })

  test('has one owner, who removes it', () => {
    const lock = lockFile(file)
    expect(() => lockFile(file, at('lock'))).toThrow(
      new MoeError('FILE_SYSTEM', 'lockFile', `${at('lock')} is in use by process ${process.pid} on ${hostname()}`),
    )
    lock.release()
    expect(existsSync(file)).toBe(false)
    lockFile(file).release()
  })

  test('removed by its owner while another waits protects nothing: the next one does', () => {
    const owner = lockFile(file)
    const { lockFile: lockInKernel } = native
    vi.spyOn(native, 'lockFile').mockImplementationOnce((opened) => {
      owner.release()
      return lockInKernel(opened)
    })
    const lock = lockFile(file)
    expect(() => lockFile(file)).toThrow(/in use/)
    lock.release()
  })

  test('that is taken away by hand is not confused with the one of the next owner', () => {
    const first = lockFile(file)
    rmSync(file)
    const second = lockFile(file)
    first.release()
    expect(() => lockFile(file)).toThrow(/in use/)
    second.release()
  })

  test('of a folder that was moved protects the next run at that path from this one', async () => {
    using run = new TrainingFolder(at('lock'))
    run.write({ note: 'first' })
    renameSync(at('lock'), at('moved'))
    try {
      using next = new TrainingFolder(at('lock'))
      const refused = /lock is no longer the folder of this run: it was moved, or its run\.lock was removed$/
      expect(() => run.write({ note: 'second' })).toThrow(refused)
      await expect(run.save({} as never, {} as never)).rejects.toThrow(refused)
      expect(readdirSync(at('lock'))).toEqual(['run.lock'])
      next.write({ note: 'third' })
      expect(readFileSync(at('lock/note'), 'utf8')).toBe('third')
    } finally {
      rmSync(at('moved'), { recursive: true })
    }
  })

  test('of a file system without locks is used with a warning, and stays', () => {
    vi.spyOn(native, 'lockFile').mockReturnValue(system.errno.ENOLCK)
    const warned = vi.spyOn(process.stderr, 'write').mockReturnValue(true)
    for (const _process of [1, 2]) {
      using _folder = new TrainingFolder(at('lock'))
    }
    const warning = `${at('lock')} cannot be locked (ENOLCK): make sure that no other process trains there\n`
    expect(warned.mock.calls).toEqual([[warning], [warning]])
    expect(existsSync(file)).toBe(true)
  })
})

describe('a signal', () => {
  test.each<[NodeJS.Signals, number, string]>([
    ['SIGINT', 130, 'press Ctrl-C again to stop at once'],
    ['SIGTERM', 143, 'a second signal stops at once'],
    ['SIGHUP', 129, 'a second signal stops at once'],
  ])('%s finishes the step, saves, says so and ends with %i', async (signal, code, hint) => {
    const { end } = await training(signal)
    const ended = await end(signal)
    expect(ended).toMatchObject({ code, signal: null, err: `finishing this step and saving; ${hint}\n` })
    const [, step] = /step (\d+) of 1000000, report and checkpoint in \w+; continue with/.exec(ended.said)!
    expect(Number(step)).toBeGreaterThanOrEqual(20)
    expect(readdirSync(at(signal)).sort()).toEqual([...readdirSync(at('run'))].sort())
    expect(await succeeded(['train', '--resume', '--out', signal, '--minutes', '0.001'])).toContain(
      `resumed at step ${step}\n`,
    )
  })

  const hasTerminals = spawnSync('script', ['--version']).status === 0
  test.skipIf(!hasTerminals)('a terminal that is gone, without a signal: saved, and ended quietly', async () => {
    const program = [process.execPath, bin, ...train('closed', '--steps', '1000000', '--evaluate-every', '20')].join(
      ' ',
    )
    // The shell receives the signal, and reports the exit code.
    const command = `trap : HUP; ${program}; echo $? > ended; mv ended closed/code`
    const terminal = spawn('script', ['-qc', command, '/dev/null'], { cwd: folder, stdio: ['pipe', 'pipe', 'ignore'] })
    await expect.poll(() => existsSync(at('closed/report.html'))).toBe(true)
    terminal.kill('SIGKILL')
    await expect.poll(() => existsSync(at('closed/code'))).toBe(true)
    expect(readFileSync(at('closed/code'), 'utf8')).toBe('0\n')
    expect(readdirSync(at('closed'))).not.toContain('run.lock')
  })
})

describe('a full or broken disk', () => {
  const brokenDisk = pathToFileURL(join(root, 'test/children/broken-disk.mjs')).href
  const onBrokenDisk = (out: string, name: string, code: string, from: number, ...flags: string[]) =>
    runProgram(['--import', brokenDisk, bin, ...train(out, '--steps', '40', '--evaluate-every', '10', ...flags)], {
      cwd: folder,
      env: { ...process.env, FAULT_FILE: name, FAULT_CODE: code, FAULT_FROM: String(from) },
    })

  const faults: [string, string, number, number][] = [
    ['checkpoint.safetensors', 'ENOSPC', 3, 10],
    ['report.html', 'ENOSPC', 3, 20],
    ['checkpoint.safetensors', 'EIO', 2, 0],
    ['loss.svg', 'EIO', 1, 0],
  ]
  test.each(some(faults, 2))(
    'at %s (%s, from file %i on): the checkpoint of step %s is intact',
    async (name, code, from, step) => {
      const out = `${name}-${code}`
      const { code: exit, err, out: said } = await onBrokenDisk(out, name, code, from)
      expect(exit).toBe(1)
      const path = `${out}/${name}`.replaceAll('.', '\\.')
      expect(err).toMatch(
        new RegExp(
          `^st-moe train: .*cannot write ${path}: ${code}: .*; the last checkpoint is intact: --resume --out \\S+ continues from it\\n$`,
        ),
      )
      expect(said).not.toContain('report and checkpoint in')
      expect(readdirSync(at(out)).filter((file) => file.endsWith('.tmp') || file.endsWith('.lock'))).toEqual([])
      expect(await succeeded(['train', '--resume', '--out', out])).toContain(`resumed at step ${step}\n`)
    },
  )

  test.each([
    ['run.json', 'ENOSPC'],
    ['checkpoint.safetensors', 'EIO'],
  ])('at the first %s: it says that there is no checkpoint', async (name, code) => {
    const { code: exit, err } = await onBrokenDisk(`first-${name}`, name, code, 1)
    expect(exit).toBe(1)
    expect(err).toMatch(/^st-moe train: .*cannot write first-\S+: (ENOSPC|EIO): .*; the run has no checkpoint yet\n$/)
  })

  test.each<[string, string, string[]]>([
    ['run.json', 'ENOSPC', []],
    ['checkpoint.safetensors', 'EIO', []],
    ['--tensorboard', 'ENOTDIR', ['--tensorboard', 'book.txt/board']],
  ])('at %s (%s): the run that it would have replaced is intact', async (name, code, flags) => {
    const out = `other${name}`
    cpSync(at('run'), at(out), { recursive: true })
    const files = () => readdirSync(at(out)).map((file) => [file, readFileSync(at(`${out}/${file}`), 'latin1')])
    const before = files()
    const { code: exit, err } = await onBrokenDisk(out, name, code, 1, '--overwrite', '--seed', '2', ...flags)
    expect(err).toContain('cannot write ')
    expect(exit).toBe(1)
    expect(files()).toEqual(before)
  })
})

describe('a kill between the two files of a save', () => {
  const killer = pathToFileURL(join(root, 'test/children/kill-at.mjs')).href
  const killed = async (...args: string[]) => {
    const env = { ...process.env, KILL_AT: 'rename 2' }
    await runProgram(['--import', killer, bin, 'train', ...args], { cwd: folder, env })
  }

  test('of a run that replaces another: they do not pass for one run', async () => {
    cpSync(at('run'), at('mixed'), { recursive: true })
    await killed('book.txt', '--out', 'mixed', ...tiny, '--overwrite', '--seed', '2')
    expect(JSON.parse(readFileSync(at('mixed/run.json'), 'utf8')).options.seed).toBe(2)
    rmSync(at('mixed/run.lock'))
    const commands = [
      ['generate', 'mixed'],
      ['show', 'mixed'],
      ['train', '--resume', '--out', 'mixed'],
    ]
    for (const args of commands)
      expectRefused(await cli(args), 1, /run\.json and the checkpoint in \S*mixed are of different saves\n$/)
    expectRefused(await cli(train('mixed')), 1, /mixed contains a run: --overwrite replaces it/)
  })

  test('of a resumed run: it resumes again', async () => {
    cpSync(at('run'), at('longer'), { recursive: true })
    await killed('--resume', '--out', 'longer', '--steps', '40')
    expect(JSON.parse(readFileSync(at('longer/run.json'), 'utf8')).options.steps).toBe(40)
    expect(await succeeded(['train', '--resume', '--out', 'longer'])).toContain('resumed at step 30\n')
  })
})

test.each<[string, (folder: string) => void]>([
  ['the text as run.json', (path) => cpSync(at('book.txt'), join(path, 'run.json'))],
  ['a link to a checkpoint that is away', (path) => symlinkSync('away', join(path, 'checkpoint.safetensors'))],
])('%s is not overwritten', async (what, make) => {
  mkdirSync(at(what))
  make(at(what))
  const [name] = readdirSync(at(what))
  expectRefused(
    await cli(train(what, '--steps', '2')),
    1,
    /contains a run: --overwrite replaces it, --out selects another folder/,
  )
  expect(readdirSync(at(what))).toEqual([name])
  using model = new LanguageModel({ tokenizer: CharacterTokenizer.of('abc'), context: 8, dim: 16, layers: 1 })
  await expect(saveLanguageModel(at(what), model)).rejects.toThrow(/contains a model: overwrite: true replaces it/)
  expect(readdirSync(at(what))).toEqual([name])
})

test.each(['report.html', 'loss.svg', 'run.json'])(
  '%s of the user is not overwritten, and never the text',
  async (name) => {
    const path = join(folder, 'own', name)
    mkdirSync(at('own'))
    cpSync(at('book.txt'), path)
    const own = ['train', join('own', name), '--out', 'own', ...tiny, '--steps', '2']
    const found = name === 'run.json' ? 'a run' : name
    expectRefused(
      await cli(own),
      1,
      new RegExp(`^st-moe train: own contains ${found}: --overwrite replaces it, --out `),
    )
    expectRefused(
      await cli([...own, '--overwrite']),
      2,
      new RegExp(`${name} is the text, and the run would replace it`),
    )
    expect(readFileSync(path).equals(readFileSync(at('book.txt')))).toBe(true)
    rmSync(at('own'), { recursive: true })
  },
)

test('a resumed run does not replace its text either', async () => {
  await succeeded(train('moved', '--steps', '2'))
  const path = join(folder, 'moved', 'report.html')
  cpSync(at('book.txt'), path)
  const resumed = await cli(['train', path, '--resume', '--out', 'moved', '--steps', '4'])
  expectRefused(resumed, 2, /report\.html is the text, and the run would replace it/)
  expect(readFileSync(path).equals(readFileSync(at('book.txt')))).toBe(true)
})

test('a folder that cannot be read is not one without a run', async () => {
  expectRefused(await cli(['generate', 'long'.repeat(100)]), 1, /cannot read (long)+: ENAMETOOLONG/)
})

test('a model of saveLanguageModel generates; what needs a run says that it is none', async () => {
  using model = new LanguageModel({ tokenizer: CharacterTokenizer.of('abc \n'), context: 8, dim: 16, layers: 1 })
  await saveLanguageModel(at('model'), model)
  await succeeded(['generate', 'model', '--length', '3'])
  for (const args of [
    ['show', 'model'],
    ['train', '--resume', '--out', 'model'],
  ])
    expectRefused(await cli(args), 1, /model holds a model without a run: st-moe generate takes it/)
})
