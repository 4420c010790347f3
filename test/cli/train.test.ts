import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import {
  cpSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { describe, expect, test } from 'vitest'
import { layerFlags } from '../../cli/trainer/options.js'
import { root } from '../support/blocks.js'
import { editCheckpoint } from '../support/checkpoint-file.js'
import { at, bin, cli, cliAlone, expectRefused, folder, jsonLines, succeeded, tiny, weights } from '../support/cli.js'
import { printed } from '../support/program.js'
import { sentences } from '../support/sentences.js'

/** `st-moe train`. */

describe('train', () => {
  const checkpoint = (run: string): Buffer => readFileSync(at(`${run}/checkpoint.safetensors`))

  test('stopped by Ctrl-C and resumed it ends as if it had not been, bit for bit', async () => {
    const sizes = [...tiny, '--steps', '500', '--evaluate-every', '100']
    await succeeded(['train', 'book.txt', '--out', 'whole', ...sizes])
    const first = await cliAlone(['train', 'book.txt', '--out', 'parts', ...sizes], 'step 100 ')
    const err = 'finishing this step and saving; press Ctrl-C again to stop at once\n'
    expect(first).toMatchObject({ code: 130, err })
    expect(first.out).toMatch(/step \d+ of 500, report and checkpoint in parts; continue with --resume --out parts\n$/)
    expect(readdirSync(at('parts'))).not.toContain('run.lock')
    expect(weights('parts').equals(weights('whole'))).toBe(false)
    await succeeded(['train', '--resume', '--out', 'parts'])
    expect(weights('parts').equals(weights('whole'))).toBe(true)
  })

  test('--tensorboard writes a file of events to a folder', async () => {
    await succeeded(['train', 'book.txt', '--out', 'seen', '--tensorboard', 'board', '--steps', '3', ...tiny])
    const files = readdirSync(at('board'))
    expect(files).toEqual([expect.stringMatching(/^events\.out\.tfevents\./)])
    const text = readFileSync(at(`board/${files[0]}`), 'latin1')
    for (const tag of ['loss/training', 'loss/held-out', 'dropped', 'learning rate', 'expert load/layer 0', 'sample'])
      expect(text).toContain(tag)
    for (const board of ['book.txt/x', '/proc/nothing/here']) {
      const refused = await cli(['train', 'book.txt', '--out', 'seen2', '--tensorboard', board, ...tiny])
      expect(refused.code).toBe(1)
      expect(refused.err).toContain(`cannot write ${board}`)
      expect(refused.err).not.toContain('    at ')
    }
  })

  test('Ctrl-C that npm passes on counts once; a second one ends at once', async () => {
    const program = `
      import { Stop } from ${JSON.stringify(pathToFileURL(join(root, 'cli/stop.ts')))}
      const stop = new Stop()
      const seen = new Set()
      const say = (text) => seen.has(text) || console.log(seen.add(text) && text)
      setInterval(() => {
        say('ready')
        if (stop.wanted()) say('wanted')
        if (process.listenerCount('SIGINT') === 0) say('open')
      }, 5)`
    const child = spawn(process.execPath, ['--import', 'tsx', '--input-type=module', '-e', program])
    const steps: Record<string, () => void> = {
      ready: () => child.kill('SIGINT'),
      wanted: () => child.kill('SIGINT'),
      open: () => child.kill('SIGINT'),
    }
    let said = ''
    child.stdout.on('data', (data) => {
      said += data
      steps[String(data).trim()]?.()
    })
    const [code, signal] = await once(child, 'close')
    expect({ said, code, signal }).toEqual({ said: 'ready\nwanted\nopen\n', code: null, signal: 'SIGINT' })
  })

  test('control characters of a file name are shown', async () => {
    const name = 'a\x1b]0;b\x07\n\u202ec.txt'
    expectRefused(await cli(['train', name, ...tiny]), 1, "open '/") // one line
    cpSync(at('book.txt'), at(name))
    const out = await succeeded(['train', name, '--out', 'named', '--steps', '2', ...tiny])
    expect(out).toContain('a\\x1b]0;b\\x07\\n\\u202ec.txt: ')
    expect(out).not.toContain('\x1b')
    const [start] = jsonLines(await succeeded(['train', name, '--out', 'json2', '--steps', '2', '--json', ...tiny]))
    expect(start.text).toBe(name)
    expect(readFileSync(at('named/report.html'), 'utf8')).not.toContain('\x1b')
  })

  test('a step that blows up says what may help', async () => {
    const { code, err } = await cli(['train', 'book.txt', '--out', 'steep', '--lr', '1e30', ...tiny])
    expect(code).toBe(1)
    expect(err).toMatch(/^st-moe train: step \d+: .* must be finite.*; a lower --lr may help\. .*\n$/)
    expect(existsSync(at('steep/checkpoint.safetensors'))).toBe(true)
    const evaluated = await cli([
      'train',
      'book.txt',
      '--out',
      'steeper',
      '--evaluate-every',
      '1',
      '--lr',
      '1e30',
      ...tiny,
    ])
    expect(evaluated.code).toBe(1)
    expect(evaluated.err).toMatch(
      /^st-moe train: step 2: the loss on held-out text is \w+; a lower --lr may help\. .*\n$/,
    )
  })

  test('killed, it continues from the last checkpoint, and its lock does not block', async () => {
    const child = spawn(process.execPath, [bin, 'train', 'book.txt', '--out', 'killed', '--steps', '100000', ...tiny], {
      cwd: folder,
    })
    await printed(child, 'step 200 ')
    // While it runs, nobody else writes there.
    expectRefused(await cli(['train', 'book.txt', '--out', 'killed', ...tiny]), 1, /killed is in use by process \d+/)
    child.kill('SIGKILL')
    await once(child, 'close')
    expect(existsSync(at('killed/run.lock'))).toBe(true)
    const [first, ...events] = jsonLines(
      await succeeded(['train', '--resume', '--out', 'killed', '--minutes', '0.02', '--json']),
    )
    expect(first.event).toBe('resume')
    expect(first.step % 200).toBe(0)
    expect(events.at(-1)).toMatchObject({ event: 'end', steps: 100000, out: 'killed' })
    expect(events.at(-1).step).toBeGreaterThan(first.step)
    expect(readdirSync(at('killed'))).not.toContain('run.lock')
  })

  test('--json is a line for each event', async () => {
    const events = jsonLines(await succeeded(['train', 'book.txt', '--out', 'json', '--steps', '3', '--json', ...tiny]))
    expect(events.map(({ event }) => event)).toEqual([
      'start',
      'evaluation',
      'step',
      'step',
      'step',
      'evaluation',
      'end',
    ])
    expect(events[0]).toMatchObject({ text: 'book.txt', charactersPerStep: 32 })
    expect(events[2].loss).toBeGreaterThan(0)
  })

  test('Windows newlines, a byte order mark and any script are text', async () => {
    writeFileSync(at('unicode.txt'), `\ufeff${'Ünïcödé 漢字 😀 text, ligne après ligne.\r\n'.repeat(60)}`)
    await succeeded(['train', 'unicode.txt', '--steps', '2', ...tiny])
    const { text } = JSON.parse(readFileSync(at('runs/unicode/run.json'), 'utf8'))
    expect(text.vocabulary).toContain('😀')
    expect(text.vocabulary).not.toContain('\r')
    expect(text.vocabulary).not.toContain('\ufeff')
    expect(await succeeded(['generate', 'runs/unicode', '--prompt', '😀 ', '--length', '9'])).toMatch(/^😀 /)
  })

  test('one expert, top-1; a text of one character', async () => {
    writeFileSync(at('same.txt'), 'a'.repeat(500))
    await succeeded(['train', 'same.txt', '--steps', '2', ...tiny, '--width', '8', '--experts', '1', '--top-n', '1'])
    expect(JSON.parse(readFileSync(at('runs/same/run.json'), 'utf8')).options).toMatchObject({ dim: 8, experts: 1 })
  })

  const layer = ['--router', 'switch', '--score-function', 'sigmoid', '--dropless', '--activation', 'relu']
  test('the layers of a run are those of its flags, when it is resumed and generates too', async () => {
    const flags = [...tiny, ...layer, '--expert-hidden-dim', '40', '--shared-experts', '1']
    await succeeded(['train', 'book.txt', '--out', 'layers', ...flags, '--steps', '20'])
    const { options } = JSON.parse(readFileSync(at('layers/run.json'), 'utf8'))
    expect(options).toMatchObject({ router: 'switch', 'score-function': 'sigmoid', dropless: true, activation: 'relu' })
    await succeeded(['generate', 'layers', '--length', '5'])
    const out = await succeeded(['train', '--resume', '--out', 'layers', '--steps', '30'])
    expect(out).toContain('resumed at step 20\n')
    const report = readFileSync(at('layers/report.html'), 'utf8')
    expect(report).toContain('<tr><th>router</th><td>switch</td></tr>')
    expect(report).not.toContain('top-n')
    await succeeded(['train', 'book.txt', '--out', 'layers2', ...flags, '--steps', '20'])
    await succeeded(['train', '--resume', '--out', 'layers2', '--steps', '30'])
    expect(weights('layers2').equals(weights('layers'))).toBe(true)
  })

  test('a run from before there were other layers continues and generates as with the defaults', async () => {
    cpSync(at('run'), at('old'), { recursive: true })
    const run = JSON.parse(readFileSync(at('old/run.json'), 'utf8'))
    for (const name of Object.keys(layerFlags)) delete run.options[name]
    writeFileSync(at('old/run.json'), JSON.stringify(run))
    expect(await succeeded(['generate', 'old', '--length', '50'])).toBe(
      await succeeded(['generate', 'run', '--length', '50']),
    )
    cpSync(at('run'), at('new'), { recursive: true })
    for (const name of ['old', 'new']) await succeeded(['train', '--resume', '--out', name, '--steps', '40'])
    expect(weights('old').equals(weights('new'))).toBe(true)
    expect(JSON.parse(readFileSync(at('old/run.json'), 'utf8')).options).toMatchObject({ router: 'topk' })
  })

  test('starting another run there does not overwrite a run', async () => {
    const before = checkpoint('run')
    const again = await cli(['train', 'book.txt', '--out', 'run', ...tiny])
    expectRefused(again, 1, /run contains a run: --resume continues it, --overwrite replaces it/)
    expect(checkpoint('run').equals(before)).toBe(true)
    cpSync(at('run'), at('again'), { recursive: true })
    await succeeded(['train', 'book.txt', '--out', 'again', '--overwrite', '--steps', '2', ...tiny])
    expect(checkpoint('again').equals(before)).toBe(false)
  })

  test.each([
    ['/proc/nothing/here', /cannot be written to: ENOENT/],
    ['/proc/self', /cannot be written to/],
    ['book.txt', /book\.txt cannot be written to: .*book\.txt is not a folder/],
    ['book.txt/under', /cannot be written to: .*book\.txt is not a folder/],
    ['long'.repeat(100), /cannot be written to: ENAMETOOLONG/],
  ])('--out %s cannot be written to', async (out, message) => {
    expectRefused(await cli(['train', 'book.txt', '--out', out, ...tiny]), 1, message)
  })

  test.each<[string, string[], RegExp]>([
    ['sizes', ['--dim', '1e9'], /training at this size needs at least \S+ GB of memory, \S+ GB are available/],
    ['batches', ['--batch', '1e12'], /training at this size needs/],
    ['a device that is not there', ['--device', 'cuda'], /device 'cuda:0' cannot be used: plugin: \/nowhere\.so/],
  ])('%s', async (_what, args, message) => {
    expectRefused(await cli(['train', 'book.txt', '--out', 'big', ...tiny, ...args]), 1, message)
  })
})

describe('a damaged run', () => {
  const damage: [string, (run: string) => void, RegExp][] = [
    ['none', () => {}, /there is no run in .*: st-moe train creates one/],
    [
      'cut short',
      (run) => truncateSync(join(run, 'checkpoint.safetensors'), 1000),
      /checkpoint\.safetensors: the header claims \d+ bytes, the file has 1000$/m,
    ],
    [
      'empty',
      (run) => truncateSync(join(run, 'checkpoint.safetensors')),
      /checkpoint\.safetensors: a safetensors file has at least 8 bytes, this has 0$/m,
    ],
    [
      'sparse',
      (run) => truncateSync(join(run, 'checkpoint.safetensors'), 2 ** 40),
      /the tensors need \d+ bytes of data, the file has \d{13}$/m,
    ],
    ['no run.json', (run) => rmSync(join(run, 'run.json')), /cannot read .*run\.json: ENOENT/],
    ['bad JSON', (run) => writeFileSync(join(run, 'run.json'), '{'), /run\.json must hold JSON: /],
    ['other JSON', (run) => writeFileSync(join(run, 'run.json'), '{}'), /run\.json does not describe a run/],
    [
      'another model',
      (run) => {
        const file = join(run, 'run.json')
        writeFileSync(file, readFileSync(file, 'utf8').replace('"dim": 16', '"dim": 18'))
      },
      /checkpoint\.safetensors holds tokens\.weight \[\d+, 16\], but the model of .*run\.json .* has tokens\.weight \[\d+, 18\]/,
    ],
  ]
  test.each(damage)('%s', async (name, spoil, message) => {
    const run = at(`damaged-${name.replaceAll(' ', '-')}`)
    if (name !== 'none') cpSync(at('run'), run, { recursive: true })
    spoil(run)
    expectRefused(await cli(['train', '--resume', '--out', run]), 1, message)
    expectRefused(await cli(['generate', run]), 1, message)
  })

  /** The JSON text with the value of an entry, wherever it is, replaced by other JSON. */
  const replaced = (json: string, name: string, value: string): string => {
    const holder = (of: Record<string, unknown>): Record<string, unknown> | undefined =>
      Object.hasOwn(of, name)
        ? of
        : Object.values(of)
            .map((entry) => (typeof entry === 'object' && entry !== null ? holder(entry as typeof of) : undefined))
            .find(Boolean)
    const all = JSON.parse(json)
    holder(all)![name] = '@@'
    return JSON.stringify(all).replace('"@@"', value)
  }
  let copies = 0
  function copyOf(run: string): string {
    const copy = at(`copy-${copies++}`)
    cpSync(at(run), copy, { recursive: true })
    return copy
  }
  async function expectBothRefuse(run: string, message: RegExp, ofModel = message) {
    expectRefused(await cli(['train', '--resume', '--out', run]), 1, message)
    expectRefused(await cli(['generate', run]), 1, ofModel)
  }
  /** Entries that say nothing of the model. */
  const ofTraining = ['lr', 'threads', 'device', 'path', 'name', 'digest']
  const wrongModel =
    /run\.json does not describe a run of this version of st-moe train: (options|text)|holds \d+ bytes of tensors, but/

  test.each([
    ['layers', '2147483648', /options\.layers must be a whole number from 1 to 1024, got 2147483648$/m],
    [
      'dim',
      '100000000',
      /holds \d+ bytes of tensors, but the model of .*run\.json \(layers 1, dim 100000000, experts 4, context 16\) has at least 1760\d{15}$/m,
    ],
    ['dim', '"16"', /options\.dim must be a whole number of at least 1, got "16"$/m],
    ['lr', '1e999', /options\.lr must be a number from 0 to 1\.79\S+, got Infinity$/m],
    ['lr', '"0.1"', /options\.lr must be a number of at least 0, got "0\.1"$/m],
    ['heads', '3', /--dim must be a multiple of --heads, got 16 and 3$/m],
    ['threads', '{"__proto__":{"x":1}}', /options\.threads must be a whole number from 1 to 256, got an object$/m],
    ['router', '"top"', /options\.router must be one of topk, switch.*, got "top"$/m],
    ['router', '"expertChoice"', /--router expertChoice is not for a language model/],
    ['router', '"switch","top-n":3', /of this version of st-moe train: --top-n is for --router "topk", got/],
    ['dropless', '1', /options\.dropless must be true or false, got 1$/m],
    ['expert-hidden-dim', '0', /options\.expert-hidden-dim must be a whole number of at least 1, got 0$/m],
    ['expert-hidden-dim', '1e12', /holds \d+ bytes of tensors, but the model of .*run\.json \(.*\) has at least \d+$/m],
    ['shared-experts', '4097', /options\.shared-experts must be a whole number from 0 to 4096, got 4097$/m],
    ['shared-experts', '4096', /holds \d+ bytes of tensors, but the model of .*run\.json \(.*\) has at least \d+$/m],
    ['activation', '["relu"]', /options\.activation must be one of geglu, .*, got \["relu"\]$/m],
    ['compute-dtype', '"f64"', /options\.compute-dtype must be one of f32, bf16, bf16x3, f16, got "f64"$/m],
    ['device', '"\\u001b[31m"', /options\.device must be cpu, cuda or cuda:N, got "\\u001b\[31m"$/m],
    ['options', '[]', /options must be an object, got \[\]$/m],
    ['vocabulary', '[]', /text\.vocabulary must be a string of unique characters, got \[\]$/m],
    ['vocabulary', '"abca"', /text\.vocabulary must be a string of unique/],
    ['vocabulary', '"\\ud800"', /text\.vocabulary must be a string of unique/],
    ['path', '"a\\u0000b"', /text\.path must be a string of 1 to 4096 characters/],
    ['name', '{}', /text\.name must be a string of 1 to 4096 characters, got an object$/m],
    ['digest', '"no"', /text\.digest must be 64 hexadecimal digits, got "no"$/m],
    ['digest', '"no","__proto__":{"x":1}', /text must not have an entry "__proto__"$/m],
  ])('run.json with %s %s', async (name, value, message) => {
    const run = copyOf('run')
    const file = join(run, 'run.json')
    writeFileSync(file, replaced(readFileSync(file, 'utf8'), name, value))
    if (!ofTraining.includes(name)) return expectBothRefuse(run, message, wrongModel)
    expectRefused(await cli(['train', '--resume', '--out', run]), 1, message)
    await succeeded(['generate', run, '--length', '3'])
  })

  test('run.json with a context that the text is too short for, and the checkpoint too small', async () => {
    const run = copyOf('run')
    const file = join(run, 'run.json')
    writeFileSync(file, replaced(readFileSync(file, 'utf8'), 'context', String(2 ** 32)))
    expectRefused(await cli(['train', '--resume', '--out', run]), 1, /a context of 4294967296 needs at least/)
    expectRefused(await cli(['generate', run]), 1, /bytes of tensors, but the model of/)
  })

  test.each<[string, (file: string) => void, RegExp]>([
    ['a pipe', (file) => spawnSync('mkfifo', [file]), /run\.json: it is a pipe, not a regular file$/m],
    ['a folder', (file) => mkdirSync(file), /run\.json: it is a directory, not a regular file$/m],
    [
      'as large as a disk',
      (file) => truncateSync(file, 2 ** 40),
      /has 1099511627776 bytes, at most 5000000 are allowed$/m,
    ],
    ['without end', (file) => symlinkSync('/proc/self/pagemap', file), /run\.json must hold JSON: /],
    ['of brackets', (file) => writeFileSync(file, '['.repeat(5e6)), /run\.json must hold JSON: /],
    ['nested deep', (file) => writeFileSync(file, '['.repeat(1e6) + ']'.repeat(1e6)), /it must be an object, got \[/],
  ])('run.json that is %s', async (_what, make, message) => {
    const run = copyOf('run')
    const file = join(run, 'run.json')
    if (!_what.includes('disk')) rmSync(file)
    make(file)
    await expectBothRefuse(run, message)
  })

  test.each([
    ['evaluations', '[null]', /history\.evaluations\[0\] must be an object, got null$/m],
    [
      'evaluations',
      `[${'0,'.repeat(2e5)}0]`,
      /history\.evaluations\.length must be a whole number from 0 to 1024, got 200001$/m,
    ],
    ['evaluations', '[{"step":"<b>","loss":1,"sample":""}]', /history\.evaluations\[0\]\.step must be a whole number/],
    [
      'evaluations',
      '[{"step":1,"loss":null,"sample":""}]',
      /history\.evaluations\[0\]\.loss must be a number of at least 0, got null$/m,
    ],
    ['loss', '[]', /history\.loss\.length must be 30, got 0$/m],
    ['stride', '[[5]]', /history\.stride must be a whole number of at least 1, got/],
    ['load', `[${Array(30).fill('[[1,0,0]]')}]`, /history\.load\[0\]\[0\]\.length must be 4, got 3$/m],
    ['seconds', '"</text><script>"', /history\.seconds must be a number of at least 0, got "<\/text><script>"$/m],
    ['history', 'null', /history must be an object, got null$/m],
    ['extra', '7', /does not contain the history of its run: it must be an object, got 7$/m],
  ])('a checkpoint whose %s is wrong (%#)', async (name, value, message) => {
    const run = copyOf('run')
    editCheckpoint(join(run, 'checkpoint.safetensors'), (about) => replaced(about, name, value))
    expectRefused(await cli(['train', '--resume', '--out', run]), 1, message)
  })

  test('another text', async () => {
    writeFileSync(at('other.txt'), `${sentences(100)}!`)
    expectRefused(await cli(['train', 'other.txt', '--resume', '--out', 'run']), 1, /is not the text that this run/)
  })
})
