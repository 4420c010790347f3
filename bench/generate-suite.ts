import { modelSizes } from '../cli/index.js'
import { CharacterTokenizer, LanguageModel } from '../language-model/index.js'
import { manualSeed, noGrad, scope, setNumThreads, tensor } from '../lib/index.js'
import { usual } from './demo.js'
import { clock, inTurns, type Participant } from './measured.js'
import type { Bench, Found } from './report.js'

const vocabulary = Array.from({ length: 86 }, (_, i) => String.fromCharCode(40 + i))

/**
 * How long does a character take that the demo's model generates, alone and with others, vs. a forward of the whole
 * context for each? Times are per character. The text is longer than the context, so that windows begin again.
 */
export async function generateSuite({ threads, repetitions, quick }: Bench): Promise<Found> {
  const options = quick ? { ...usual, layers: 1, dim: 16, context: 16, experts: 4 } : usual
  const { context } = options
  manualSeed(0)
  using model = new LanguageModel({ ...modelSizes(options), tokenizer: new CharacterTokenizer(vocabulary) }).eval()
  const prompt = Array.from({ length: context }, (_, i) => vocabulary[i % vocabulary.length]).join('')
  const window = model.tokenizer.encode(prompt)
  const results = []
  for (const count of threads) {
    setNumThreads(count)
    const whole: Participant = {
      name: 'whole-context/generate',
      params: { threads: count, texts: 1 },
      time: () =>
        perCharacter(8, () => noGrad(() => scope(() => model.predict(tensor(window, [1, context])).dataSync()))),
    }
    const cached = [1, 4, 16, 64].map(
      (texts): Participant => ({
        name: 'st-moe/generate',
        params: { threads: count, texts },
        time: () => timed(model, Array(texts).fill(prompt), context),
        against: [{ other: whole, measure: 'speed' }],
      }),
    )
    results.push(...(await inTurns([whole, ...cached], repetitions)))
  }
  return { results }
}

function perCharacter(characters: number, run: () => void): number {
  return (
    clock(() => {
      for (let i = 0; i < characters; i++) run()
    }) / characters
  )
}

async function timed(model: LanguageModel, prompts: readonly string[], maxTokens: number): Promise<number> {
  const start = performance.now()
  for await (const _ of model.generate(prompts, { maxTokens, temperature: 0.7 }));
  return (performance.now() - start) / (maxTokens * prompts.length)
}
