import type { Readable } from 'node:stream'
import { StringDecoder } from 'node:string_decoder'

/** A longer line is passed on in pieces, so that output without line ends takes no memory. */
const maxLine = 65_536

/** Calls `take` with each line of a stream of UTF-8, without its end; the last one may have none. */
export function forEachLine(stream: Readable, take: (line: string) => void): void {
  const decoder = new StringDecoder('utf8')
  let rest = ''
  stream.on('error', () => {})
  stream.on('data', (bytes: Buffer) => {
    const lines = `${rest}${decoder.write(bytes)}`.split('\n')
    rest = lines.pop()!
    for (const line of lines) take(line.endsWith('\r') ? line.slice(0, -1) : line)
    if (rest.length < maxLine) return
    take(rest)
    rest = ''
  })
  stream.on('close', () => {
    rest += decoder.end()
    if (rest !== '') take(rest)
    rest = ''
  })
}
