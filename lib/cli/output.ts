import { closeSync } from 'node:fs'
import { isatty } from 'node:tty'
import { visible } from './visible.js'

/** What a command prints: text for people, or JSON for programs. */

let whenClosed = (): void => process.exit()

/** Without a reader (`… | head -1`) a command ends quietly; `fn` is for one that has something to save first. */
export function onClosedPipe(fn: () => void): void {
  whenClosed = fn
}

/** Output that nobody reads any more, as of a closed terminal, is not an error, a full disk is one. */
export function watchOutput(program: string): void {
  process.stdout.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code === 'EPIPE' || (error.code === 'EIO' && process.stdout.isTTY)) return whenClosed()
    process.stderr.write(`${program}: standard output: ${error.message}\n`)
    process.exit(1)
  })
  process.stderr.on('error', () => {})
  const terminals = [0, 1, 2].filter((file) => isatty(file))
  process.once('exit', () => {
    // Node resets terminals at its end and aborts where one is gone, but passes over a closed file.
    for (const file of terminals) if (!isatty(file)) closeSync(file)
  })
}

/** For people; what came from a file or a name cannot disturb the terminal. */
export function line(text: string): void {
  process.stdout.write(`${visible(text)}\n`)
}

/** A word to the user beside the output; on a terminal in place of the line that is being rewritten there. */
export function note(text: string): void {
  process.stderr.write(`${process.stderr.isTTY ? '\r\x1b[2K' : ''}${visible(text)}\n`)
}

/** One line of JSON, for programs. */
export function jsonLine(value: unknown): void {
  process.stdout.write(`${JSON.stringify(value)}\n`)
}

/** Rows of cells under each other; the last cell of a row is as long as it likes. */
export function table(rows: readonly (readonly string[])[]): string {
  const widths: number[] = []
  for (const row of rows) {
    for (const [i, cell] of row.slice(0, -1).entries()) widths[i] = Math.max(widths[i] ?? 0, cell.length)
  }
  return rows
    .map((row) => row.map((cell, i) => (i < row.length - 1 ? cell.padEnd(widths[i]) : cell)).join('  '))
    .join('\n')
}
