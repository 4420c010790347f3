import { once } from 'node:events'
import { existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { connect, createServer, type Server, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import puppeteer, { type Browser, type Page } from 'puppeteer-core'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import type { History } from '../../cli/trainer/history.js'
import { type RunOptions, runFlags } from '../../cli/trainer/options.js'
import { Run } from '../../cli/trainer/run.js'
import { readRun } from '../../cli/trainer/saved-run.js'
import { nothing, partOf } from '../../cli/ui/feed.js'
import { LivePage } from '../../cli/ui/live.js'
import { savedRun } from '../../cli/ui/saved.js'
import { PageServer } from '../../cli/ui/server.js'
import { root } from '../support/blocks.js'
import { long } from '../support/numbers.js'
import { sentences } from '../support/sentences.js'

/** The page of a run as Chromium shows it. Screenshots come to build/ui. */

const chromium = ['/usr/bin/chromium', '/usr/bin/chromium-browser', '/usr/bin/google-chrome'].find((path) =>
  existsSync(path),
)
const where = chromium ? 'in Chromium' : 'skipped, since there is no /usr/bin/chromium'
const pictures = join(root, 'build/ui')

/** Markup and a control character: what the page shows as text. */
const hostile = `<img src=x onerror=document.title=1>'"&\u202e`
const hostileShown = `<img src=x onerror=document.title=1>'"&\\u202e`

describe.skipIf(!chromium)(`the page ${where}`, () => {
  const folder = mkdtempSync(join(tmpdir(), 'st-moe-browser-'))
  const text = { path: join(folder, 'book.txt'), name: hostile }
  let browser: Browser

  beforeAll(async () => {
    mkdirSync(pictures, { recursive: true })
    writeFileSync(text.path, sentences(400))
    browser = await puppeteer.launch({ executablePath: chromium, headless: true, args: ['--no-sandbox'] })
  })
  afterAll(async () => {
    await browser?.close()
    rmSync(folder, { recursive: true })
  })

  /** A tab, and all that it must not do: complaints, and requests to anything but the page's origin. */
  async function tab({ width = 1280, scheme = 'light' } = {}): Promise<{ page: Page; wrong: string[] }> {
    const page = await browser.newPage()
    const wrong: string[] = []
    page.on('console', (message) => wrong.push(`${message.type()}: ${message.text()}`))
    page.on('pageerror', (error) => wrong.push(String(error)))
    page.on('request', (request) => {
      if (new URL(request.url()).hostname !== '127.0.0.1') wrong.push(request.url())
    })
    await page.setViewport({ width, height: 900 })
    await page.emulateMediaFeatures([{ name: 'prefers-color-scheme', value: scheme }])
    return { page, wrong }
  }

  const defaults = Object.fromEntries(
    Object.entries(runFlags).map(([name, flag]) => [name, flag.default]),
  ) as RunOptions
  const options = (changed: Partial<RunOptions>): RunOptions => ({
    ...defaults,
    ...{ layers: 2, dim: 16, heads: 2, experts: 4, context: 16, batch: 2, threads: 1, 'evaluate-every': 20 },
    ...changed,
  })

  const textOf = (page: Page, selector: string): Promise<string> =>
    page.$eval(selector, (found) => found.textContent ?? '')
  const textsOf = (page: Page, selector: string): Promise<string[]> =>
    page.$$eval(selector, (all) => all.map((found) => found.textContent ?? ''))
  const cardOf = (page: Page, card: string): Promise<string> => textOf(page, `[data-card="${card}"] strong`)
  const stateOf = (page: Page, state: string) => page.waitForSelector(`#state.${state}`, { timeout: 60_000 })

  /** The values on the page are those of the history. */
  async function expectShown(page: Page, history: History): Promise<void> {
    const { loss, dropped, learningRate, evaluations, steps } = history
    const columns = partOf(history, nothing, 0, { state: 'finished' })[0].columns.list
    const recent = (values: number[]) => values.slice(-20).reduce((a, b) => a + b) / 20
    const last = evaluations.at(-1)!
    expect(await textOf(page, '#lead')).toContain(`Step ${steps} of`)
    expect(await cardOf(page, 'held-out loss')).toBe(last.loss.toFixed(3))
    expect(await cardOf(page, 'training loss')).toBe(recent(loss).toFixed(3))
    expect(await cardOf(page, 'dropped')).toBe(`${(recent(dropped) * 100).toFixed(1)} %`)
    expect(Number(await cardOf(page, 'learning rate'))).toBeCloseTo(learningRate!.at(-1)!, 5)
    expect(await textsOf(page, '.legend .at')).toEqual(Array(4).fill(`step ${steps}`))
    const [training, heldOut] = await textsOf(page, '.key b')
    expect([training, heldOut]).toEqual([loss.at(-1)!.toFixed(3), last.loss.toFixed(3)])
    expect(await textsOf(page, '.shares span')).toEqual(
      columns
        .at(-1)!
        .flat()
        .map((share) => `${(share * 100).toFixed(0)} %`),
    )
    expect(await textOf(page, 'article h3')).toBe(`step ${last.step}held-out loss ${last.loss.toFixed(3)}`)
    expect(await textOf(page, 'blockquote')).toContain(last.sample)
    expect(await page.$$eval('.map canvas', (all) => all.map(({ width, height }) => [width, height]))).toEqual(
      columns[0].map((layer) => [columns.length, layer.length]),
    )
  }

  test('shows a run as it trains, stops, and is resumed', async () => {
    const out = join(folder, hostile)
    const { page, wrong } = await tab()
    const live = await LivePage.open(0)
    const run = await Run.open({ options: options({ steps: 120 }), text, out, report: live.report })
    run.start(false)
    live.show(run.shown)
    await page.goto(live.url)
    await stateOf(page, 'running')
    await live.during(async () => {
      await run.train(() => run.shown.history.steps === 50)
      await stateOf(page, 'stopped')
      await expectShown(page, run.shown.history)
      // Nothing is lost and nothing is there twice when it is opened again.
      await page.reload()
      await stateOf(page, 'stopped')
      await expectShown(page, run.shown.history)
      expect(await textOf(page, 'h1')).toContain(hostileShown)
      expect(await textOf(page, '#lead')).toContain(`A language model of ${hostileShown}`)
      expect(await page.title()).toContain('41 % ')
      expect(await page.$$('img')).toEqual([])
    })
    run[Symbol.dispose]()

    const again = await LivePage.open(0)
    const saved = readRun(out)
    using resumed = await Run.open({
      options: { ...saved.options, steps: 150 },
      text,
      out,
      report: again.report,
      resumed: saved,
    })
    await resumed.resume()
    again.show(resumed.shown)
    await page.goto(again.url)
    await stateOf(page, 'running')
    await again.during(() => resumed.train(() => false))
    await stateOf(page, 'finished')
    await expectShown(page, resumed.shown.history)
    expect(resumed.shown.history.steps).toBe(150)
    await page.screenshot({ path: join(pictures, 'run.png'), fullPage: true })
    expect(wrong).toEqual([])
    await page.close()
  })

  test.skipIf(!long)('the cursor reads values, a layer its shares, and the slider earlier samples', async () => {
    const { page, wrong } = await tab({ scheme: 'dark' })
    const run = await savedRun(join(folder, hostile))
    const server = await PageServer.open(0, '--port')
    server.show([run])
    await page.goto(server.url)
    await stateOf(page, 'finished')
    await page.hover('.u-over') // its middle
    const [, step] = /^step (\d+)$/.exec((await textsOf(page, '.legend .at'))[0])!
    expect(Number(step)).toBeGreaterThan(60)
    expect(Number(step)).toBeLessThan(90)
    expect((await textsOf(page, '.key b'))[0]).toBe(run.history.loss[Number(step) - 1].toFixed(3))
    expect(new Set(await textsOf(page, '.legend .at'))).toEqual(new Set([`step ${step}`])) // in all charts
    await page.hover('.map canvas')
    expect(await textOf(page, '.readout')).toMatch(/^expert 3, steps? [\d–]+: \d+\.\d %$/)
    await page.focus('input[type=range]')
    await page.keyboard.press('Home')
    expect(await textOf(page, 'blockquote')).toContain(run.history.evaluations[0].sample)
    await page.screenshot({ path: join(pictures, 'run-dark.png'), fullPage: true })
    expect(wrong).toEqual([])
    await server.close()
    await page.close()
  })

  test('compares runs, on a phone too', async () => {
    const out = join(folder, 'switch')
    using run = await Run.open({
      options: options({ steps: 60, router: 'switch', lr: 2e-3 }),
      text: { ...text, name: 'book.txt' },
      out,
      report: () => {},
    })
    run.start(false)
    await run.train(() => false)
    const runs = [await savedRun(join(folder, hostile)), await savedRun(out)]
    const server = await PageServer.open(0, '--port')
    server.show(runs)
    for (const [name, given] of Object.entries({
      compare: {},
      'compare-dark': { scheme: 'dark' },
      'compare-phone': { width: 390 },
    })) {
      const { page, wrong } = await tab(given)
      await page.goto(server.url)
      await stateOf(page, 'finished')
      const rows = await page.$$eval('.comparison tr', (all) =>
        all.map((row) => [...row.children].map((cell) => cell.textContent)),
      )
      expect(rows[0]).toEqual(['', ...runs.map(({ about }) => about.name)])
      const losses = runs.map(({ history }) => history.evaluations.at(-1)!.loss.toFixed(3))
      expect(rows[1]).toEqual(['held-out loss, nats per character', ...losses])
      expect(rows).toContainEqual(['steps', '150 of 150', '60 of 60'])
      expect(rows.slice(6)).toEqual([
        ['text', hostileShown, 'book.txt'],
        ['--steps', '150', '60'],
        ['--top-n', '2', '–'],
        ['--router', 'topk', 'switch'],
        ['--second-policy', 'random', '–'],
        ['--lr', '0.004', '0.002'],
      ])
      const keys = await textsOf(page, 'main > .chart-figure .key')
      expect(keys.slice(0, 2)).toEqual(runs.map(({ about }, i) => about.name + losses[i]))
      expect(await textsOf(page, '.chart-figure h2')).toEqual([
        'Held-out loss',
        'Training loss',
        'Throughput',
        'Learning rate',
        'Dropped tokens',
      ])
      await page.select('select', runs[1].about.name)
      expect(await textOf(page, 'blockquote')).toContain(runs[1].history.evaluations.at(-1)!.sample)
      expect(await page.evaluate('document.documentElement.scrollWidth <= innerWidth')).toBe(true)
      await page.screenshot({ path: join(pictures, `${name}.png`), fullPage: true })
      expect(wrong).toEqual([])
      await page.close()
    }
    await server.close()
  })

  /** Passes connections on to a port, and can cut them. */
  async function proxyTo(port: number): Promise<{ server: Server; port: number; cut(): void }> {
    const sockets = new Set<Socket>()
    const server = createServer((socket) => {
      const other = connect(port, '127.0.0.1')
      for (const end of [socket, other]) {
        sockets.add(end)
        end.on('error', () => {}).on('close', () => sockets.delete(end))
      }
      socket.pipe(other).pipe(socket)
    }).listen(0, '127.0.0.1')
    await once(server, 'listening')
    const { port: own } = server.address() as { port: number }
    return { server, port: own, cut: () => sockets.forEach((socket) => void socket.destroy()) }
  }

  test.skipIf(!long)('connects again when the connection is lost, and shows nothing twice', async () => {
    const { page } = await tab({ width: 390, scheme: 'dark' }) // the browser complains of the lost connection
    const live = await LivePage.open(0)
    const { port } = new URL(live.url)
    const proxy = await proxyTo(Number(port))
    const out = join(folder, 'lost')
    using run = await Run.open({ options: options({ steps: 40 }), text, out, report: live.report })
    run.start(false)
    live.show(run.shown)
    await page.goto(live.url.replace(port, String(proxy.port)))
    await stateOf(page, 'running')
    await live.during(async () => {
      proxy.cut()
      await stateOf(page, 'lost')
      await run.train(() => false)
      await stateOf(page, 'finished')
    })
    await expectShown(page, run.shown.history)
    await page.screenshot({ path: join(pictures, 'run-phone.png'), fullPage: true })
    proxy.server.close()
    await page.close()
  })
})
