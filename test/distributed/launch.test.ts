import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterEach, describe, expect, test } from 'vitest'
import { type Job, type JobLine, type LaunchOptions, launch, MoeError } from '../../lib/index.js'
import { codeOf, expectEnded } from '../support/jobs.js'
import { temporary } from '../support/temporary.js'

/** `launch` with processes that speak to it as an MPI library does; processes.test.ts has those of real libraries. */

const client = fileURLToPath(new URL('../children/pmi-client.mjs', import.meta.url))
const jobs: Job[] = []
afterEach(() => expectEnded(jobs.splice(0).flatMap(({ pids }) => pids.filter((pid) => pid > 0))))

/** Runs a job to its end. */
async function run(program: string, args: string[], options: LaunchOptions, use?: (job: Job, line: JobLine) => void) {
  const lines: JobLine[] = []
  const job: Job = launch(program, args, {
    onLine(line) {
      lines.push(line)
      use?.(job, line)
    },
    ...options,
  })
  jobs.push(job)
  const end = await job.ended
  const textOf = (rank: number | null) => lines.filter((line) => line.rank === rank).map(({ text }) => text)
  return { ...end, job, lines, textOf, launcher: textOf(null) }
}

const shell = (script: string, options: LaunchOptions, use?: (job: Job, line: JobLine) => void) =>
  run('sh', ['-c', script], options, use)
const pmi = (action: string, options: LaunchOptions, where?: number) =>
  run(process.execPath, [client, action, ...(where === undefined ? [] : [String(where)])], options)

describe('the process management interface', () => {
  test('tells each process what it asks, and the addresses of the others', async () => {
    const { exitCode, ranks, textOf, launcher } = await pmi('exchange', { processes: 3 })
    expect({ exitCode, launcher }).toEqual({ exitCode: 0, launcher: [] })
    expect(ranks).toEqual(Array(3).fill({ code: 0, signal: null }))
    for (const rank of [0, 1, 2])
      expect(textOf(rank)).toEqual([
        'cmd=response_to_init pmi_version=1 pmi_subversion=1 rc=0',
        'cmd=maxes kvsname_max=256 keylen_max=64 vallen_max=1024 rc=0',
        'cmd=appnum appnum=0 rc=0',
        expect.stringMatching(/^job [\w-]{10,100}$/),
        'cmd=universe_size size=3 rc=0',
        'cmd=get_result rc=0 msg=success value=(vector,(0,1,3))',
        'cmd=get_result rc=-1 msg=key_not_found value=unknown',
        'cmd=put_result rc=0 msg=success',
        'cmd=barrier_out rc=0',
        'cmd=get_result rc=0 msg=success value=host 0 port=1000',
        'cmd=get_result rc=0 msg=success value=host 1 port=1001',
        'cmd=get_result rc=0 msg=success value=host 2 port=1002',
        'cmd=spawn_result rc=-1 msg=not_supported',
        'cmd=lookup_result rc=-1 msg=not_supported',
        'cmd=finalize_ack rc=0',
      ])
  })

  test('gives each job a name of its own', async () => {
    const names = await Promise.all([1, 2].map(async () => (await pmi('exchange', { processes: 1 })).textOf(0)[3]))
    expect(names[0]).not.toBe(names[1])
  })

  test('MPI_Abort ends the job at once, with its exit code', async () => {
    const { exitCode, ranks, launcher } = await pmi('abort', { processes: 3, grace: 1e9 }, 1)
    expect(exitCode).toBe(7)
    expect(launcher).toEqual(['rank 1 called MPI_Abort out of patience'])
    expect(ranks).toEqual(Array(3).fill({ code: null, signal: 'SIGKILL' }))
  })

  test('MPI_Abort with 0 is no success', async () => {
    const { exitCode } = await pmi('abort-0', { processes: 2, grace: 1e9 }, 1)
    expect(exitCode).toBe(1)
  })

  test.each([
    ['garbage', 'rank 0 sent an unknown request: cmd=make_coffee'],
    ['endless', 'rank 0 sent a line of more than 65536 characters'],
  ])('what is no request ends the job: %s', async (action, message) => {
    const { exitCode, launcher } = await pmi(action, { processes: 2, grace: 1e9 }, 0)
    expect({ exitCode, launcher }).toEqual({ exitCode: 1, launcher: [message] })
  })

  test('a process that ends before the others have joined it is reported, and the others are ended', async () => {
    const { exitCode, ranks, launcher } = await pmi('leave-early', { processes: 3, grace: 20 }, 2)
    expect(exitCode).toBe(1)
    expect(launcher).toEqual(['rank 2 has ended, and others wait for it in MPI_Init or MPI_Finalize'])
    expect(ranks).toEqual([
      { code: null, signal: 'SIGTERM' },
      { code: null, signal: 'SIGTERM' },
      { code: 0, signal: null },
    ])
  })

  test.runIf(process.platform === 'linux')('removes the shared memory of killed processes', async () => {
    const { exitCode, textOf } = await pmi('leave-memory', { processes: 2 })
    expect(exitCode).toBe(137)
    for (const rank of [0, 1]) {
      expect(textOf(rank)[0]).toMatch(/^\/dev\/shm\/mpich_shm_[0-9a-f]+_\d$/)
      expect(textOf(rank)).toHaveLength(2)
      for (const path of textOf(rank)) expect(existsSync(path)).toBe(false)
    }
  })
})

