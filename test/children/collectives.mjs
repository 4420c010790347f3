// A rank of a job that tries the collectives. Prints one line of JSON: how many things were tried, and what was wrong.
import { once } from 'node:events'
import { writeSync } from 'node:fs'
import { parentPort, Worker } from 'node:worker_threads'
import {
  captureStep,
  initProcessGroup,
  memory,
  noGrad,
  ops,
  Parameter,
  SGD,
  scope,
  setNumThreads,
  tensor,
  trainStepAsync,
  zeros,
} from '../../dist/index.js'

const [what, ...rest] = process.argv.slice(2)
const wrong = []
let tried = 0
const say = (value) => writeSync(1, `${JSON.stringify(value)}\n`)
const sleep = (ms) => Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, ms)

function failure(fn) {
  try {
    fn()
    return {}
  } catch (error) {
    return { code: error.code, message: error.message }
  }
}

function same(name, got, wanted) {
  tried++
  const [a, b] = [Array.from(got), Array.from(wanted)]
  const at = a.findIndex((value, i) => !Object.is(value, b[i]))
  if (a.length !== b.length || at >= 0)
    wrong.push(`${name}: ${a.length} and ${b.length}, at ${at}: ${a[at]}, wanted ${b[at]}`)
}

function near(name, got, wanted, limit) {
  tried++
  let [difference, norm] = [0, 0]
  for (const [i, value] of Array.from(wanted).entries()) {
    difference += (got[i] - value) ** 2
    norm += value ** 2
  }
  if (got.length !== wanted.length || !(Math.sqrt(difference) <= limit * Math.sqrt(norm)))
    wrong.push(`${name}: ${got.length} and ${wanted.length}, error ${Math.sqrt(difference / norm)}`)
}

/** What rank r has at i: any rank knows it of the others. */
const number = (r, i) => Math.sin(1 + 12.9898 * i + 78.233 * r) * 10 ** ((i * 7 + r) % 5)
const rounders = { f64: (x) => x, f32: Math.fround, i32: (x) => Math.trunc(x) | 0 }
const rounded = (dtype, x) => (rounders[dtype] ? rounders[dtype](x) : roundedTo(dtype, x))
const roundedTo = (dtype, x) => scope(() => tensor([x]).to(dtype).to('f32').dataSync()[0])
const of = (dtype, r, shape, shift = 0) => {
  const size = shape.reduce((a, b) => a * b, 1)
  const values = Float64Array.from({ length: size }, (_, i) => number(r, i + shift))
  return tensor(values, shape).to(dtype)
}
const values = (x) => (x.dtype === 'bf16' || x.dtype === 'f16' ? x.to('f32') : x).dataSync()
/** The sum in the order of the ranks, as it is added: bf16 and f16 in float32, rounded once. */
function sumOf(dtype, lists) {
  const step = dtype === 'f64' ? (x) => x : dtype === 'i32' ? (x) => x | 0 : Math.fround
  return lists[0].map((first, i) =>
    rounded(
      dtype,
      lists.slice(1).reduce((sum, list) => step(sum + list[i]), first),
    ),
  )
}
const before = (list, r) => list.slice(0, r).reduce((a, b) => a + b, 0)
const range = (n, f) => Array.from({ length: n }, (_, i) => f(i))

