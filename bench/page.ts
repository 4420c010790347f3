import { readFileSync, writeFileSync } from 'node:fs'
import { fileURLToPath, pathToFileURL } from 'node:url'
import { growthChart, scalingChart } from './pictures.js'
import { type Report, readReport } from './report.js'
import { sectionsOf } from './sections.js'

/** Puts each section between its marks: `<!-- bench:NAME -->` and `<!-- end -->`. A mark without a section is an error. */
export function fill(page: string, sections: Readonly<Record<string, string>>): string {
  return page.replaceAll(/<!-- bench:(\S+) -->.*?<!-- end -->/gs, (_, name: string) => {
    if (!Object.hasOwn(sections, name)) throw new Error(`there is no section '${name}'`)
    return `<!-- bench:${name} -->\n\n${sections[name]}\n\n<!-- end -->`
  })
}

const pages = ['README.md', 'docs/performance.md']

function write(report: Report): void {
  if (report.quick) throw new Error('a report of --quick says nothing about speed')
  const root = new URL('../', import.meta.url)
  const sections = sectionsOf(report)
  const filled = pages.map((page) => [page, fill(readFileSync(new URL(page, root), 'utf8'), sections)])
  const pictures = [
    ['docs/images/growth.svg', growthChart(report)],
    ['docs/images/scaling.svg', scalingChart(report)],
  ]
  for (const [file, text] of [...filled, ...pictures]) {
    writeFileSync(new URL(file, root), text)
    console.log(fileURLToPath(new URL(file, root)))
  }
}

if (import.meta.url === pathToFileURL(process.argv[1]).href) {
  try {
    if (process.argv.length !== 3) throw new Error('usage: npm run bench:docs report.json')
    write(readReport(process.argv[2]))
  } catch (error) {
    console.error(`bench:docs: ${(error as Error).message}`)
    process.exitCode = 1
  }
}
