import { command } from './command.js'
import { UsageError } from './errors.js'
import { deviceFlag, number, text, threadsFlag, toggle } from './flags.js'
import { jsonLine } from './output.js'
import { Stop } from './stop.js'
import { visible } from './visible.js'

/** `st-moe generate` */
export const generate = command({
  program: 'st-moe generate',
  summary: 'Generates text with a model from st-moe train.',
  positional: 'FOLDER',
  flags: {
    prompt: text({ help: 'text to continue (a new line)', value: 'TEXT', default: null }),
    length: number({
      help: 'tokens to generate: characters, unless the run has byte pairs',
      default: 400,
      min: 1,
      max: 1e6,
    }),
    temperature: number({ help: 'lower: more predictable; 0: always the likeliest', default: 0.7, min: 0, real: true }),
    'top-k': number({ help: 'sample from the N likeliest tokens; 0: from all', default: 0, min: 0 }),
    'top-p': number({
      help: 'sample from the likeliest tokens with this share of the probability',
      default: 1,
      min: 0,
      max: 1,
      real: true,
    }),
    stop: text({ help: 'ends the text before this one', value: 'TEXT', default: null }),
    seed: number({ help: 'random seed; the same seed generates the same text', default: 1, min: 0 }),
    device: deviceFlag,
    threads: threadsFlag,
    json: toggle('print one line of JSON at the end instead of text'),
  },
  examples: [
    ['st-moe generate runs/book', 'generate text'],
    ['st-moe generate runs/book --prompt "Call me " --length 1000 --temperature 0.5', 'continue a prompt'],
    ['st-moe generate runs/book --seed 7 --json', 'for programs'],
  ],
  notes: 'Standard output contains only the text, starting with the prompt.',
  async run({ values, positionals: [folder] }) {
    if (folder === undefined) throw new UsageError('missing FOLDER; st-moe train prints it at the end')
    const { length, seed, temperature, 'top-k': topK, 'top-p': topP, stop: end, json } = values
    const options = { maxTokens: length, seed, temperature, topK, topP, ...(end !== null && { stop: end }) }
    const stop = new Stop()
    const { loadModel, promptFor } = await import('./trainer/load.js')
    using model = await loadModel(folder, values)
    const prompt = promptFor(model, values.prompt)
    // A file gets the text unchanged; a terminal shows control characters instead of executing them.
    const show = (text: string): unknown => process.stdout.write(process.stdout.isTTY ? visible(text) : text)
    let written = values.prompt ?? ''
    if (!json) show(written)
    for await (const piece of model.generate(prompt, options)) {
      if (!json) show(piece)
      written += piece
      if (stop.wanted()) break
    }
    if (json) jsonLine({ text: written, prompt: values.prompt ?? '', length, seed, temperature, topK, topP, stop: end })
    else if (!written.endsWith('\n')) process.stdout.write('\n')
    return stop.exitCode
  },
})
