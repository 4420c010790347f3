import { pathToFileURL } from 'node:url'

/** Runs `program` if the file at `url` was started, not imported. Its error becomes a line and exit code 1. */
export async function main(
  url: string,
  name: string,
  program: (args: string[]) => void | Promise<void>,
): Promise<void> {
  if (url !== pathToFileURL(process.argv[1]).href) return
  try {
    await program(process.argv.slice(2))
  } catch (error) {
    console.error(`${name}: ${(error as Error).message}`)
    process.exitCode = 1
  }
}
