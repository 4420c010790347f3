import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, expect, it } from 'vitest'
import { runChild, sanitized } from '../support/child.js'

/** A number of your own reproduces a run: ST_MOE_TEST_SEED=123 npx vitest run test/crash */
const seed = Number(process.env.ST_MOE_TEST_SEED ?? Math.floor(Math.random() * 2 ** 31))
const calls = sanitized ? 2000 : process.env.CI ? 20_000 : 10_000
const folder = mkdtempSync(join(tmpdir(), 'st-moe-hostile-'))

afterAll(() => rmSync(folder, { recursive: true, force: true }))

it(`${calls} hostile calls into the package and the addon: no crash, Errors only, bounded memory`, async () => {
  const limit = sanitized ? { args: [], limitKb: undefined } : { args: ['limited'], limitKb: 6_000_000 }
  const { code, signal, stdout, stderr } = await runChild('hostile.mjs', [`${seed}`, `${calls}`, ...limit.args], {
    cwd: folder,
    limitKb: limit.limitKb,
  })
  const log = join(folder, 'last-call')
  const last = existsSync(log) ? readFileSync(log, 'utf8').trim() : 'none'
  const summary = stdout ? JSON.parse(stdout) : { problems: [] }
  console.log(`hostile calls, seed ${seed}: ${stdout.trim()}`)
  expect(
    { code, signal, problems: summary.problems },
    `seed ${seed}, last call ${last}\n${stderr.slice(-4000)}`,
  ).toEqual({ code: 0, signal: null, problems: [] })
  expect(summary.calls).toBe(calls)
  expect(summary.targets).toBeGreaterThan(300)
  expect(summary.thrown).toBeGreaterThan(calls / 4)
  expect(summary.addonReached).toBeGreaterThan(sanitized ? 25 : 45)
})
