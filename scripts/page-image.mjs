// Makes docs/images/run-page.png from a run: npm run page:image -- runs/moby-dick
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { fileURLToPath } from 'node:url'
import puppeteer from 'puppeteer-core'

const at = (name) => fileURLToPath(new URL(`../${name}`, import.meta.url))
const server = spawn(process.execPath, [at('dist/cli.js'), 'show', process.argv[2], '--json'], {
  stdio: ['ignore', 'pipe', 'inherit'],
})
const [line] = await once(server.stdout, 'data')
const browser = await puppeteer.launch({
  executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
  args: ['--no-sandbox'],
})
try {
  const page = await browser.newPage()
  await page.setViewport({ width: 1060, height: 1362 })
  await page.goto(JSON.parse(line).url)
  await page.waitForSelector('.map canvas')
  await page.evaluate(() => new Promise(requestAnimationFrame))
  await page.screenshot({ path: at('docs/images/run-page.png') })
} finally {
  await browser.close()
  server.kill()
}
