// The files of a project of install-matrix.mjs. The programs train the same small layer and print its losses.
const train = `
manualSeed(1)
const moe = new MoE({ dim: 8, numExperts: 4, gatingTopN: 2 })
const optimizer = new AdamW(moe.parameters(), { lr: 1e-2 })
const x = randn([2, 16, 8])
let [first, last, all] = [0, 0, 'losses']
for (let step = 0; step < 5; step++) {
  last = scope(() => {
    const { outputs, totalAuxLoss } = moe.forward(x)
    const loss = outputs.sub(x).square().mean().add(totalAuxLoss)
    loss.backward()
    optimizer.step()
    optimizer.zeroGrad()
    return loss.item()
  })
  if (step === 0) first = last
  all += ' ' + last
}
if (!(last < first)) throw new Error('the loss does not fall: ' + all)
const tokenizer = CharacterTokenizer.of('ab')
const model = new LanguageModel({ tokenizer, context: 4, layers: 1, dim: 8, heads: 2, experts: 2 })
if (!(model instanceof Module)) throw new Error('st-moe/language-model has another copy of the classes of st-moe')
moe.forwardAsync(x).then(({ outputs }) => console.log('shape ' + outputs.shape + '\\n' + all))
`
const names = '{ AdamW, MoE, Module, manualSeed, randn, scope }'
const modelNames = '{ CharacterTokenizer, LanguageModel }'
const imports = `import ${names} from 'st-moe'\nimport ${modelNames} from 'st-moe/language-model'\n`
/** By name in the project's folder. */
export const files = {
  'main.cjs': `const ${names} = require('st-moe')\nconst ${modelNames} = require('st-moe/language-model')\n${train}`,
  'main.mjs': `${imports}${train}`,
  'worker.mjs': `import { Worker } from 'node:worker_threads'\nnew Worker(new URL('./main.mjs', import.meta.url))\n`,
  'typed-module.mts': `${imports}${train}`,
  'typed-common.cts': `import moe = require('st-moe')\nconst loss: number = moe.ones([2]).sum().item()\nconsole.log(loss)\n`,
  // An app of Electron, which ends once its argument, a process or thread of it, has trained.
  'electron.mjs': `
import { app, BrowserWindow, utilityProcess } from 'electron'
import { fileURLToPath } from 'node:url'
import { Worker } from 'node:worker_threads'
const program = fileURLToPath(new URL('./main.mjs', import.meta.url))
const trained = new Promise((resolve) => {
  const { log } = console
  console.log = (text) => (log(text), text.includes('losses') && resolve())
})
const show = ({ stdout, stderr }) => [stdout, stderr].map((stream) => stream.on('data', (text) => console.log(String(text))))
const uses = {
  main: () => import('./main.mjs'),
  worker: () => show(new Worker(program, { stdout: true, stderr: true })),
  utility: () => show(utilityProcess.fork(program, [], { stdio: 'pipe' })),
  async preload() {
    const window = new BrowserWindow({ show: false, webPreferences: { preload: program, sandbox: false } })
    window.webContents.on('console-message', ({ message }) => console.log(message))
    await window.loadURL('data:text/html,st-moe')
  },
}
app.whenReady().then(uses[process.argv.at(-1)]).then(() => trained).then(() => app.exit(0), (error) => (console.log(error), app.exit(1)))
`,
  'tsconfig.json': JSON.stringify({
    compilerOptions: {
      strict: true,
      exactOptionalPropertyTypes: true,
      noUncheckedIndexedAccess: true,
      noPropertyAccessFromIndexSignature: true,
      skipLibCheck: false,
      isolatedModules: true,
      verbatimModuleSyntax: true,
      module: 'nodenext',
      target: 'es2022',
      lib: ['es2023', 'esnext.disposable'],
      types: ['node'],
    },
    files: ['typed-module.mts', 'typed-common.cts'],
  }),
}
