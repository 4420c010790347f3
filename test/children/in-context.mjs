// Loads the package into a context of its own, as Jest does, and trains in it.
//   node --experimental-vm-modules in-context.mjs
import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { createContext, runInContext, SourceTextModule, SyntheticModule } from 'node:vm'

const names = ['process', 'Buffer', 'URL', 'TextEncoder', 'TextDecoder', 'AbortSignal', 'setTimeout', 'performance']
const context = createContext(Object.fromEntries(names.map((name) => [name, globalThis[name]])))
/** @type {Map<string, Promise<import('node:vm').Module>>} */
const modules = new Map()

/** A module of the context, or of Node. */
function moduleAt(/** @type {string} */ url) {
  if (!modules.has(url)) modules.set(url, load(url))
  return modules.get(url)
}

async function load(/** @type {string} */ url) {
  if (url.startsWith('node:')) {
    const builtin = await import(url)
    return new SyntheticModule(
      Object.keys(builtin),
      function () {
        for (const [name, value] of Object.entries(builtin)) this.setExport(name, value)
      },
      { context, identifier: url },
    )
  }
  return new SourceTextModule(readFileSync(fileURLToPath(url), 'utf8'), {
    context,
    identifier: url,
    initializeImportMeta: (meta) => {
      meta.url = url
    },
  })
}

const resolved = (/** @type {string} */ name, /** @type {{ identifier: string }} */ from) =>
  moduleAt(name.startsWith('.') ? new URL(name, from.identifier).href : name)

async function entry(/** @type {string} */ name) {
  const module = await moduleAt(new URL(`../../dist/${name}.js`, import.meta.url).href)
  await module.link(resolved)
  await module.evaluate()
  return module.namespace
}

/** @type {import('../../lib/index.js')} */
const { clipGradNorm, crossEntropy, memory, scope, SGD, tensor } = await entry('index')
/** @type {import('../../language-model/index.js')} */
const { CharacterTokenizer, LanguageModel } = await entry('language-model')

const symbol = runInContext('Symbol.dispose', context)
const before = memory().tensors
const model = new LanguageModel({ tokenizer: CharacterTokenizer.of('abc'), context: 8, dim: 8, layers: 1, experts: 2 })
const optimizer = new SGD(model.parameters(), { lr: 0.1 })
scope(() => {
  const [input, target] = [0, 1].map((from) => tensor(Int32Array.of(0, 1, 2, 0, 1).slice(from, from + 4), [1, 4]))
  crossEntropy(model.forward(input).logits, target).backward()
})
clipGradNorm(model.parameters(), 1e-3)
optimizer.step()
optimizer.zeroGrad()
let text = ''
for await (const piece of model.generate('ab', { maxTokens: 5 })) text += piece
optimizer[symbol]()
model[symbol]()
console.log(`${text.length} characters, ${memory().tensors - before} tensors left`)
