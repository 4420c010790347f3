import { readFileSync, writeFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { main } from '../main.js'
import { fill } from '../page.js'
import { type Measured, measure } from './measure.js'
import { layerErrors, picturesOf, sectionsOf, worldOf } from './tables.js'

/**
 * `npm run scale` writes the tables and pictures of docs/scaling.md by the last measurement; `npm run scale -- --measure`
 * measures first: about four minutes, with an MPI library.
 */

const file = new URL('measured.json', import.meta.url)
const [runs, turns] = [3, 4]

await main(import.meta.url, 'scale', async (args) => {
  if (args.some((arg) => arg !== '--measure')) throw new Error('usage: npm run scale -- [--measure]')
  if (args.length > 0) writeFileSync(file, `${JSON.stringify(await measure(runs, turns, console.log), null, 2)}\n`)
  const world = worldOf(JSON.parse(readFileSync(file, 'utf8')) as Measured)
  const root = new URL('../../', import.meta.url)
  const page = new URL('docs/scaling.md', root)
  const sections = sectionsOf(world)
  for (const table of Object.values(sections)) console.log(`\n${table}`)
  writeFileSync(page, fill(readFileSync(page, 'utf8'), sections))
  console.log(fileURLToPath(page))
  for (const [name, picture] of Object.entries(picturesOf(world)))
    writeFileSync(new URL(`docs/images/${name}`, root), picture)
  for (const { shape, ranks, found, model, isFitted } of layerErrors(world))
    if (!isFitted && ranks < 4)
      console.log(`${shape.name}, ${ranks} ranks: model ÷ measured ${(model / found).toFixed(3)}`)
})
