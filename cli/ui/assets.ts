import { readdirSync, readFileSync } from 'node:fs'
import { extname, join } from 'node:path'
import { packageRoot } from '../../lib/doctor/index.js'
import { chartColors } from '../trainer/chart.js'
import { reportStyle } from '../trainer/report-style.js'

export interface Asset {
  type: string
  body: string
}

const types: Readonly<Record<string, string>> = {
  '.js': 'text/javascript; charset=utf-8',
  '.css': 'text/css; charset=utf-8',
  '.svg': 'image/svg+xml',
}

/** The files of the page by their names in its URL. The page itself has the name ''. */
export function readAssets(): ReadonlyMap<string, Asset> {
  const folder = join(packageRoot, 'dist/page') // for sources, too: browsers need the compiled files
  const read = (name: string): string => readFileSync(join(folder, name), 'utf8')
  const files = readdirSync(folder).filter((name) => Object.hasOwn(types, extname(name)))
  const assets = new Map(files.map((name) => [name, { type: types[extname(name)], body: read(name) }]))
  assets.set('', { type: 'text/html; charset=utf-8', body: read('index.html') })
  assets.set('page.css', { type: types['.css'], body: [reportStyle, colors, read('page.css')].join('\n') })
  return assets
}

const colors = `:root { ${chartColors.light} }
@media (prefers-color-scheme: dark) { :root { ${chartColors.dark} } }`