describe('how a job ends', () => {
  test('the exit code is that of the first process that fails; the others get SIGTERM after the grace', async () => {
    const { exitCode, ranks, job, launcher } = await shell('[ $PMI_RANK = 1 ] && exit 5; sleep 1000', {
      processes: 3,
      grace: 20,
    })
    expect(exitCode).toBe(5)
    expect(launcher).toEqual([`rank 1 (process ${job.pids[1]}) ended with code 5`])
    const ended = { code: null, signal: 'SIGTERM' }
    expect(ranks).toEqual([ended, { code: 5, signal: null }, ended])
  })

  test('a process that a signal ends counts as 128 plus its number', async () => {
    const { exitCode, job, launcher } = await shell('[ $PMI_RANK = 0 ] && kill -9 $$; sleep 1000', {
      processes: 2,
      grace: 20,
    })
    expect(exitCode).toBe(137)
    expect(launcher).toEqual([`rank 0 (process ${job.pids[0]}) was ended by SIGKILL`])
  })

  test('a stopped process, and one that ignores SIGTERM, get SIGKILL', async () => {
    const script =
      'case $PMI_RANK in 0) exit 3;; 1) kill -STOP $$;; *) trap "" TERM; while :; do sleep 0.01; done;; esac'
    const { exitCode, ranks } = await shell(script, { processes: 3, grace: 50 })
    expect(exitCode).toBe(3)
    expect(ranks.slice(1)).toEqual(Array(2).fill({ code: null, signal: 'SIGKILL' }))
  })

  test('signals are passed on; a process that stays after the others have left is ended', async () => {
    const script =
      'trap "echo caught; exit 0" USR1; [ $PMI_RANK = 2 ] && trap "" USR1; echo ready; while :; do sleep 0.01; done'
    let ready = 0
    const { exitCode, ranks, lines } = await shell(script, { processes: 3, grace: 20 }, (job, { text }) => {
      if (text === 'ready' && ++ready === 3) job.kill('SIGUSR1')
    })
    expect(lines.filter(({ text }) => text === 'caught')).toHaveLength(2)
    expect(ranks[2]).toEqual({ code: null, signal: 'SIGTERM' })
    expect(exitCode).toBe(143)
  })

  test('a job whose processes end well after a signal ends well', async () => {
    let ready = 0
    const { exitCode } = await shell(
      'trap "exit 0" TERM; echo ready; while :; do sleep 0.01; done',
      { processes: 2 },
      (job) => ++ready === 2 && job.kill(),
    )
    expect(exitCode).toBe(0)
  })

  test('no child of a process is left', async () => {
    const { exitCode, lines } = await shell('sleep 1000 & echo $!', { processes: 2 })
    expect(exitCode).toBe(0)
    await expectEnded(lines.map(({ text }) => Number(text)))
  })

  test('a process that has left its group and holds the output does not keep the job', async () => {
    const script = `
      const child = require('child_process').spawn('sleep', ['1000'], { detached: true, stdio: 'inherit' })
      child.unref()
      console.log(child.pid)`
    const { exitCode, lines } = await run(process.execPath, ['-e', script], { processes: 1 })
    expect(exitCode).toBe(0)
    process.kill(Number(lines[0].text), 'SIGKILL')
  })

  test('if the program exits, its jobs end', async () => {
    const script = `
      import { launch } from ${JSON.stringify(new URL('../../lib/distributed/launch.ts', import.meta.url).href)}
      const job = launch('sleep', ['1000'], { processes: 2 })
      console.log(job.pids.join(' '))
      process.exit(4)`
    const { exitCode, lines } = await run(process.execPath, ['--import', 'tsx', '--input-type=module', '-e', script], {
      processes: 1,
    })
    expect(exitCode).toBe(4)
    await expectEnded(lines[0].text.split(' ').map(Number))
  })
})

describe('output', () => {
  test('is lines, of each process and stream, whole also if they come in pieces', async () => {
    const script = `
      const bytes = Buffer.from('grün\\r\\n')
      process.stdout.write(bytes.subarray(0, 3))
      setTimeout(() => process.stdout.write(Buffer.concat([bytes.subarray(3), Buffer.from('end')])), 50)
      process.stderr.write('warning\\n\\n')`
    const { lines } = await run(process.execPath, ['-e', script], { processes: 1 })
    const of = (name: string) => lines.filter(({ stream }) => stream === name).map(({ rank, text }) => [rank, text])
    expect(of('stdout')).toEqual([
      [0, 'grün'],
      [0, 'end'],
    ])
    expect(of('stderr')).toEqual([
      [0, 'warning'],
      [0, ''],
    ])
  })

  test('without line ends arrives in pieces', async () => {
    const { lines } = await run(process.execPath, ['-e', 'process.stdout.write("x".repeat(1e6))'], { processes: 1 })
    expect(lines.length).toBeGreaterThan(5)
    expect(lines.map(({ text }) => text).join('')).toHaveLength(1e6)
  })

  test('an error of the callback ends the job and is that of the promise', async () => {
    const error = new Error('of the caller')
    const job = launch('sh', ['-c', 'echo; sleep 1000'], {
      processes: 2,
      onLine() {
        throw error
      },
    })
    jobs.push(job)
    await expect(job.ended).rejects.toBe(error)
  })
})

