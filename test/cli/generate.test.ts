import { spawnSync } from 'node:child_process'
import { writeFileSync } from 'node:fs'
import { describe, expect, test } from 'vitest'
import { at, bin, folder, jsonLines, succeeded, tiny } from '../support/cli.js'

/** `st-moe generate`. */

describe('generate', () => {
  const write = (...args: string[]) => succeeded(['generate', 'run', '--length', '50', ...args])

  test('the same seed writes the same, with any number of threads', async () => {
    const text = await write('--seed', '3', '--threads', '1')
    expect(await write('--seed', '3', '--threads', '2')).toBe(text)
    expect(await write('--seed', '4')).not.toBe(text)
    const [json] = jsonLines(await write('--seed', '3', '--json'))
    expect(json).toMatchObject({ text: text.slice(0, 50), prompt: '', seed: 3 })
    expect([...json.text]).toHaveLength(50)
  })

  test('what is not said has the defaults of the help', async () => {
    const [json] = jsonLines(await succeeded(['generate', 'run', '--json']))
    expect(json).toMatchObject({ prompt: '', length: 400, temperature: 0.7, topK: 0, seed: 1 })
    const spelled = ['--length', '400', '--temperature', '0.7', '--top-k', '0', '--seed', '1', '--prompt', '\n']
    expect(await succeeded(['generate', 'run', ...spelled])).toBe(`\n${json.text}\n`)
  })

  test('samples from the likeliest tokens, and ends before a text', async () => {
    const likeliest = await write('--temperature', '0')
    expect(await write('--top-p', '1e-9')).toBe(likeliest)
    expect(await write('--top-k', '1')).toBe(likeliest)
    const all = (await write('--seed', '3')).slice(0, 50)
    const end = all.slice(20, 24)
    const text = await write('--seed', '3', '--stop', end)
    expect(text).toBe(`${all.slice(0, all.indexOf(end, 1))}\n`)
    expect(jsonLines(await write('--seed', '3', '--stop', end, '--json'))[0]).toMatchObject({ stop: end, topP: 1 })
  })

  test('continues a prompt, longer than the context too', async () => {
    const prompt = 'The old whale sees the sea.\nThe '
    expect((await write('--prompt', prompt)).startsWith(prompt)).toBe(true)
  })

  const hasTerminals = spawnSync('script', ['--version']).status === 0
  test.skipIf(!hasTerminals)('shows control characters on a terminal, and writes them elsewhere', async () => {
    writeFileSync(at('colours.txt'), 'A \x1b[31mred\x1b[0m word.\n'.repeat(60))
    await succeeded(['train', 'colours.txt', '--steps', '2', ...tiny])
    const args = ['generate', 'runs/colours', '--prompt', '\x1b[31mred', '--length', '20']
    expect((await succeeded(args)).startsWith('\x1b[31mred')).toBe(true)
    const quoted = args.map((word) => `'${word}'`).join(' ')
    const { stdout } = spawnSync('script', ['-qc', `${process.execPath} ${bin} ${quoted}`, '/dev/null'], {
      cwd: folder,
      encoding: 'utf8',
    })
    expect(stdout).toMatch(/^\\x1b\[31mred/)
    expect(stdout).not.toContain('\x1b')
  })

  test('at temperature 0, and from the likeliest alone, chance has no part', async () => {
    const text = await write('--temperature', '0')
    expect(await write('--top-k', '1', '--seed', '9')).toBe(text)
    expect(await write('--temperature', '1e-300')).toBe(text)
  })
})
