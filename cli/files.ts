import { Failure } from './errors.js'

/** Reads all of standard input, of at most `maxBytes`. */
export async function readInput(maxBytes: number): Promise<Buffer> {
  if (process.stdin.isTTY) throw new Failure('standard input is a terminal: pipe a text into this command')
  const chunks: Buffer[] = []
  let size = 0
  for await (const chunk of process.stdin) {
    size += chunk.length
    if (size > maxBytes) throw new Failure(`standard input has more than ${maxBytes} bytes`)
    chunks.push(chunk)
  }
  return Buffer.concat(chunks)
}