test('the environment and the folder of a process', async () => {
  const cwd = temporary()
  process.env.PMIX_RANK = 'of another launcher'
  const { textOf } = await shell('echo "$PWD $A $PMI_RANK $PMI_SIZE $MPI_LOCALRANKID $MPI_LOCALNRANKS [$PMIX_RANK]"', {
    processes: 2,
    env: { A: 'b c' },
    cwd,
  })
  delete process.env.PMIX_RANK
  expect([textOf(0), textOf(1)]).toEqual([[`${cwd} b c 0 2 0 2 []`], [`${cwd} b c 1 2 1 2 []`]])
})

test('only rank 0 reads the standard input', async () => {
  const { textOf } = await shell('[ $PMI_RANK = 0 ] || cat; echo end', { processes: 2 })
  expect(textOf(1)).toEqual(['end'])
})

test('a program that cannot be started is a FILE_SYSTEM error', async () => {
  const job = launch('no such program', [], { processes: 2 })
  jobs.push(job)
  await expect(job.ended).rejects.toThrow(
    expect.objectContaining({
      code: 'FILE_SYSTEM',
      message: '[launch] cannot start "no such program": spawn no such program ENOENT',
    }),
  )
})

test.each<[string, unknown[]]>([
  ['program must be a string without zero bytes, got 3', [3, [], { processes: 1 }]],
  ['program must be the name of a program, got ""', ['', [], { processes: 1 }]],
  ['args must be an array, got "-e"', ['sh', '-e', { processes: 1 }]],
  ['args[1] must be a string without zero bytes, got "a\\u0000"', ['sh', ['-c', 'a\0'], { processes: 1 }]],
  ['processes must be an integer from 1 to 1024, got undefined', ['sh', []]],
  ['processes must be an integer from 1 to 1024, got 0', ['sh', [], { processes: 0 }]],
  ['processes must be an integer from 1 to 1024, got 1025', ['sh', [], { processes: 1025 }]],
  ['grace must be a finite number from 0 to 2147483647, got -1', ['sh', [], { processes: 1, grace: -1 }]],
  ['env must be a plain object, got 3', ['sh', [], { processes: 1, env: 3 }]],
  ['env.A must be a string without zero bytes, got 3', ['sh', [], { processes: 1, env: { A: 3 } }]],
  ['path must be a file name, got ""', ['sh', [], { processes: 1, cwd: '' }]],
  ['onLine must be a function, got "x"', ['sh', [], { processes: 1, onLine: 'x' }]],
  ['unknown option "process"; did you mean \'processes\'?', ['sh', [], { process: 1 }]],
])('bad input: %s', (message, args) => {
  const call = () => (launch as (...args: unknown[]) => Job)(...args)
  expect(call).toThrow(message)
  expect(codeOf(call)).toBe('OPTION')
})

test('an unknown signal is an OPTION error', async () => {
  const job = launch('sleep', ['1000'], { processes: 1 })
  jobs.push(job)
  expect(() => job.kill('SIGNONE')).toThrow('[Job.kill] signal must be the name of a signal, got "SIGNONE"')
  job.kill('SIGKILL')
  expect((await job.ended).exitCode).toBe(137)
})

test('on Windows the error says that there are no process groups', () => {
  const { platform } = process
  Object.defineProperty(process, 'platform', { value: 'win32' })
  try {
    const start = () => launch('node', ['a.js'], { processes: 4 })
    expect(start).toThrow('[launch] process groups are not available on Windows in this version')
    expect(start).toThrow(MoeError)
    expect(codeOf(start)).toBe('UNSUPPORTED')
  } finally {
    Object.defineProperty(process, 'platform', { value: platform })
  }
})

test('lines go to standard output and error, with the rank in front', async () => {
  const script = `
    import { launch } from ${JSON.stringify(new URL('../../lib/distributed/launch.ts', import.meta.url).href)}
    const job = launch('sh', ['-c', 'echo out; echo err >&2; exit 1'], { processes: 11, grace: 0 })
    await job.ended`
  const { lines } = await run(process.execPath, ['--import', 'tsx', '--input-type=module', '-e', script], {
    processes: 1,
    cwd: join(fileURLToPath(new URL('../..', import.meta.url))),
  })
  const of = (name: string) => lines.filter(({ stream }) => stream === name).map(({ text }) => text)
  expect(of('stdout')).toContain('[ 3] out')
  expect(of('stderr')).toContain('[10] err')
  expect(of('stderr').filter((text) => /^launch: rank \d+ \(process \d+\) ended with code 1$/.test(text))).toHaveLength(
    1,
  )
})
