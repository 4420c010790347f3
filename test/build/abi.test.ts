import { spawn, spawnSync } from 'node:child_process'
import { cpSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, expect, test } from 'vitest'
import { root } from '../support/blocks.js'
import { runChild } from '../support/child.js'
import { compiler, inParallel } from '../support/compiler.js'
import { long } from '../support/numbers.js'

// The ABI number (native/core/abi.h) changes with every declaration that an addon and a plugin must agree on: each test
// changes a copy of native/core and lets the compiler compute the number.

const core = 'native/core'
const text = (file: string): string => readFileSync(join(root, core, file), 'utf8')
const files = (readdirSync(join(root, core), { recursive: true }) as string[]).map((file) => file.replaceAll('\\', '/'))
const lists = files.filter(
  (file) => file.endsWith('.inc') && /^(OP|STRUCT|UNARY|BINARY|ACTIVATION)\(/m.test(text(file)),
)

const folder = mkdtempSync(join(tmpdir(), 'st-moe-abi-'))
afterAll(() => rmSync(folder, { recursive: true, force: true }))

/** The number, by name of the variant, of `native/core` with other files. */
async function numbers(variants: Record<string, Record<string, string>>): Promise<Record<string, string>> {
  const found: Record<string, string> = {}
  await inParallel(Object.entries(variants), async ([name, changed], i) => {
    const copy = join(folder, `${i}`)
    mkdirSync(copy)
    cpSync(join(root, core), join(copy, 'core'), { recursive: true })
    for (const [file, now] of Object.entries(changed)) writeFileSync(join(copy, 'core', file), now)
    found[name] = await numberOf(copy)
    rmSync(copy, { recursive: true })
  })
  return found
}

/** The compiler says it in an error: an incomplete type of this number. */
function numberOf(include: string): Promise<string> {
  const source = join(include, 'number.cc')
  writeFileSync(source, '#include "core/abi.h"\ntemplate <unsigned> struct Abi;\nAbi<st_moe::kBackendAbi> abi;\n')
  return new Promise((resolve) => {
    const child = spawn(compiler, ['-std=c++20', '-fsyntax-only', `-I${include}`, source])
    let output = ''
    child.stderr.on('data', (data) => (output += data))
    child.on('close', () => resolve(/Abi<(\d+)/.exec(output)?.[1] ?? output))
  })
}

const hasCompiler = spawnSync(compiler, ['--version']).status === 0

/** Every variant has a number, and another one than native/core and than each other. */
async function expectOthers(variants: Record<string, Record<string, string>>, least: number): Promise<void> {
  expect(Object.keys(variants).length).toBeGreaterThanOrEqual(least)
  const some = Object.entries(variants).filter((_, i) => long || i % 6 === 0) // each takes a run of the compiler
  const found = await numbers({ unchanged: {}, ...Object.fromEntries(some) })
  for (const [name, number] of Object.entries(found)) expect(number, name).toMatch(/^\d+$/)
  const names = Object.keys(found)
  expect(names.filter((name, i) => names.findIndex((other) => found[other] === found[name]) !== i)).toEqual([])
}

test.skipIf(!hasCompiler)('unchanged declarations have the same number, whatever comments and spaces say', async () => {
  const spaced = Object.fromEntries(
    lists.map((file) => [
      file,
      text(file)
        .replaceAll(/^([A-Z_]+\(.*)$/gm, '  $1  // a comment')
        .replaceAll(', ', ' ,  '),
    ]),
  )
  const found = await numbers({ first: {}, second: {}, spaced })
  expect(found.first).toMatch(/^\d+$/)
  expect([found.second, found.spaced]).toEqual([found.first, found.first])
})

test.skipIf(!hasCompiler)('two lines swapped in a list change it', async () => {
  const swapped = lists.flatMap((file) => {
    const lines = text(file).split('\n')
    const isRow = (line = '') => /^(?!STRUCT|END|TEMPLATE|OP\()[A-Z_]+\(.*\)( *\/\/.*)?$/.test(line)
    const rows = lines.flatMap((line, i) => (isRow(line) && isRow(lines[i + 1]) && line !== lines[i + 1] ? [i] : []))
    const swap = (i: number) => [...lines.slice(0, i), lines[i + 1], lines[i], ...lines.slice(i + 2)].join('\n')
    return rows.slice(0, 1).map((i) => [file, { [file]: swap(i) }] as const)
  })
  expect(swapped.map(([file]) => file)).toEqual(lists)
  await expectOthers(Object.fromEntries(swapped), lists.length)
})

test.skipIf(!hasCompiler)('another argument of any macro of a declaration changes it, or that it is gone', async () => {
  const macros = Array.from(text('op_list.inc').matchAll(/^#ifndef (\w+)$/gm), ([, name]) => name)
  const declared = macros.filter((macro) => !['OP', 'END', 'ST_MOE_OPS'].includes(macro))
  const variants = declared.map((macro) => {
    const use = new RegExp(`\\b${macro}\\((?:[^()"]|"[^"]*"|\\([^()]*\\))*\\)`)
    const file = lists.find((list) => /^OP\(/m.test(text(list)) && use.test(code(text(list))))
    if (!file) throw new Error(`no op has ${macro}`)
    const other = (found: string) => (/\(\w/.test(found) ? found.replace(/\((const |\w)/, '(z') : '')
    return [macro, { [file]: code(text(file)).replace(use, other) }]
  })
  const moe = lists.find((list) => text(list).includes('OP(Route, route)')) as string
  variants.unshift([
    'a default',
    { [moe]: text(moe).replace('NUMBER(router_temperature, = 1)', 'NUMBER(router_temperature, = 2)') },
  ])
  variants.push(
    ['a default less', { [moe]: text(moe).replace('NUMBER(router_temperature, = 1)', 'NUMBER(router_temperature)') }],
    ['a range', { [moe]: text(moe).replace('SIZE(K, 1, 1 << 20)', 'SIZE(K, 1, 1 << 21)') }],
    ['optional', { [moe]: text(moe).replace('OPTIONAL_INPUT(mask', 'INPUT(mask') }],
    ['on the host', { [moe]: text(moe).replace('HOST_OUTPUT(ends', 'OUTPUT(ends') }],
    ['another op', { [moe]: `${text(moe)}\nOP(Other, other)\nDTYPE()\nEND\n` }],
    ['another name', { [moe]: text(moe).replace('OP(Topk, topk)', 'OP(Topk, top)') }],
  )
  await expectOthers(Object.fromEntries(variants), macros.length)
})

/** Without comments: what a macro of ops.inc is explained by is no use of it. */
const code = (list: string): string => list.replaceAll(/\/\/.*/g, '')

test.skipIf(!hasCompiler)('names of an enum that change places, and constants of structs, change it', async () => {
  const enums = files.flatMap((file) =>
    file.endsWith('.h') && file !== 'enum.h'
      ? Array.from(text(file).matchAll(/ST_MOE_ENUM\((\w+), (\w+), (\w+)/g), ([all, name, first, second]) => [
          name,
          { [file]: text(file).replace(all, `ST_MOE_ENUM(${name}, ${second}, ${first}`) },
        ])
      : [],
  )
  expect(enums.map(([name]) => name).sort()).toEqual(
    [
      'BalanceDensity',
      'DType',
      'Distribution',
      'ErrorCode',
      'GateNormalization',
      'Reduction',
      'ScoreFunction',
      'SecondPolicy',
    ].sort(),
  )
  const constants = ['kMaxRank', 'kErrorText', 'kFactors'].map((name) => {
    const file = files.find((header) => header.endsWith('.h') && text(header).includes(`${name} = `)) as string
    return [name, { [file]: text(file).replace(new RegExp(`${name} = (\\d+)`), `${name} = 1$1`) }]
  })
  await expectOthers(Object.fromEntries([...enums, ...constants]), 10)
})

test.skipIf(!hasCompiler)('a field more in any struct changes it, wherever it stands', async () => {
  const variants = lists.flatMap((file) =>
    Array.from(text(file).matchAll(/^STRUCT\((\w+)\)\n[\s\S]*?^END$/gm), ([struct, name]) => [
      [`${name}, first`, { [file]: text(file).replace(struct, struct.replace('\n', '\nFIELD(int32_t, more)\n')) }],
      [`${name}, last`, { [file]: text(file).replace(struct, struct.replace(/END$/, 'FIELD(int32_t, more)\nEND')) }],
    ]).flat(),
  )
  await expectOthers(Object.fromEntries(variants), 24)
})

test.skipIf(!hasCompiler || process.platform !== 'linux')(
  'a plugin that was built from other declarations is refused: with both numbers, and with what to do',
  async () => {
    const moe = 'ops/moe.inc'
    const changed = text(moe).replace('NUMBER(noise_mult)', 'NUMBER(noise_mult) NUMBER(noise_scale)')
    const builds: Record<string, string> = { same: text(moe), other: changed }
    const reports = Object.entries(builds).map(async ([name, ops]) => {
      const copy = join(folder, name)
      cpSync(join(root, core), join(copy, 'core'), { recursive: true })
      writeFileSync(join(copy, 'core', moe), ops)
      const plugin = join(copy, 'libempty.so')
      const source = join(root, 'test/native/empty_plugin.cc')
      const options = ['-std=c++20', '-shared', '-fPIC', '-fvisibility=hidden', `-I${copy}`, source, '-o', plugin]
      const { status, stderr } = spawnSync(compiler, options, { encoding: 'utf8' })
      expect(stderr).toBe('')
      expect(status).toBe(0)
      const { stdout } = await runChild('device-report.mjs', ['empty:0'], { env: { ST_MOE_PLUGINS: plugin } })
      const number = Number(await numberOf(copy))
      return { ...JSON.parse(stdout), number: number.toString(16).padStart(8, '0'), plugin }
    })
    const [same, other] = await Promise.all(reports)
    expect(same.devices.at(-1)).toMatchObject({ device: 'empty:0', available: true })
    expect(same.request).toBe('ready')
    const reason =
      `${other.plugin} has ABI ${other.number}, this addon has ABI ${same.number}: they are of different builds. ` +
      'Build this plugin again from the source of this version'
    expect(other.devices.at(-1)).toEqual({ device: 'empty', available: false, stage: 'abi', reason })
    expect(other.request.code).toBe('BACKEND_UNAVAILABLE')
    expect(other.request.message).toContain(reason)
    expect(other.cpu).toEqual([2, 4])
  },
)
