import { readFileSync, writeFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { main } from './main.js'
import { growthChart } from './picture.js'
import { readReport } from './report.js'
import { sectionsOf } from './sections.js'

/** Puts each section between its marks: `<!-- bench:NAME -->` and `<!-- end -->`. A mark without a section is an error. */
export function fill(page: string, sections: Readonly<Record<string, string>>): string {
  return page.replaceAll(/<!-- bench:(\S+) -->.*?<!-- end -->/gs, (_, name: string) => {
    if (!Object.hasOwn(sections, name)) throw new Error(`there is no section '${name}'`)
    return `<!-- bench:${name} -->\n\n${sections[name]}\n\n<!-- end -->`
  })
}

export const pages = ['README.md', 'docs/performance.md', 'bench/figures.md']

await main(import.meta.url, 'bench:docs', (args) => {
  if (args.length !== 1) throw new Error('usage: npm run bench:docs report.json')
  const report = readReport(args[0])
  if (report.quick) throw new Error('a report of --quick says nothing about speed')
  const root = new URL('../', import.meta.url)
  const sections = sectionsOf(report)
  const filled = pages.map((page) => [page, fill(readFileSync(new URL(page, root), 'utf8'), sections)])
  for (const [file, text] of [...filled, ['docs/images/growth.svg', growthChart(report)]]) {
    writeFileSync(new URL(file, root), text)
    console.log(fileURLToPath(new URL(file, root)))
  }
})
