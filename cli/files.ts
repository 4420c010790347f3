import { Failure } from './errors.js'

/** All of standard input, of at most `maxBytes`, in the pieces in which it comes. */
export async function readInput(maxBytes: number): Promise<readonly Uint8Array[]> {
  if (process.stdin.isTTY) throw new Failure('standard input is a terminal: pipe a text into this command')
  const chunks: Uint8Array[] = []
  let size = 0
  for await (const chunk of process.stdin) {
    size += chunk.length
    if (size > maxBytes) throw new Failure(`standard input has more than ${maxBytes} bytes: train on a part of it`)
    chunks.push(chunk)
  }
  return chunks
}
