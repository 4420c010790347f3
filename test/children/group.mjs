// A process of a job. The first argument says what it does, others where. Prints lines of JSON.
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, readFileSync, writeFileSync, writeSync } from 'node:fs'
import { connect, createServer } from 'node:net'
import { join } from 'node:path'
import { Worker } from 'node:worker_threads'
import { getNumThreads, initProcessGroup, ops, processBackends, tensor } from '../../dist/index.js'

const [what, where, folder] = process.argv.slice(2)
const say = (value) => writeSync(1, `${JSON.stringify(value)}\n`)
const sleep = (ms) => Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, ms)

/** The error of a call: its code and text. */
function failure(fn) {
  try {
    return { result: fn() ?? null }
  } catch (error) {
    return { code: error.code, message: error.message }
  }
}

const handled = () => /^SigCgt:\s+(\w+)/m.exec(readFileSync('/proc/self/status', 'utf8'))[1]

/** Names of shared memory of MPICH that would be left if this process were killed now. */
const leftNames = () =>
  readFileSync('/proc/self/maps', 'utf8')
    .split('\n')
    .filter((line) => line.includes('/dev/shm/mpich_shm_') && !line.endsWith('(deleted)'))

function facts() {
  const before = process.platform === 'linux' && handled()
  const group = initProcessGroup()
  const { rank, size, localRank, localSize, timeout } = group
  const kept = process.platform !== 'linux' || (handled() === before && leftNames().length === 0)
  say({ rank, size, localRank, localSize, timeout, threads: getNumThreads(), kept, hooks: process.env.UCX_MEM_EVENTS })
  say(processBackends())
  group.destroy()
  say(failure(() => group.barrier()))
  group.destroy()
  say(failure(() => initProcessGroup()))
}

/** After each barrier, what every member wrote before it is there. */
function meet(group, name) {
  for (let turn = 0; turn < 5; turn++) {
    if (turn === group.rank) sleep(20)
    writeFileSync(join(folder, `${name}-${turn}-${group.rank}`), '')
    group.barrier()
    for (let rank = 0; rank < group.size; rank++)
      if (!existsSync(join(folder, `${name}-${turn}-${rank}`)))
        throw new Error(`${name}: a barrier let rank ${rank} wait`)
  }
}

function groups() {
  const all = initProcessGroup({ debug: where === 'debug' })
  meet(all, 'all')
  const { expertParallel, expertDataParallel } = all.split({ expertParallel: 2 })
  meet(expertParallel, `near-${Math.floor(all.rank / 2)}`)
  meet(expertDataParallel, `far-${all.rank % 2}`)
  const some = all.newGroup([3, 0, 1])
  if (some) meet(some, 'some')
  const alone = some?.newGroup([2])
  alone?.barrier()
  const of = (group) => group && [group.rank, group.size, group.localRank, group.localSize]
  say({ rank: all.rank, near: of(expertParallel), far: of(expertDataParallel), some: of(some), alone: of(alone) })
  some?.destroy()
  say(failure(() => some?.barrier()))
  all.barrier()
  all.destroy()
}

/** Rank 1 waits for rank 2 in a group of a group, rank 3 for all, after the ranks have waited long for rank 0. */
function missing() {
  const group = initProcessGroup({ timeout: 4000 })
  const { rank } = group
  const all = group.newGroup([3, 2, 1, 0])
  const pair = group.newGroup([3, 2, 1])?.newGroup([1, 2])
  if (rank === 0) sleep(1500)
  all.barrier()
  if (rank % 2 === 0) {
    say({ message: '' })
    sleep(8000)
  } else say(failure(() => (rank === 1 ? pair : all).barrier()))
  process.exit(3)
}

/**
 * Rank 2 does not come to a broadcast that reaches rank 3 through it, so that the last two wait at different calls: 3 there,
 * 0 and 1 in a barrier behind it.
 */
function between() {
  const group = initProcessGroup({ timeout: 4000 })
  const broadcast = () => ops.broadcast(tensor([1, 2]), group, { root: 0 })
  broadcast() // the first is compared
  group.barrier()
  if (group.rank === 2) {
    say({ message: '' })
    sleep(8000)
  } else say(failure(() => [broadcast(), group.barrier()][1]))
  process.exit(3)
}

