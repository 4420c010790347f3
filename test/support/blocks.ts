import { spawnSync } from 'node:child_process'
import { mkdirSync, rmSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { expect } from 'vitest'
import { patience } from './patience.js'

/** Code in documents and doc comments, compiled and run as a reader would run it. */

export const root = fileURLToPath(new URL('../..', import.meta.url))

export interface Block {
  /** What the fence says: the language, then how the block ends or is treated. */
  language: string
  flags: readonly string[]
  code: string
  /** Line of the fence. */
  line: number
  /** The `text` block that follows at once: what this block prints, or the error that it throws. */
  output: string | null
}

/** The fenced blocks of a Markdown text. */
export function blocksOf(markdown: string): Block[] {
  const blocks: Block[] = []
  const lines = markdown.split('\n')
  for (let at = 0; at < lines.length; at++) {
    const fence = /^(`{3,})(.*)$/.exec(lines[at])
    if (!fence) continue
    const end = lines.indexOf(fence[1], at + 1)
    if (end < 0) throw new Error(`the block of line ${at + 1} has no end`)
    const [language = '', ...flags] = fence[2].trim().split(/\s+/)
    const code = lines.slice(at + 1, end).join('\n')
    const before = blocks.at(-1)
    const follows = before && lines.slice(before.line + before.code.split('\n').length + 1, at).every((l) => l === '')
    if (language === 'text' && follows) before.output = code
    else blocks.push({ language, flags, code, line: at + 1, output: null })
    at = end
  }
  return blocks
}

/** What the lines `… // → text` of a block say that it prints. */
const promised = (code: string): string[] => [...code.matchAll(/\/\/ → (.*)$/gm)].map(([, text]) => text)

/** An expression for a text in which `…` stands for anything within a line. */
const pattern = (text: string): string =>
  text
    .trimEnd()
    .split('…')
    .map((part) => part.replaceAll(/[.*+?^${}()|[\]\\]/g, '\\$&'))
    .join('.*')

/** Writes files, each with the folders above it; `folder` is emptied first. */
export function writeAll(folder: string, files: readonly { file: string; code: string }[]): void {
  rmSync(folder, { recursive: true, force: true })
  for (const { file, code } of files) {
    mkdirSync(dirname(file), { recursive: true })
    writeFileSync(file, code)
  }
}

/** Compiles `.mts` files under `strict` to `.mjs` files next to them, and returns the output of the compiler. */
export function compile(files: readonly string[]): string {
  const options =
    '--strict --skipLibCheck --module nodenext --target es2022 --lib es2023,esnext.disposable --types node'
  const tsc = join(root, 'node_modules/typescript/bin/tsc')
  const result = spawnSync(process.execPath, [tsc, ...options.split(' '), ...files], { cwd: root, encoding: 'utf8' })
  return result.stdout + result.stderr
}

/** Without the greeting that TensorFlow.js prints in Node. */
export const complaints = (stderr: string): string => stderr.replace(/^\n=+\nHi, looks like .*?\n=+\n+/s, '')

/**
 * Runs a program in `cwd` and expects what its block promises: an end without complaint and its output, or its error.
 */
export function expectRun(block: Block, command: string, args: readonly string[], cwd: string): void {
  const { status, signal, stdout, stderr } = spawnSync(command, args, { cwd, encoding: 'utf8', timeout: patience })
  expect(signal, stderr).toBeNull()
  expectEnd(block, { stdout, stderr, failed: status !== 0 })
}

/** How a program ended. */
export interface End {
  stdout: string
  stderr: string
  failed: boolean
}

/** Expects what a block promises of its end. */
export function expectEnd(block: Block, { stdout, stderr, failed }: End): void {
  const throws = block.flags.includes('throws')
  if (throws) expect(block.output, 'a block that throws is followed by the text of its error').not.toBeNull()
  else expect(complaints(stderr)).toBe('')
  expect(failed, stderr).toBe(throws)
  if (throws) expect(stderr).toMatch(new RegExp(pattern(block.output!)))
  else expectPrinted(block, stdout)
}

/** Runs modules one after another in one process, each in its own folder. */
export function runModules(files: readonly string[]): End[] {
  const runner = join(root, 'test/support/run-examples.mjs')
  const run = spawnSync(process.execPath, [runner, ...files], { cwd: root, encoding: 'utf8', timeout: patience })
  if (run.status !== 0) throw new Error(`the modules end with ${run.signal ?? run.status}: ${run.stderr}`)
  return JSON.parse(run.stdout)
}

/** Expects that a program printed what its block says that it prints, if it says so. */
export function expectPrinted({ output, code }: Block, stdout: string): void {
  const prints = output ?? (promised(code).join('\n') || null)
  if (prints !== null) expect(stdout.trimEnd()).toMatch(new RegExp(`^${pattern(prints)}$`))
}
