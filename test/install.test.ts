import { spawnSync } from 'node:child_process'
import { chmodSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { patience } from './support/patience.js'

/** The install script on machines that lack something: it must say what, and the command that helps. */

const script = fileURLToPath(new URL('../scripts/install.cjs', import.meta.url))
let folder: string

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'st-moe-install-'))
})
afterEach(() => rmSync(folder, { recursive: true, force: true }))

function install(tools: string[]) {
  for (const tool of tools) {
    writeFileSync(join(folder, tool), '#!/bin/sh\nexit 0\n')
    chmodSync(join(folder, tool), 0o755)
  }
  const env = { PATH: folder, npm_config_build_from_source: 'true' }
  return spawnSync(process.execPath, [script], { env, encoding: 'utf8', timeout: patience })
}

test('names compiler, make and CMake where all are missing', () => {
  const { status, stderr } = install([])
  expect(status).toBe(1)
  expect(stderr).toMatch(/apt-get install g\+\+/)
  expect(stderr).toMatch(/apt-get install make/)
  expect(stderr).toMatch(/apt-get install cmake/)
  expect(stderr).toMatch(/npm rebuild st-moe/)
})

test('names only CMake where only CMake is missing', () => {
  const { status, stderr } = install(['g++', 'make'])
  expect(status).toBe(1)
  expect(stderr).toMatch(/cmake/)
  expect(stderr).not.toMatch(/C\+\+ compiler/)
})
