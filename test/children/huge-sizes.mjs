// Folders of models of transformers whose config.json has one number changed, loaded and saved. Argument: a folder of
// such folders. Prints what came of each change, the most CPU milliseconds of one, and how far the resident size rose in
// MB, as JSON.
import { readdirSync, readFileSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { loadTransformersMoE, saveTransformersMoE, scope } from '../../dist/index.js'

const [, , folder] = process.argv
const values = [2 ** 18, 2 ** 31, ...(process.env.ST_MOE_TEST_LONG === '1' ? [2 ** 18 - 1, 2 ** 24] : [])]
const models = readdirSync(folder).map((name) => path.join(folder, name))
const loaded = new Map(models.map((model) => [model, loadTransformersMoE(model, { layer: 0 })]))
const counts = {}
const slow = []
const messages = []
let most = 0

function attempt(what, call) {
  globalThis.gc()
  const start = process.cpuUsage()
  let outcome = 'accepted'
  try {
    scope(call)
  } catch (error) {
    outcome = error.code ?? error.name
    messages.push(error.message.length)
  }
  const { user, system } = process.cpuUsage(start)
  const time = (user + system) / 1000
  most = Math.max(most, time)
  if (time > 100) slow.push(`${what}: ${time} ms`)
  counts[outcome] = (counts[outcome] ?? 0) + 1
}

const sweep = () => {
  for (const model of models) {
    const file = path.join(model, 'config.json')
    const text = readFileSync(file, 'utf8')
    const config = JSON.parse(text)
    for (const name of Object.keys(config).filter((key) => typeof config[key] === 'number'))
      for (const value of values) {
        const what = `${config.model_type} ${name} ${value}`
        writeFileSync(file, JSON.stringify({ ...config, [name]: value }))
        attempt(what, () => loadTransformersMoE(model, { layer: 0 }))
        attempt(what, () => saveTransformersMoE(model, loaded.get(model), { layer: 0 }))
      }
    writeFileSync(file, text)
  }
}

const before = process.resourceUsage().maxRSS
sweep()
const riseMb = Math.round((process.resourceUsage().maxRSS - before) / 1024)
console.log(JSON.stringify({ counts, slow, most, riseMb, longest: Math.max(...messages) }))