function allValues() {
  const group = initProcessGroup({ debug: rest[0] === 'debug' })
  const { rank, size: R } = group
  for (const dtype of ['f32', 'f64', 'i32', 'bf16', 'f16'])
    for (const size of dtype === 'bf16' || dtype === 'f16' ? [0, 7, 9000] : [0, 1, 5, 1000, 40_001])
      scope(() => {
        const lists = range(R, (r) => Array.from(values(of(dtype, r, [size]))))
        const x = of(dtype, rank, [size])
        const name = `${dtype} [${size}]`
        const whole = values(ops.allReduce(x, group))
        same(`allReduce ${name}`, whole, size ? sumOf(dtype, lists) : [])
        const each = (f) => (size ? lists[0].map((_, i) => f(...lists.map((list) => list[i]))) : [])
        same(`allReduce max ${name}`, values(ops.allReduce(x, group, { op: 'max' })), each(Math.max))
        same(`allReduce min ${name}`, values(ops.allReduce(x, group, { op: 'min' })), each(Math.min))
        same(`broadcast ${name}`, values(ops.broadcast(x, group, { root: R - 1 })), lists[R - 1])
        // Rows of 3, 5 of them more at each rank; the first has none where there are several.
        const rows = range(R, (r) => (R > 1 && r === 0 ? 0 : (r + 1) * Math.min(size, 50)))
        const inner = size % 2 ? [3] : [3, 1]
        const own = of(dtype, rank, [rows[rank], ...inner])
        const all = ops.allGather(own, group, { splits: rows })
        same(`allGather shape ${name}`, all.shape, [before(rows, R), ...inner])
        same(`allGather ${name}`, values(all), range(R, (r) => Array.from(values(of(dtype, r, [rows[r], 3])))).flat())
        const added = values(ops.reduceScatter(of(dtype, rank, [before(rows, R), ...inner]), group, { splits: rows }))
        const parts = range(R, (r) => Array.from(values(of(dtype, r, [before(rows, R) * 3]))))
        const wanted = parts[0].length ? sumOf(dtype, parts) : []
        same(`reduceScatter ${name}`, added, wanted.slice(before(rows, rank) * 3, before(rows, rank + 1) * 3))
        // Rank r sends (r + 2·q) mod 4 times some rows to rank q.
        const sent = (r) => range(R, (q) => ((r + 2 * q) % 4) * Math.min(size, 30))
        const total = (list) => before(list, R)
        const mine = of(dtype, rank, [total(sent(rank)), ...inner])
        const options = { splits: sent(rank), outputSplits: range(R, (r) => sent(r)[rank]) }
        const come = ops.allToAll(mine, group, rest[0] === 'asked' ? { splits: options.splits } : options)
        const expected = range(R, (r) => {
          const list = Array.from(values(of(dtype, r, [total(sent(r)) * 3])))
          return list.slice(before(sent(r), rank) * 3, before(sent(r), rank + 1) * 3)
        })
        same(`allToAll ${name}`, values(come), expected.flat())
        if (R > 1) {
          const [to, from] = [(rank + 1) % R, (rank + R - 1) % R]
          const receive = () => values(ops.recv([size, 1], group, { from, dtype }))
          const got = rank % 2 ? receive() : null
          same(`send ${name}`, values(ops.send(of(dtype, rank, [size, 1]), group, { to })), [0])
          same(`recv ${name}`, got ?? receive(), lists[from])
        }
      })
  const special = ops.allReduce(tensor([rank === 0 ? Number.NaN : 1, rank]), group, { op: 'max' })
  same('NaN is the largest', special.dataSync(), [Number.NaN, R - 1])
  const least = ops.allReduce(tensor([rank === 0 ? Number.NaN : 1, rank]), group, { op: 'min' })
  same('allReduce min of NaN', least.dataSync(), [Number.NaN, 0])
  const wraps = ops.allReduce(tensor(Int32Array.of(2 ** 31 - 1)), group)
  same('i32 wraps around', wraps.dataSync(), [Math.imul(R, 2 ** 31 - 1)])
  group.destroy()
}

