import { readdirSync, readFileSync } from 'node:fs'
import { extname } from 'node:path'
import { chartColors } from '../language-model/chart.js'
import { reportStyle } from '../language-model/report-style.js'

export interface Asset {
  type: string
  body: string
}

const types: Readonly<Record<string, string>> = {
  '.js': 'text/javascript; charset=utf-8',
  '.css': 'text/css; charset=utf-8',
  '.svg': 'image/svg+xml',
}

/** The files of the page by their path in its URL. The page itself has the path ''. */
export function readAssets(): ReadonlyMap<string, Asset> {
  // From lib as well, in tests and the demo, since browsers need the compiled files.
  const at = (name: string): URL => new URL(`../../../dist/cli/${name}`, import.meta.url)
  const read = (name: string): string => readFileSync(at(name), 'utf8')
  const names = ['numbers.js', 'ui/messages.js', ...readdirSync(at('ui/page')).map((name) => `ui/page/${name}`)]
  const files = names.filter((name) => Object.hasOwn(types, extname(name)))
  const assets = new Map(files.map((name) => [name, { type: types[extname(name)], body: read(name) }]))
  assets.set('', { type: 'text/html; charset=utf-8', body: read('ui/page/index.html') })
  assets.set('page.css', { type: types['.css'], body: [reportStyle, colors, read('ui/page/page.css')].join('\n') })
  return assets
}

const colors = `:root { ${chartColors.light} }
@media (prefers-color-scheme: dark) { :root { ${chartColors.dark} } }`
