// Puts the files of the page of `st-moe train --ui` that are not compiled next to the others in dist/.
import { copyFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'

const at = (name) => fileURLToPath(new URL(`../${name}`, import.meta.url))
const copy = (from, to) => copyFileSync(at(from), at(`dist/cli/ui/page/${to}`))

for (const name of ['index.html', 'page.css', 'icon.svg']) copy(`lib/cli/ui/page/${name}`, name)
for (const name of ['uPlot.iife.min.js', 'uPlot.min.css']) copy(`node_modules/uplot/dist/${name}`, name)
copy('node_modules/uplot/LICENSE', 'uPlot.LICENSE')
