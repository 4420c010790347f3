import { execFileSync } from 'node:child_process'
import { cpSync, existsSync, mkdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { describe, expect, test } from 'vitest'
import { ops, randn, scope, tensor } from '../../lib/index.js'
import { lossOptions, topkOptions } from '../../lib/ops/route-options.js'
import { type AddedFeature, addedFeatures } from '../support/added-features.js'
import { root } from '../support/blocks.js'
import { long } from '../support/numbers.js'

// The recipes of docs/adding-an-op.md. That the excerpts of the page are in the source is checked in docs.test.ts.

const page = readFileSync(join(root, 'docs/adding-an-op.md'), 'utf8')
const words = ['zero', 'one', 'two', 'three', 'four', 'five', 'six']

/** The text of the file with the edits of a feature. */
function edited(text: string, file: string, { edits }: AddedFeature): string {
  return edits
    .filter((edit) => edit.file === file)
    .reduce((done, { before, text: added }) => {
      expect(done.split(before).length, `${file} has once: ${before}`).toBe(2)
      return done.replace(before, () => added + before)
    }, text)
}

const filesOf = ({ edits }: AddedFeature): string[] => [...new Set(edits.map(({ file }) => file))]

test.each(addedFeatures)('$heading: the page names the files that change, and counts them', (feature) => {
  const section = page.split(/^# /m).find((text) => text.startsWith(`${feature.heading}\n`)) ?? ''
  const items = section.split(/^(?=\d\. )/m).slice(1)
  const files = filesOf(feature)
  expect(items).toHaveLength(files.length)
  expect(section.toLowerCase()).toMatch(new RegExp(`\\n\\n${words[files.length]} places[;,]`))
  for (const [i, file] of files.entries()) expect(items[i], `${i + 1}.`).toContain(`\`${file}\``)
  for (const file of files) edited(readFileSync(join(root, file), 'utf8'), file, feature)
})

// Minutes: all features at once, built in a copy.
describe.runIf(long)('a copy with every recipe applied', () => {
  const copy = join(root, 'build/adding')
  const run = (command: string, ...args: string[]) =>
    execFileSync(command, args, { cwd: copy, encoding: 'utf8', maxBuffer: 2 ** 28, stdio: ['ignore', 'pipe', 'pipe'] })

  test('is built', () => {
    rmSync(copy, { recursive: true, force: true })
    const files = execFileSync('git', ['ls-files', '-z', '--cached', '--others', '--exclude-standard'], { cwd: root })
    for (const file of `${files}`.split('\0').filter((name) => name && existsSync(join(root, name)))) {
      mkdirSync(dirname(join(copy, file)), { recursive: true })
      cpSync(join(root, file), join(copy, file))
    }
    run('git', 'init', '--quiet')
    symlinkSync(join(root, 'node_modules'), join(copy, 'node_modules'))
    for (const feature of addedFeatures) {
      for (const file of filesOf(feature))
        writeFileSync(join(copy, file), edited(readFileSync(join(copy, file), 'utf8'), file, feature))
      for (const [file, text] of Object.entries(feature.created ?? {})) writeFileSync(join(copy, file), text)
    }
    run('git', 'add', '--all') // tests ask git for the files
    run('npm', 'run', '--silent', 'build')
    run('cmake', '-S', '.', '-B', 'build', '-DST_MOE_TESTS=ON')
    run('cmake', '--build', 'build', '--parallel', '2', '--target', 'ops_test')
  })

  test.each(addedFeatures)('$heading: a user has it, and its cases pass', ({ use, cases }) => {
    const names = 'MoE, ones, Parameter, tensor'
    const program = `import * as st from 'st-moe'; const { SignSGD, ${names} } = st; console.log(${use})`
    expect(run(process.execPath, '--input-type=module', '--eval', program)).toBe('true\n')
    run(join(copy, 'build/ops_test'), ...cases)
  })

  test('compiles, and the tests that guard the places pass', () => {
    run('npx', 'tsc', '-p', 'test/tsconfig.json')
    const guards = ['ops/op-sets', 'ops/activation', 'autograd/gradcheck', 'runtime/native-calls', 'runtime/options']
    guards.push('nn/defaults', 'nn/routers', 'optim', 'docs/adding', 'docs/docs', 'docs/examples', 'cli/program')
    run('npx', 'vitest', 'run', ...guards.map((name) => `test/${name}`))
  })
})

test('a number of the router changes what it computes', () => {
  const options = { ...lossOptions, ...topkOptions }
  const numbers = Object.entries(options).filter(([, option]) => typeof option.default === 'number')
  expect(numbers.length).toBeGreaterThan(3)
  scope(() => {
    const [x, w] = [randn([2, 16, 8]), randn([4, 8])]
    const spread = Float32Array.from({ length: 128 }, (_, i) => ((i * 37) % 101) / 101)
    const gumbelUniforms = tensor(spread, [2, 16, 4])
    const uniforms = tensor(new Float32Array(64).fill(0.05), [2, 2, 16])
    const routed = (options: object) => {
      const { gate, weight, totalAuxLoss } = ops.route(x, w, { noiseGates: true, gumbelUniforms, uniforms, ...options })
      return [gate, weight, totalAuxLoss].map((value) => Array.from(value.dataSync()))
    }
    const sampled = { noiseGates: false, sampleExperts: true }
    const some: Record<string, object> = {
      routerTemperature: { ...sampled, routerTemperature: 0 },
      secondPlaceProb: { secondPlaceProb: 1 },
      routingGroups: { routingGroups: 2 },
      topGroups: { routingGroups: 2, topGroups: 1 },
    }
    const without: Record<string, object> = {
      routerTemperature: sampled,
      topGroups: { routingGroups: 2, topGroups: 2 },
    }
    for (const [name, option] of numbers) {
      const other = some[name] ?? { [name]: 2 * Number(option.default) + 3 }
      expect(routed(other), name).not.toEqual(routed(without[name] ?? {}))
    }
  })
})
