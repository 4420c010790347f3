import { mkdirSync, mkdtempSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import {
  checkpointProgress,
  Linear,
  loadCheckpoint,
  MoE,
  MoeError,
  moeOptions,
  readSafetensorsHeaderSync,
  saveCheckpoint,
  saveSafetensorsSync,
  utils,
} from '../../lib/index.js'

/** What libraries and programs on top of this package use: options, files that survive a crash, checkpoints with more in them. */

let folder: string
const at = (name: string): string => join(folder, name)
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'st-moe-utils-'))
})
afterEach(() => rmSync(folder, { recursive: true }))

describe('files that belong together', () => {
  test('are all replaced, or none', async () => {
    await utils.writeFiles([{ path: at('a'), data: 'old' }])
    const missing = at('missing/b')
    const files = [
      { path: at('a'), data: 'new' },
      { path: missing, data: 'new' },
    ]
    expect(() => utils.writeFilesSync(files)).toThrow(/^\[writeFiles\] cannot write .*missing[\\/]b: ENOENT/)
    await expect(utils.writeFiles(files)).rejects.toThrow(MoeError)
    expect(readFileSync(at('a'), 'utf8')).toBe('old')
    expect(readdirSync(folder)).toEqual(['a'])
    utils.writeFilesSync([files[0], { path: at('b'), data: Uint8Array.of(7) }])
    expect([readFileSync(at('a'), 'utf8'), readFileSync(at('b'))[0]]).toEqual(['new', 7])
  })

  test.each([
    [undefined, '[writeFiles] files must be an array, got undefined'],
    [[{ path: '', data: '' }], '[writeFiles] path must be a file name, got ""'],
    [[{ path: 'a' }], '[writeFiles] files[0].data must be a string or a Uint8Array, got undefined'],
    [[null], '[writeFiles] files[0].data must be a string or a Uint8Array, got undefined'],
  ])('%j is refused', (files, text) => {
    expect(() => utils.writeFilesSync(files as never)).toThrow(text)
  })
})

describe('a file to read', () => {
  test('has at most so many bytes', () => {
    writeFileSync(at('a'), 'four')
    expect(utils.readFileSync(at('a'), 4)).toHaveLength(4)
    expect(() => utils.readFileSync(at('a'), 3)).toThrow('has 4 bytes, at most 3 are allowed')
  })

  test('is a regular file', () => {
    expect(() => utils.readFileSync(folder)).toThrow(/it is a directory, not a regular file/)
    expect(() => utils.within('load', () => utils.readFileSync(at('none')))).toThrow(/^\[load\] cannot read .*ENOENT/)
  })
})

test('a folder is created with those above it, but not in the place of a file', () => {
  utils.makeFolder(at('one/two'))
  utils.makeFolder(at('one/two'))
  writeFileSync(at('file'), '')
  for (const name of ['file', 'file/x', 'file/x/y'])
    expect(() => utils.makeFolder(at(name))).toThrow(
      `[makeFolder] ${at(name)} cannot be written to: ${at('file')} is not a folder`,
    )
})

test('a lock is for one holder, and for a file', () => {
  const lock = utils.lockFile(at('lock'))
  expect(() => utils.lockFile(at('lock'), 'the model')).toThrow(
    `[lockFile] the model is in use by process ${process.pid}`,
  )
  expect(lock.isHeld()).toBe(true)
  lock.release()
  expect(readdirSync(folder)).toEqual([])
  utils.lockFile(at('lock')).release()
  const moved = utils.lockFile(at('lock'))
  renameSync(at('lock'), at('elsewhere'))
  writeFileSync(at('lock'), 'of somebody else')
  expect(moved.isHeld()).toBe(false)
  moved.release()
  expect(readdirSync(folder).sort()).toEqual(['elsewhere', 'lock'])
  mkdirSync(at('folder'))
  expect(() => utils.lockFile(at('folder'))).toThrow(MoeError)
})

describe('a checkpoint with more in it', () => {
  const save = (options?: object) =>
    saveCheckpoint(at('run'), { model: new Linear(2, 2), step: 3, extra: [1] }, options)

  test('returns its metadata, and is replaced together with the files beside it', async () => {
    await save({ metadata: { text: 'book' }, beside: [{ path: at('config.json'), data: '{}' }] })
    const progress = { step: 3, extra: [1], metadata: { text: 'book' } }
    expect(await checkpointProgress(at('run'))).toEqual(progress)
    expect(await loadCheckpoint(at('run'), { model: new Linear(2, 2) })).toEqual(progress)
    const before = readFileSync(at('run'))
    await expect(save({ beside: [{ path: at('none/config.json'), data: '{"a":1}' }] })).rejects.toThrow(/ENOENT/)
    expect(readFileSync(at('run')).equals(before)).toBe(true)
    expect(readdirSync(folder).sort()).toEqual(['config.json', 'run'])
  })

  test('has no metadata unless it was given some', async () => {
    await save()
    expect(await checkpointProgress(at('run'))).toStrictEqual({ step: 3, extra: [1] })
  })

  test.each([
    [{ metadata: { a: 1 } }, '[saveCheckpoint] metadata["a"] must be a string, got 1'],
    [{ beside: 1 }, '[saveCheckpoint] beside must be an array, got 1'],
    [{ besides: [] }, 'unknown option "besides"; did you mean \'beside\'?'],
  ])('%j is refused', async (options, text) => {
    await expect(save(options)).rejects.toThrow(text)
    expect(readdirSync(folder)).toEqual([])
  })

  test('is no other file', async () => {
    saveSafetensorsSync(at('plain'), {})
    await expect(checkpointProgress(at('plain'))).rejects.toThrow(/is not a checkpoint/)
    expect(readSafetensorsHeaderSync(at('plain'))).toEqual({ tensors: {}, metadata: {} })
  })
})

describe('the options of a layer as data', () => {
  test('are those that the layer takes', () => {
    const made = new MoE({ dim: 8, router: moeOptions.router.default as 'topk' })
    made.dispose()
    expect(Object.keys(moeOptions)).toEqual(
      expect.arrayContaining(['dim', 'numExperts', 'activation', 'sharedExperts']),
    )
    expect(() => MoE.checkOptions({ dim: 8, numExperts: 4, gatingTopN: 5 })).toThrow('[MoE] gatingTopN must be at most')
    expect(() => MoE.checkOptions({ dim: 8, processGroup: {} as never })).toThrow(MoeError)
    MoE.checkOptions({ dim: 8 })
  })
})
