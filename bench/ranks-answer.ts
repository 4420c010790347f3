import { fileURLToPath } from 'node:url'
import { launch } from '../lib/index.js'

/** Runs a program of bench/ as the ranks of a job; returns what its last line says, which is JSON of rank 0. */
export async function answerOfRanks<T>(file: URL, processes: number, args: readonly (string | number)[]): Promise<T> {
  const lines: string[] = []
  const job = launch(process.execPath, ['--import', 'tsx', fileURLToPath(file), ...args.map(String)], {
    processes,
    onLine: ({ text }) => lines.push(text),
  })
  const { exitCode } = await job.ended
  if (exitCode !== 0) throw new Error(lines.join('\n'))
  return JSON.parse(lines.at(-1)!) as T
}
