import { readFileSync, writeFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { generationChart, serverChart } from './bar-charts.js'
import { main } from './main.js'
import { growthChart } from './picture.js'
import { type Report, readReport } from './report.js'
import { sectionsOf } from './sections.js'

/** Puts each section between its marks: `<!-- bench:NAME -->` and `<!-- end -->`. A mark without a section is an error. */
export function fill(page: string, sections: Readonly<Record<string, string>>): string {
  return page.replaceAll(/<!-- bench:(\S+) -->.*?<!-- end -->/gs, (_, name: string) => {
    if (!Object.hasOwn(sections, name)) throw new Error(`there is no section '${name}'`)
    return `<!-- bench:${name} -->\n\n${sections[name]}\n\n<!-- end -->`
  })
}

/** Pages with sections, and the results that a report needs for them. */
export const pages: Readonly<Record<string, string>> = {
  'README.md': 'st-moe/layer/',
  'docs/performance.md': 'st-moe/layer/',
  'bench/figures.md': 'st-moe/layer/',
  'docs/async.md': 'st-moe/server/',
}

const pictures: Readonly<Record<string, [needed: string, draw: (report: Report) => string]>> = {
  'docs/images/growth.svg': ['st-moe/growth/', growthChart],
  'docs/images/generation.svg': ['st-moe/generate', generationChart],
  'docs/images/event-loop.svg': ['st-moe/server/', serverChart],
}

await main(import.meta.url, 'bench:docs', (args) => {
  if (args.length !== 1) throw new Error('usage: npm run bench:docs report.json')
  const report = readReport(args[0])
  if (report.quick) throw new Error('a report of --quick says nothing about speed')
  const has = (needed: string): boolean => report.results.some(({ name }) => name.startsWith(needed))
  const root = new URL('../', import.meta.url)
  const sections = sectionsOf(report)
  const texts = [
    ...Object.entries(pages).map(
      ([file, needed]) => [file, needed, () => fill(readFileSync(new URL(file, root), 'utf8'), sections)] as const,
    ),
    ...Object.entries(pictures).map(([file, [needed, draw]]) => [file, needed, () => draw(report)] as const),
  ]
  for (const [file, needed, text] of texts) {
    if (!has(needed)) {
      console.log(`${file} stays: the report has no ${needed}`)
      continue
    }
    writeFileSync(new URL(file, root), text())
    console.log(fileURLToPath(new URL(file, root)))
  }
})
