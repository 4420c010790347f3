// Imported before a program: a signal, by default SIGKILL, as the n-th call of one of `places` begins, in whichever thread.
// KILL_AT says which: 'step 57', 'rename 3', 'step 30 SIGTERM'; '' for none. When the program ends by itself afterwards,
// prints how many calls it has made since, and when the signal was.
import fs from 'node:fs'
import { syncBuiltinESMExports } from 'node:module'
import { AdamW, MoE } from '../../dist/index.js'

const places = {
  step: [AdamW.prototype, 'step'],
  gradient: [MoE.prototype, 'forwardWithGrad'],
  rename: [fs, 'rename'],
  renameSync: [fs, 'renameSync'],
}
const [name, count, signal = 'SIGKILL'] = process.env.KILL_AT.split(' ')
const [object, property] = places[name || 'step']
const call = object[property]
let left = Number(count)
object[property] = function (...args) {
  if (--left === 0) {
    const now = Date.now()
    process.once('exit', () => fs.writeSync(2, `${-left} calls since the signal at ${now}\n`))
    process.kill(process.pid, signal)
  }
  return call.apply(this, args)
}
syncBuiltinESMExports()
