import { cpSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { Failure, UsageError } from '../../cli/errors.js'
import { loadModel, promptFor } from '../../cli/trainer/load.js'
import { Run } from '../../cli/trainer/run.js'
import { readRun } from '../../cli/trainer/saved-run.js'
import { nothing, partOf } from '../../cli/ui/feed.js'
import { savedRun } from '../../cli/ui/saved.js'
import { visibleName } from '../../cli/visible.js'
import { MoeError, memory } from '../../lib/index.js'
import { editCheckpoint } from './checkpoint-file.js'
import { damageBytes, damageHeader, damageJson, damageMetadata } from './damage.js'
import type { Draw } from './numbers.js'

/** What happened with damaged copies of a run. */
export interface Outcomes {
  /** Answers by command. */
  worked: Record<string, number>
  refused: Record<string, number>
  /** Anything but an answer: raw exceptions, more than one line, more than two seconds, what was not freed. */
  wrong: string[]
  slowest: number
}

const damages: Record<string, (draw: Draw, folder: string) => void> = {
  'run.json': (draw, folder) =>
    change(draw, join(folder, 'run.json'), (text) => Buffer.from(damageJson(draw, String(text)))),
  'bytes of run.json': (draw, folder) => change(draw, join(folder, 'run.json'), (bytes) => damageBytes(draw, bytes)),
  history: (draw, folder) =>
    editCheckpoint(checkpointIn(folder), (about) => repeated(draw, about, (text) => damageJson(draw, text))),
  'numbers of the history': (draw, folder) =>
    editCheckpoint(checkpointIn(folder), (about) => repeated(draw, about, (text) => otherNumber(draw, text))),
  metadata: (draw, folder) => change(draw, checkpointIn(folder), (bytes) => damageMetadata(draw, bytes)),
  header: (draw, folder) => change(draw, checkpointIn(folder), (bytes) => damageHeader(draw, bytes)),
  'bytes of the checkpoint': (draw, folder) => change(draw, checkpointIn(folder), (bytes) => damageBytes(draw, bytes)),
}

/** A number replaced by another that may be as good. */
function otherNumber(draw: Draw, text: string): string {
  const { 0: old, index } = draw.of([...text.matchAll(/(?<=[[,:])[\d.e+-]+(?=[\],}])/g)])
  const other = draw.of([String(draw.next()), String(draw.integer(0, 20)), String(10 ** draw.between(-300, 300)), '0'])
  return text.slice(0, index) + other + text.slice(index + old.length)
}

const checkpointIn = (folder: string): string => join(folder, 'checkpoint.safetensors')

function repeated<T>(draw: Draw, value: T, damage: (value: T) => T): T {
  let changed = value
  for (let changes = draw.of([1, 1, 1, 2, 3]); changes > 0; changes--) changed = damage(changed)
  return changed
}

function change(draw: Draw, file: string, damage: (bytes: Buffer) => Buffer): void {
  writeFileSync(file, repeated<Buffer>(draw, readFileSync(file), damage))
}

const commands: Record<string, (folder: string) => Promise<void>> = {
  /** As far as the first step: what that takes is what the flags ask for. */
  async resume(folder) {
    const resumed = readRun(folder)
    const { options, text } = resumed
    using run = await Run.open({ options: { ...options, minutes: 0 }, text, out: folder, report: () => {}, resumed })
    await run.resume()
    await run.train(() => true)
  },
  async generate(folder) {
    using model = await loadModel(folder, { device: 'cpu', threads: 1 })
    for await (const _ of model.generate(promptFor(model, null), { maxTokens: 2 }));
  },
  async show(folder) {
    const { history, status } = await savedRun(folder)
    partOf(history, nothing, 0, status)
  },
}

/** Damages copies of the run in `whole`, one after another, and runs all commands on each. */
export async function tryDamagedRuns(draw: Draw, whole: string, copy: string, count: number): Promise<Outcomes> {
  const outcomes: Outcomes = { worked: {}, refused: {}, wrong: [], slowest: 0 }
  const names = Object.keys(damages)
  for (let i = 0; i < count; i++) {
    rmSync(copy, { recursive: true, force: true })
    cpSync(whole, copy, { recursive: true })
    const damage = names[i % names.length]
    damages[damage](draw, copy)
    for (const [command, run] of Object.entries(commands)) await answer(`${command}, ${damage} ${i}`, command, run)
  }
  return outcomes

  async function answer(what: string, command: string, run: (folder: string) => Promise<void>): Promise<void> {
    const { tensors } = memory()
    const files = readdirSync(copy).length
    const begin = process.cpuUsage()
    try {
      await run(copy)
      outcomes.worked[command] = (outcomes.worked[command] ?? 0) + 1
    } catch (error) {
      const { message, stack, syscall } = error as NodeJS.ErrnoException
      const described = error instanceof Failure || error instanceof UsageError || error instanceof MoeError || syscall
      if (!described) outcomes.wrong.push(`${what}: ${stack}`)
      else if (error instanceof MoeError && visibleName(message).includes('\\n'))
        outcomes.wrong.push(`${what}: ${message}`)
      if (readdirSync(copy).length !== files) outcomes.wrong.push(`${what}: files left`)
      outcomes.refused[command] = (outcomes.refused[command] ?? 0) + 1
    }
    const { user, system } = process.cpuUsage(begin) // no time in which others had the processor
    const taken = (user + system) / 1000
    outcomes.slowest = Math.max(outcomes.slowest, taken)
    if (taken > 2000) outcomes.wrong.push(`${what}: took ${taken} ms of the processor`)
    if (memory().tensors > tensors) outcomes.wrong.push(`${what}: ${memory().tensors - tensors} tensors are left`)
  }
}
