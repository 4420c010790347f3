// The TypeScript side of native/core/ops.inc: the ops that it declares, as data for tests, and lib/runtime/native-ops.ts, which
// calls them by name. Run by `npm run build:ts` and by vitest; the file it writes is not checked in.
import { readFileSync, writeFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'

const root = fileURLToPath(new URL('..', import.meta.url))
/** A file below the root with LF, as a checkout with `core.autocrlf` may not have it. */
const textOf = (/** @type {string} */ name) => readFileSync(`${root}${name}`, 'utf8').replaceAll('\r\n', '\n')
const camel = (name) => name.replaceAll(/_(\w)/g, (_, letter) => letter.toUpperCase())

const unnamed = { COMPUTE: 'compute', GROUP: 'group' }

/** Macros that stand for arguments of the call, and the TypeScript type of each. */
const types = {
  INPUT: 'Handle',
  WEIGHT: 'Handle',
  OPTIONAL_INPUT: 'Handle | null',
  UPDATED: 'Handle',
  OPTIONAL_UPDATED: 'Handle | null',
  OPTIONAL_OUTPUT: 'boolean',
  COMPUTE: 'number',
  SIZE: 'number',
  SEED: 'number',
  INTEGER: 'number',
  NUMBER: 'number',
  FLAG: 'boolean',
  KIND: 'number',
  GROUP: 'number',
  COUNTS: 'Float64Array',
}
const created = [
  { name: 'shape', type: 'readonly number[]' },
  { name: 'dtype', type: 'number' },
  { name: 'device', type: 'number' },
]

function field([, macro, inside]) {
  const parts = inside.split(',').map((part) => part.trim().replaceAll('"', ''))
  if (macro === 'WEIGHT') parts.splice(1, 0, 'weight')
  const [name, element = 'real', shape = element] = parts
  if (macro === 'CREATED') return created.map((argument) => ({ ...argument, macro, optional: false }))
  if (!(macro in types)) return []
  const optional = /, =/.test(inside)
  return [{ name: name ? camel(name) : unnamed[macro], macro, type: types[macro], element, shape, optional }]
}

/**
 * The ops of ops.inc: `name` in C++ and `jsName`, `comment`, `byHand`, `batch`, `args` in the order of the native call, and the
 * names of the `outputs`, those that are `optional` with a boolean of that name among the arguments.
 */
export function declaredOps() {
  const text = textOf('native/core/ops.inc').replaceAll(/^#include "(.*)"$/gm, (_, name) => textOf(`native/${name}`))
  return Array.from(text.matchAll(/((?:^\/\/.*\n)*)^OP\(\w+, (\w+)\)(.*)\n([\s\S]*?)^END$/gm), (op) => {
    const [, above, name, beside, body] = op
    const fields = Array.from(body.replaceAll(/\/\/.*/g, '').matchAll(/(\w+)\(((?:[^()"]|"[^"]*")*)\)/g))
    const comment = `${above}${beside}`.replaceAll(/\s*\/\/ ?/g, ' ').trim()
    const outputs = fields
      .filter(([, macro]) => macro.endsWith('OUTPUT') || macro === 'CREATED')
      .map(([, macro, inside]) => ({ name: camel(inside.split(',')[0]), optional: macro === 'OPTIONAL_OUTPUT' }))
    return {
      name,
      jsName: camel(name),
      comment,
      byHand: body.includes('BY_HAND()'),
      batch: body.includes('BATCH()'),
      args: fields.flatMap(field),
      outputs,
    }
  })
}

function source({ jsName, comment, batch, args, outputs }) {
  const type = ({ optional }) => (optional ? 'Handle | null' : 'Handle')
  const parameters = args.map(({ name, type, optional }) => `${name}${optional ? '?' : ''}: ${type}`).join('; ')
  const above = comment ? `    /** ${comment} */\n` : ''
  if (batch) {
    const put = ({ name, type }) => `        rows[i++] = one.${name}${type.endsWith('null') ? ' ?? 0' : ''}\n`
    return `${above}    ${jsName}(items: readonly { ${parameters} }[]): void {
      const rows = allocateArray('${jsName}', 'f64', items.length * ${args.length})
      let i = 0
      for (const one of items) {\n${args.map(put).join('')}      }
      raw.${jsName}(rows)\n    },\n`
  }
  const call = `raw.${jsName}(${args.map(({ name }) => `given.${name}`).join(', ')})`
  const names = outputs.map(({ name }) => name)
  const [result, body] =
    names.length === 0
      ? ['void', call]
      : names.length === 1
        ? [type(outputs[0]), `return ${call}`]
        : [
            `{ ${outputs.map((output) => `${output.name}: ${type(output)}`).join('; ')} }`,
            `const [${names.join(', ')}] = ${call}\n      return { ${names.join(', ')} }`,
          ]
  return `${above}    ${jsName}(given: { ${parameters} }): ${result} {\n      ${body}\n    },\n`
}

/** How a replay gets the numbers of an update: those of the op's attributes, in the order of its declaration. */
function updateRow({ jsName, args }, number) {
  const attributes = args.filter(({ macro }) => macro === 'SIZE' || macro === 'NUMBER').map(({ name }) => name)
  const type = attributes.map((name) => `${name}: number`).join('; ')
  return `  ${jsName}: (given: { ${type} }): ReplayRow => [${[number, ...attributes.map((name) => `given.${name}`)].join(', ')}],\n`
}

/** The lists of functions by number, in the order of the native enumeration: in TypeScript an object of each. */
const kindLists = { unaryKind: 'unary_kinds.inc', binaryKind: 'binary_kinds.inc', activationKind: 'activations.inc' }

function kindsOf([name, file]) {
  const text = textOf(`native/core/${file}`).replaceAll(/\/\/.*/g, '')
  const names = Array.from(text.matchAll(/^[A-Z]+\((\w+),/gm), ([, kind]) => kind)
  return `export const ${name} = { ${names.map((kind, i) => `${kind}: ${i}`).join(', ')} } as const\n`
}

export function writeNativeOps() {
  const declared = declaredOps()
  const ops = declared.filter(({ byHand }) => !byHand)
  const isUpdate = ({ args }) =>
    args.some(({ name }) => name === 'step') && args.some(({ macro }) => macro === 'UPDATED')
  const updates = declared.flatMap((op, i) => (isUpdate(op) ? [updateRow(op, i)] : []))
  const text = `// Made from native/core/ops.inc by scripts/native-ops.mjs.
import { allocateArray } from './dtype.js'
import type { Handle } from './native.js'

// biome-ignore lint/suspicious/noExplicitAny: the functions of the addon, by position
export const nativeOps = (raw: any) => ({
${ops.map(source).join('')}})

/** What a replay passes to the device for one sample or update. */
export type ReplayRow = readonly number[]

/** What changes from one replay of a captured step to the next. */
export const replayRow = {
  sample: (given: { seed: number; step: number }): ReplayRow => [-1, given.seed, given.step],
${updates.join('')}}

// The numbers of the functions that one op computes.
${Object.entries(kindLists).map(kindsOf).join('')}`.replaceAll(/^ {4}(.*)/gm, '  $1')
  const file = `${root}lib/runtime/native-ops.ts`
  let old = ''
  try {
    old = readFileSync(file, 'utf8')
  } catch {}
  if (old !== text) writeFileSync(file, text)
}

if (process.argv[1] === fileURLToPath(import.meta.url)) writeNativeOps()
