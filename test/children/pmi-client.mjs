// A process of a job that speaks to the launcher as an MPI library does. The first argument says what it does, the second
// in which rank.
import { writeSync } from 'node:fs'
import { Socket } from 'node:net'

const [what, where] = process.argv.slice(2)
const { PMI_FD, PMI_RANK, PMI_SIZE } = process.env
const [rank, size] = [Number(PMI_RANK), Number(PMI_SIZE)]
const isHere = where === undefined || rank === Number(where)
const say = (text) => writeSync(1, `${text}\n`)

const socket = new Socket({ fd: Number(PMI_FD) })
let rest = ''
const answers = []
const readers = []
socket.setEncoding('latin1')
socket.on('error', () => {})
socket.on('data', (text) => {
  const lines = `${rest}${text}`.split('\n')
  rest = lines.pop()
  for (const line of lines) readers.length > 0 ? readers.shift()(line) : answers.push(line)
})
const answer = () => (answers.length > 0 ? answers.shift() : new Promise((resolve) => readers.push(resolve)))
const ask = (request) => {
  socket.write(`cmd=${request}\n`)
  return answer()
}
const forever = () => new Promise(() => setInterval(() => {}, 1000))

/** What libraries do from MPI_Init to MPI_Finalize: tell the others an address, and learn theirs. */
async function exchange() {
  say(await ask('init pmi_version=1 pmi_subversion=1'))
  say(await ask('get_maxes'))
  say(await ask('get_appnum'))
  const name = /kvsname=(.*) rc=0$/.exec(await ask('get_my_kvsname'))[1]
  say(`job ${name}`)
  say(await ask('get_universe_size'))
  say(await ask(`get kvsname=${name} key=PMI_process_mapping`))
  say(await ask(`get kvsname=${name} key=nothing`))
  say(await ask(`put kvsname=${name} key=address-${rank} value=host ${rank} port=${1000 + rank}`))
  say(await ask('barrier_in'))
  const half = `get kvsname=${name}` // a request may arrive in pieces
  for (let other = 0; other < size; other++) {
    socket.write(`cmd=${half}`)
    await new Promise((resolve) => setTimeout(resolve, 5))
    socket.write(` key=address-${other}\n`)
    say(await answer())
  }
  say(await ask('spawn nprocs=1'))
  say(await ask('lookup_name service=x'))
  say(await ask('finalize'))
}

/** The shared memory of MPICH, which a killed process leaves. */
async function leaveMemory() {
  const { writeFileSync } = await import('node:fs')
  const name = /kvsname=(.*) rc=0$/.exec(await ask('get_my_kvsname'))[1]
  let hash = 2166136261n
  for (const byte of Buffer.from(name)) hash = ((hash ^ BigInt(byte)) * 16777619n) % 2n ** 32n
  const file = `/dev/shm/mpich_shm_${hash.toString(16)}_${rank}`
  const ofIntel = `/dev/shm/Intel_MPI_test${process.pid}`
  await ask(`put kvsname=${name} key=-bcast-${rank} value=${Buffer.from(`${ofIntel}\0`).toString('hex').toUpperCase()}`)
  for (const path of [file, ofIntel]) {
    writeFileSync(path, '')
    say(path)
  }
  await ask('barrier_in')
  process.kill(process.pid, 'SIGKILL')
}

const inOneRank = async (text) => {
  if (isHere) socket.write(text)
  await forever()
}

const actions = {
  exchange,
  'leave-memory': leaveMemory,
  abort: () => inOneRank('cmd=abort exitcode=7 error_msg=out of patience\n'),
  'abort-0': () => inOneRank('cmd=abort exitcode=0 error_msg=\n'),
  garbage: () => inOneRank('cmd=make_coffee\n'),
  endless: () => inOneRank('x'.repeat(100_000)),
  'leave-early': async () => isHere || (await ask('barrier_in')),
}
await actions[what]()
socket.destroy()
