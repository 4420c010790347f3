// Writes a text of `megabytes`, reads it, and prints by how much the memory of the process grew at most, as a multiple
// of the bytes of the text.
//
//   node large-text.mjs FOLDER MEGABYTES ALPHABET [VOCABSIZE]
import { closeSync, openSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import { Batches, loadCorpus } from '../../dist/language-model.js'

const [folder, megabytes, alphabet, vocabSize] = process.argv.slice(2)
const characters = [...alphabet]
let state = 1
const next = (n) => {
  state = (state * 48271) % 2147483647
  return state % n
}
const word = () => Array.from({ length: 2 + next(9) }, () => characters[next(characters.length)]).join('')
const words = Array.from({ length: 20_000 }, word)
const path = join(folder, `${megabytes}.txt`)
const file = openSync(path, 'w')
let size = 0
while (size < megabytes * 1e6) {
  const line = Array.from({ length: 10_000 }, () => words[Math.min(next(words.length), next(words.length))]).join(' ')
  size += writeSync(file, `${line}\n`)
}
closeSync(file)

const read = (bytes) =>
  loadCorpus(path, { context: 128, bytes, ...(vocabSize && { vocabSize: Number(vocabSize) }) }).then(({ training }) => {
    new Batches(training, { seed: 1, context: 128, batch: 4 }).at(0)
    return training
  })
await read(Buffer.from(`${words.join(' ')}\n`.repeat(4)))
const before = process.resourceUsage().maxRSS
const training = await read()
const rise = (process.resourceUsage().maxRSS - before) * 1024
console.log(JSON.stringify({ rise: rise / size, type: training.constructor.name, tokens: training.length }))