/** Gradients of the sum of all ranks' losses, Σ weights · result, against what they are by hand. */
function gradients() {
  const group = initProcessGroup()
  const { rank, size: R } = group
  const weights = (r, n, shift = 500) => Array.from(of('f64', r, [n], shift).dataSync())
  const gradient = (x, y) => {
    y.mul(of(y.dtype, rank, y.shape, 500))
      .sum()
      .backward()
    return x.grad.dataSync()
  }
  for (const dtype of ['f64', 'f32'])
    for (const n of [2 * R, 20_000 * R]) {
      const limit = dtype === 'f64' ? 1e-14 : 1e-6
      const leaf = (shape) => {
        const x = of(dtype, rank, shape)
        x.requiresGrad = true
        return x
      }
      const sums = range(n, (i) => range(R, (r) => number(r, i + 500)).reduce((a, b) => a + b, 0))
      const name = `${dtype} [${n}]`
      const x = leaf([n])
      near(`allReduce ${name}`, gradient(x, ops.allReduce(x, group)), sums, limit)
      const z = leaf([n])
      near(
        `broadcast ${name}`,
        gradient(z, ops.broadcast(z, group, { root: R - 1 })),
        rank === R - 1 ? sums : sums.map(() => 0),
        limit,
      )
      const rows = range(R, (r) => (r === R - 1 ? n - (R - 1) : 1))
      const own = leaf([rows[rank], 2])
      const gathered = range(2 * n, (i) => range(R, (r) => number(r, i + 500)).reduce((a, b) => a + b, 0))
      near(
        `allGather ${name}`,
        gradient(own, ops.allGather(own, group, { splits: rows })),
        gathered.slice(2 * before(rows, rank), 2 * before(rows, rank + 1)),
        limit,
      )
      const wide = leaf([n, 2])
      near(
        `reduceScatter ${name}`,
        gradient(wide, ops.reduceScatter(wide, group, { splits: rows })),
        range(R, (r) => weights(r, 2 * rows[r])).flat(),
        limit,
      )
      // Every rank sends rows[q] rows to rank q, which gives them weights in the order of their coming.
      const sent = leaf([n, 2])
      const given = range(R, (q) => {
        const list = weights(q, 2 * rows[q] * R)
        return list.slice(2 * rows[q] * rank, 2 * rows[q] * (rank + 1))
      })
      near(
        `allToAll ${name}`,
        gradient(sent, ops.allToAll(sent, group, { splits: rows, outputSplits: range(R, () => rows[rank]) })),
        given.flat(),
        limit,
      )
      if (R > 1 && rank < 2) {
        const to = leaf([n])
        if (rank === 0) {
          ops.send(to.mul(3), group, { to: 1 }).backward()
          near(
            `send ${name}`,
            to.grad.dataSync(),
            weights(1, n).map((w) => 3 * w),
            limit,
          )
        } else {
          const got = ops.recv([n], group, { from: 0, dtype })
          got
            .mul(of(dtype, 1, [n], 500))
            .sum()
            .backward()
          near(`recv ${name}`, got.dataSync(), of(dtype, 0, [n]).mul(3).dataSync(), limit)
        }
      }
    }
  // A rank whose input needs no gradient, and one whose result is in no loss but that of a later exchange, take part.
  const x = tensor([1 + rank, 2], null, { requiresGrad: rank === 0 })
  const y = ops.allReduce(ops.allReduce(x, group).mul(rank + 1), group)
  y.sum().backward()
  const factor = (R * (R + 1)) / 2
  if (rank === 0) same('a gradient through two exchanges', x.grad.dataSync(), [R * factor, R * factor])
  same('none where none is needed', [x.grad === null], [rank !== 0])
  same('no tape without gradients', [noGrad(() => ops.allReduce(tensor([1]), group)).requiresGrad], [false])
  group.destroy()
}

/** Steps in which the gradients of all ranks add up: at once, in asynchronous calls and captured, on any number of threads. */
async function steps() {
  const group = initProcessGroup()
  const { rank, size: R } = group
  const first = values(of('f32', 7, [40, 500])).map((value) => value / 1000)
  const run = async (how, threads) => {
    setNumThreads(threads)
    const w = new Parameter(tensor(first, [40, 500]))
    const optimizer = new SGD([w], { lr: 1e-5, momentum: 0.9 })
    const x = of('f32', rank, [8, 40])
    const step = () => {
      optimizer.zeroGrad()
      const y = x.matmul(ops.allReduce(w, group).mul(1 / R)) // w has the sum of all gradients
      const rows = range(R, (r) => (r === 0 ? 8 : 0)) // all to rank 0
      const come = ops.allToAll(y, group, { splits: rows, outputSplits: range(R, () => rows[rank]) })
      come.square().sum().mul(1e-6).backward()
      optimizer.step()
    }
    const captured = how === 'captured' && captureStep(step)
    for (let i = 0; i < 3; i++)
      if (captured) captured.replay()
      else if (how === 'at once') scope(step)
      else await trainStepAsync(step)
    return Array.from(w.dataSync())
  }
  const wanted = await run('at once', 1)
  same('the weights have changed', [wanted.some((value, i) => value !== first[i])], [true])
  for (const [how, threads] of [
    ['at once', 2],
    ['asynchronous', 1],
    ['captured', 1],
    ['captured', 2],
  ])
    same(`${how}, ${threads} threads`, await run(how, threads), wanted)
  say({ weights: wanted.slice(0, 8) })
  group.destroy()
}

const exchanges = {
  barrier: (group) => group.barrier(),
  allReduce: (group, x) => ops.allReduce(x, group),
  allGather: (group, x) => ops.allGather(x, group),
  reduceScatter: (group, x) => ops.reduceScatter(x, group),
  allToAll: (group, x) => ops.allToAll(x, group),
  broadcast: (group, x) => ops.broadcast(x, group, { root: group.size - 1 }),
  send: (group, x) => {
    // In a ring, so that every rank waits for the one that is lost, or for one that does.
    const [to, from] = [(group.rank + 1) % group.size, (group.rank + group.size - 1) % group.size]
    if (group.rank % 2) ops.recv(x.shape, group, { from })
    ops.send(x, group, { to })
    if (group.rank % 2 === 0) ops.recv(x.shape, group, { from })
  },
}
exchanges.recv = exchanges.send