/** After the start nobody asks the launcher which processes have ended: its socket says here that it has itself. */
async function told() {
  const group = initProcessGroup()
  const server = createServer({ allowHalfOpen: true }).listen(0, '127.0.0.1')
  await once(server, 'listening')
  const socket = connect({ port: server.address().port, host: '127.0.0.1', allowHalfOpen: true }).pause()
  const [other] = await once(server, 'connection')
  await new Promise((resolve) => other.end(resolve))
  process.env.ST_MOE_ENDED_FD = String(socket._handle.fd)
  say(failure(() => group.barrier()))
  group.destroy()
  for (const each of [socket, other]) each.destroy()
  server.close()
}

/** A call that the ranks make differently; then another one. */
function disagree() {
  const rank = Number(process.env.PMI_RANK)
  const calls = {
    options: () => initProcessGroup({ timeout: 10_000 + rank }),
    lists: () => initProcessGroup().newGroup(rank === 1 ? [0] : [0, 1]),
    sizes: () => initProcessGroup().split({ expertParallel: rank === 1 ? 1 : 2 }),
    methods: () => {
      const group = initProcessGroup({ debug: true })
      return rank === 1 ? group.newGroup([0]) : group.barrier()
    },
    late: () => {
      const group = initProcessGroup({ timeout: 5000 })
      if (rank === 1) sleep(7000)
      group.barrier()
    },
  }
  say(failure(calls[where]))
  say(failure(() => initProcessGroup()))
  process.exit(3)
}

/** One rank ends, or stops, while the others are in a barrier. */
async function lose() {
  const [signal, victim] = where.split(':')
  const group = initProcessGroup({ timeout: signal === 'SIGSTOP' ? 5000 : 600_000 })
  group.barrier()
  if (group.rank === Number(victim)) {
    sleep(100)
    if (signal === 'exit') process.exit(0)
    if (signal !== 'launcher') process.kill(process.pid, signal)
    else process.kill(process.ppid, 'SIGKILL')
    sleep(500)
  }
  const began = performance.now()
  const first = failure(() => group.barrier())
  const ms = Math.round(performance.now() - began)
  if (folder) writeFileSync(join(folder, `${group.rank}`), JSON.stringify(first)) // nobody may read the output
  say({ rank: group.rank, ...first, ms })
  say({
    rank: group.rank,
    again: [failure(() => group.barrier()), failure(() => group.newGroup([0])), failure(() => group.destroy())],
  })
  process.exit(5)
}

/** Rank 2 is killed after so many milliseconds, in the start or after it. */
function startKilled() {
  if (process.env.PMI_RANK === '2')
    spawn('sh', ['-c', `sleep ${where / 1000}; kill -KILL ${process.pid}`], { stdio: 'ignore' })
  const error = failure(() => {
    const group = initProcessGroup({ timeout: 60_000 })
    for (;;) group.barrier()
  })
  say(error)
  process.exit(5)
}

/** Rank 2 ends, or stops, before it comes. */
function start() {
  if (process.env.PMI_RANK === '2') process.kill(process.pid, where)
  say(failure(() => initProcessGroup({ timeout: 3000 })))
  sleep(1000) // the end of this process is no news for the others
  process.exit(5)
}

/** A worker has the group, or wants it as well. */
async function workers() {
  const inWorker = (code) =>
    new Promise((resolve) => {
      const url = new URL('../../dist/index.js', import.meta.url).href
      const worker = new Worker(
        `import('${url}').then(({ initProcessGroup }) => {
          const { parentPort } = require('node:worker_threads')
          try { const group = initProcessGroup(); ${code}; parentPort.postMessage({ rank: group.rank }) }
          catch (error) { parentPort.postMessage({ code: error.code, message: error.message }) }
        })`,
        { eval: true },
      )
      worker.once('message', async (message) => resolve([message, await worker.terminate()][0]))
    })
  if (where === 'second') {
    const group = initProcessGroup()
    say(await inWorker(''))
    group.barrier()
    group.destroy()
  } else {
    say(await inWorker('group.barrier()'))
    say(failure(() => initProcessGroup()))
    process.exit(0)
  }
}

await { facts, groups, missing, between, told, disagree, lose, start, startKilled, workers }[what]()
