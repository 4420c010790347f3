/** What a command prints: text for people, or JSON for programs. */

let whenClosed = (): void => process.exit()

/** Without a reader (`… | head -1`) a command ends quietly; `fn` is for one that has something to save first. */
export function onClosedPipe(fn: () => void): void {
  whenClosed = fn
}

/** Output that nobody reads any more is not an error, a full disk is one. */
export function watchOutput(program: string): void {
  process.stdout.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code === 'EPIPE') return whenClosed()
    process.stderr.write(`${program}: standard output: ${error.message}\n`)
    process.exit(1)
  })
  process.stderr.on('error', () => {})
}

export function line(text: string): void {
  process.stdout.write(`${text}\n`)
}

/** One line of JSON. */
export const jsonLine = (value: unknown): void => line(JSON.stringify(value))

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
