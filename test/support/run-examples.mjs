// Runs modules one after another in this process, each in its own folder, and prints as JSON what each printed to the
// console and how it failed: node run-examples.mjs <file> …

import { Console } from 'node:console'
import { dirname } from 'node:path'
import { Writable } from 'node:stream'
import { pathToFileURL } from 'node:url'

let printed = { stdout: '', stderr: '', failed: false }
const into = (name) =>
  new Writable({
    write(chunk, _, done) {
      printed[name] += chunk
      done()
    },
  })
globalThis.console = new Console(into('stdout'), into('stderr'))

const results = []
for (const file of process.argv.slice(2)) {
  printed = { stdout: '', stderr: '', failed: false }
  process.chdir(dirname(file))
  try {
    await import(pathToFileURL(file).href)
  } catch (error) {
    printed.stderr += error?.stack ?? String(error)
    printed.failed = true
  }
  results.push(printed)
}
process.stdout.write(JSON.stringify(results))
