import { command } from './command.js'
import { UsageError } from './errors.js'
import { deviceFlag, number, text, threadsFlag, toggle } from './flags.js'
import { readRun } from './language-model/saved-run.js'
import { jsonLine } from './output.js'
import { Stop } from './stop.js'
import { visible } from './visible.js'

/** `st-moe generate` */
export const generate = command({
  program: 'st-moe generate',
  summary: 'Writes text with a model that st-moe train made.',
  positional: 'FOLDER',
  flags: {
    prompt: text({ help: 'the text to continue (a new line)', value: 'TEXT', default: null }),
    length: number({ help: 'characters to write', default: 400, min: 1, max: 1e6 }),
    temperature: number({ help: 'below 1 more of the likely; 0: the likeliest', default: 0.7, min: 0, real: true }),
    'top-k': number({ help: 'draw from the N likeliest only; 0: from all', default: 0, min: 0 }),
    seed: number({ help: 'of the draws: the same seed writes the same', default: 1, min: 0 }),
    device: deviceFlag,
    threads: threadsFlag,
    json: toggle('one line of JSON at the end instead of text'),
  },
  examples: [
    ['st-moe generate runs/book', 'write something'],
    ['st-moe generate runs/book --prompt "Call me " --length 1000 --temperature 0.5', 'go on from a beginning'],
    ['st-moe generate runs/book --seed 7 --json', 'for programs'],
  ],
  notes: 'The text alone goes to standard output, beginning with the prompt.',
  async run({ values, positionals: [folder] }) {
    if (folder === undefined) throw new UsageError('which FOLDER? st-moe train names it at its end')
    const { length, seed, temperature, json } = values
    const saved = readRun(folder)
    const vocabulary = [...saved.text.vocabulary]
    const prompt = numbered(values.prompt ?? (vocabulary.includes('\n') ? '\n' : vocabulary[0]), vocabulary)
    const stop = new Stop()
    const { loadModel, writeOn } = await import('./language-model/write.js')
    const model = await loadModel(folder, saved, values)
    // A file gets the text as it is; on a terminal its control characters are shown, not obeyed.
    const show = (text: string): unknown => process.stdout.write(process.stdout.isTTY ? visible(text) : text)
    let written = values.prompt ?? ''
    if (!json) show(written)
    for await (const next of writeOn(model, prompt, length, { seed, temperature, topK: values['top-k'] })) {
      if (!json) show(vocabulary[next])
      written += vocabulary[next]
      if (stop.wanted()) break
    }
    if (json) jsonLine({ text: written, prompt: values.prompt ?? '', length, seed, temperature, topK: values['top-k'] })
    else if (!written.endsWith('\n')) process.stdout.write('\n')
    return stop.exitCode
  },
})

function numbered(prompt: string, vocabulary: readonly string[]): number[] {
  const characters = [...prompt.replaceAll('\r\n', '\n')]
  const strange = [...new Set(characters)].filter((character) => !vocabulary.includes(character))
  if (strange.length > 0) {
    const shown = strange.slice(0, 10).map((character) => JSON.stringify(character))
    throw new UsageError(`--prompt has characters that the model has never seen: ${shown.join(' ')}`)
  }
  return characters.map((character) => vocabulary.indexOf(character))
}
