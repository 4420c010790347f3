// Runs command lines of the built program one after another in this process: each evaluates the program's file again, but
// Node, the library and compiled functions stay. A message is { args }, its answer { code, out, err }; {} is the end.
const bin = new URL('../../dist/cli.js', import.meta.url).href
const streams = { out: process.stdout, err: process.stderr }
let count = 0

/** The listeners of a program, which otherwise end with its process, are those that were not there before. */
const listened = () =>
  [process, ...Object.values(streams)].flatMap((emitter) =>
    ['SIGINT', 'SIGTERM', 'SIGHUP', 'exit', 'error'].flatMap((event) =>
      emitter.listeners(event).map((listener) => ({ emitter, event, listener })),
    ),
  )
const before = listened().map(({ listener }) => listener)

async function run(args) {
  const answer = { out: '', err: '' }
  for (const [name, stream] of Object.entries(streams))
    stream.write = (text) => {
      answer[name] += text
      return true
    }
  process.argv = [process.execPath, bin, ...args]
  process.exitCode = undefined
  try {
    await import(`${bin}?${count++}`)
  } catch (error) {
    answer.err += error?.stack ?? error
    process.exitCode = 1
  }
  for (const { emitter, event, listener } of listened())
    if (!before.includes(listener)) emitter.removeListener(event, listener)
  for (const stream of Object.values(streams)) delete stream.write
  const code = process.exitCode
  process.exitCode = 0
  return { code, ...answer }
}

process.on('message', async ({ args }) => (args ? process.send(await run(args)) : process.disconnect()))
