import { closeSync } from 'node:fs'
import { isatty } from 'node:tty'
import { visible } from './visible.js'

/** Output of commands: text for people, JSON for programs. */

let whenClosed = (): void => process.exit()

/** If its reader closes the pipe (`… | head -1`), a command exits silently, or calls `fn` to save first. */
export function onClosedPipe(fn: () => void): void {
  whenClosed = fn
}

/** A closed pipe or terminal is not an error; a full disk is. */
export function watchOutput(program: string): void {
  process.stdout.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code === 'EPIPE' || (error.code === 'EIO' && process.stdout.isTTY)) return whenClosed()
    process.stderr.write(`${program}: standard output: ${error.message}\n`)
    process.exit(1)
  })
  process.stderr.on('error', () => {})
  const terminals = [0, 1, 2].filter((file) => isatty(file))
  process.once('exit', () => {
    // Node resets terminals at exit and aborts if one is gone, but skips a closed file.
    for (const file of terminals) if (!isatty(file)) closeSync(file)
  })
}

/** Prints a line for people, without control characters of files or names. */
export function line(text: string): void {
  process.stdout.write(`${visible(text)}\n`)
}

/** Prints a message to standard error; on a terminal it replaces the progress line. */
export function note(text: string): void {
  process.stderr.write(`${process.stderr.isTTY ? '\r\x1b[2K' : ''}${visible(text)}\n`)
}

/** Prints one line of JSON, for programs. */
export function jsonLine(value: unknown): void {
  process.stdout.write(`${JSON.stringify(value)}\n`)
}

/** Aligns cells in columns, except the last cell of a row. */
export function table(rows: readonly (readonly string[])[]): string {
  const widths: number[] = []
  for (const row of rows) {
    for (const [i, cell] of row.slice(0, -1).entries()) widths[i] = Math.max(widths[i] ?? 0, cell.length)
  }
  return rows
    .map((row) => row.map((cell, i) => (i < row.length - 1 ? cell.padEnd(widths[i]) : cell)).join('  '))
    .join('\n')
}