/** One rank ends, or stops, while the others are in an exchange: what they get, and that the memory is still there. */
async function lose() {
  const [name, signal, victim, elements, how] = rest
  const group = initProcessGroup({ timeout: signal === 'SIGSTOP' ? 2000 : 600_000 })
  const x = of('f32', group.rank, [Number(elements)])
  const run = () => scope(() => exchanges[name](group, x))
  run()
  if (group.rank === Number(victim)) {
    sleep(50)
    process.kill(process.pid, signal)
    sleep(500)
  }
  const w = new Parameter(tensor([1, 2]))
  const optimizer = new SGD([w], { lr: 1 })
  const step = () => {
    optimizer.zeroGrad()
    w.sum().backward()
    exchanges[name](group, x)
    optimizer.step()
  }
  const began = performance.now()
  let found = {}
  try {
    for (;;)
      if (how === 'asynchronous') await trainStepAsync(step)
      else scope(step)
  } catch (error) {
    found = { code: error.code, message: error.message }
  }
  const ms = Math.round(performance.now() - began)
  // What is freed and taken now must not be what the library still writes to.
  scope(() => range(20, () => zeros([Number(elements)])))
  const again = failure(run).code
  const { bytes } = memory()
  x.dispose()
  say({ ...found, ms, changed: Array.from(w.dataSync()), again, isKept: memory().bytes === bytes })
  process.exit(7)
}

/** Calls that differ between two ranks, each after one that does not if `mode` is "later". */
function disagree() {
  const [name, mode] = rest
  const group = initProcessGroup({ timeout: 2000, debug: mode === 'debug' })
  const odd = group.rank === 1
  const x = (n, dtype = 'f32') => of(dtype, 0, [n])
  const calls = {
    sizes: () => ops.allReduce(x(odd ? 5 : 4), group),
    dtypes: () => ops.allReduce(x(4, odd ? 'f64' : 'f32'), group),
    reductions: () => ops.allReduce(x(4), group, { op: odd ? 'max' : 'sum' }),
    roots: () => ops.broadcast(x(4), group, { root: odd ? 1 : 0 }),
    ops: () => (odd ? ops.allGather(x(4), group) : ops.allToAll(x(4), group)),
    rows: () => ops.allGather(x(odd ? 5 : 4), group),
    splits: () => ops.allToAll(x(odd ? 3 : 4), group, { splits: odd ? [1, 2] : [2, 2], outputSplits: [2, 2] }),
    messages: () => {
      if (odd) return ops.recv([3], group, { from: 0 })
      ops.send(x(4), group, { to: 1 })
      group.barrier() // stays until the other rank has received it
    },
  }
  if (mode !== 'first') ops.allToAll(x(4), group, { splits: [2, 2], outputSplits: [2, 2] })
  const began = performance.now()
  say({ ...failure(calls[name]), ms: Math.round(performance.now() - began) })
  process.exit(7)
}

/** What is wrong on one rank is an error there before anything is sent. */
async function mistakes() {
  const group = initProcessGroup({ timeout: 1000 })
  const other = group.newGroup([1, 0])
  const worker = new Worker(new URL(import.meta.url), { argv: ['worker'] })
  const [answer] = await once(worker, 'message')
  const errors = [
    failure(() => ops.allToAll(zeros([3]), group)),
    failure(() => ops.allToAll(zeros([3]), group, { splits: [1, 1] })),
    failure(() => ops.allGather(zeros([3]), group, { splits: [4, 4] })),
    failure(() => ops.send(zeros([3]), group, { to: group.rank })),
    failure(() => ops.broadcast(zeros([3]), group, { root: 2 })),
    answer,
  ]
  other.destroy()
  errors.push(failure(() => ops.allReduce(zeros([3]), other)))
  group.barrier() // nothing was sent
  const step = captureStep(() => ops.allReduce(zeros([1]), group))
  step.replay()
  group.destroy()
  say({ errors, late: failure(() => step.replay()) })
}

const all = { values: allValues, gradients, steps, lose, disagree, mistakes }
if (what === 'worker') parentPort.postMessage(failure(() => initProcessGroup()))
else {
  await all[what]()
  say({ tried, wrong })
}
