// Not on the emulator: the disk fails before the library is loaded, a device needs it loaded first.
import * as fs from 'node:fs'
import { tmpdir } from 'node:os'
import { basename, join } from 'node:path'
import { afterAll, afterEach, describe, expect, test, vi } from 'vitest'
import { full, loadSafetensorsSync, type StateDict, saveSafetensors, saveSafetensorsSync } from '../../lib/index.js'
import { writeTogether } from '../../lib/io/atomic.js'
import { native } from '../../lib/runtime/native.js'
import { runChild } from '../support/child.js'

const faults = vi.hoisted(() => ({ countdown: Infinity, code: '', ofOwner: false, unreadable: '' }))

/** Counts calls down and fails one of them, as a full or broken disk would: both forms of each function. */
vi.mock('node:fs', async (importOriginal) => {
  const original = await importOriginal<typeof fs>()
  const fault = () => Object.assign(new Error(`${faults.code}: injected`), { code: faults.code })
  type Call = (...args: unknown[]) => unknown
  const failing = (name: string, due: (path: unknown) => boolean) => {
    const [asynchronous, synchronous] = [name, `${name}Sync`].map(
      (each) => (original as unknown as Record<string, Call>)[each],
    )
    return {
      [`${name}Sync`]: (...args: unknown[]) => {
        if (due(args[0])) throw fault()
        return synchronous(...args)
      },
      [name]: (...args: unknown[]) => {
        if (due(args[0])) return (args.at(-1) as (error: Error) => void)(fault())
        return asynchronous(...args)
      },
    }
  }
  const names = ['open', 'fstat', 'stat', 'readlink', 'readdir', 'write', 'fchmod', 'fsync', 'rename', 'close']
  const counted = names.map((name) => failing(name, (path) => --faults.countdown === 0 || path === faults.unreadable))
  return Object.assign(
    { ...original },
    ...counted,
    failing('fchown', () => faults.ofOwner),
  )
})

const folder = fs.mkdtempSync(join(tmpdir(), 'st-moe-atomic-'))
const file = join(folder, 'state.safetensors')
afterAll(() => fs.rmSync(folder, { recursive: true }))
afterEach(() => {
  Object.assign(faults, { countdown: Infinity, ofOwner: false, unreadable: '' })
})

const forms = {
  saveSafetensorsSync: async (path: string, state: StateDict) => saveSafetensorsSync(path, state),
  saveSafetensors,
}
const clear = () => {
  for (const name of fs.readdirSync(folder)) fs.rmSync(join(folder, name), { recursive: true })
}
const state = (value: number) => ({ a: full([5], value), b: full([3], value) })
const value = (path = file) => loadSafetensorsSync(path).tensors.a.dataSync()[0]
const leftover = `${file}.0123456789abcdef.tmp`

describe.each(Object.entries(forms))('%s', (_, save) => {
  test.each(['ENOSPC', 'EIO', 'EDQUOT', 'EROFS'])(
    '%s at any call leaves the old file and nothing else',
    async (code) => {
      clear()
      saveSafetensorsSync(file, state(1))
      const outcomes: Record<string, number> = {}
      for (let step = 1; ; step++) {
        Object.assign(faults, { countdown: step, code })
        const error = await save(file, state(1 + step)).then(
          () => null,
          (error) => error,
        )
        const reached = faults.countdown <= 0
        faults.countdown = Infinity
        expect(fs.readdirSync(folder)).toEqual(['state.safetensors'])
        if (error) {
          expect(error).toMatchObject({ name: 'MoeError', code: 'FILE_SYSTEM', cause: { code } })
          expect(error.message).toContain(`cannot write ${file}: ${code}`)
          const [, outcome] = /; (nothing was written|the file from before is intact|the file is replaced)/.exec(
            error.message,
          )!
          outcomes[outcome] = (outcomes[outcome] ?? 0) + 1
          expect(value()).toBe(outcome === 'the file is replaced' ? 1 + step : 1)
        }
        if (value() !== 1) saveSafetensorsSync(file, state(1))
        if (!reached) break
      }
      expect(outcomes).toEqual({
        'nothing was written': 2, // readlink, stat
        'the file from before is intact': 11, // readdir, open, fstat, four writes, fstat, fchmod, fsync, rename
        'the file is replaced': 2, // open and fsync of the folder
      })
    },
  )

  test('mode and owner stay', async () => {
    clear()
    await save(file, state(1))
    expect(fs.statSync(file).mode & 0o777).toBe(0o666 & ~process.umask())
    for (const mode of [0o600, 0o640, 0o666]) {
      fs.chmodSync(file, mode)
      await save(file, state(mode))
      expect([value(), fs.statSync(file).mode & 0o777]).toEqual([mode, mode])
    }
    if (process.getuid?.() !== 0) return
    fs.chownSync(file, 1234, 4321)
    await save(file, state(2))
    expect([fs.statSync(file).uid, fs.statSync(file).gid]).toEqual([1234, 4321])
    // as for an owner that a user namespace does not map
    Object.assign(faults, { ofOwner: true, code: 'EINVAL' })
    await save(file, state(3))
    expect([value(), fs.statSync(file).uid, fs.statSync(file).gid]).toEqual([3, 0, 0])
  })

  test('a symbolic link stays, and the file that it leads to is replaced in its own folder', async () => {
    clear()
    fs.mkdirSync(join(folder, 'disk/deep'), { recursive: true })
    fs.symlinkSync('disk/deep', join(folder, 'way'))
    fs.symlinkSync('way/../real', join(folder, 'first')) // that is disk/real
    fs.symlinkSync(join(folder, 'first'), join(folder, 'second'))
    for (const version of [1, 2]) {
      await save(join(folder, 'second'), state(version)) // at first there is no file
      expect(value(join(folder, 'disk/real'))).toBe(version)
      expect(fs.lstatSync(join(folder, 'second')).isSymbolicLink()).toBe(true)
      expect(fs.lstatSync(join(folder, 'first')).isSymbolicLink()).toBe(true)
    }
    expect(fs.readdirSync(folder).sort()).toEqual(['disk', 'first', 'second', 'way'])
    expect(fs.readdirSync(join(folder, 'disk')).sort()).toEqual(['deep', 'real'])
    fs.symlinkSync('b', join(folder, 'a'))
    fs.symlinkSync('a', join(folder, 'b'))
    await expect(save(join(folder, 'a'), state(1))).rejects.toMatchObject({
      code: 'FILE_SYSTEM',
      cause: { code: 'ELOOP' },
    })
  })

  test('a name may have 255 bytes, and a folder may refuse to be read', async () => {
    clear()
    for (const name of ['a'.repeat(255), '漢'.repeat(85)]) {
      const path = join(folder, name)
      const beginning = Buffer.from(name).subarray(0, 230).toString()
      fs.writeFileSync(join(folder, `${beginning}.0123456789abcdef.tmp`), 'left')
      Object.assign(faults, { unreadable: folder, code: 'EACCES' })
      await save(path, state(1))
      faults.unreadable = ''
      expect(fs.readdirSync(folder)).toHaveLength(2)
      await save(path, state(2))
      expect(value(path)).toBe(2)
      expect(fs.readdirSync(folder)).toEqual([name])
      fs.rmSync(path)
    }
  })

  test('what is no regular file is not replaced', async () => {
    clear()
    const refused = { code: 'FILE_SYSTEM' }
    fs.mkdirSync(join(folder, 'taken'))
    await expect(save(join(folder, 'taken'), state(1))).rejects.toMatchObject(refused)
    await expect(save('/dev/null', state(1))).rejects.toMatchObject(refused)
    expect(fs.statSync('/dev/null').isCharacterDevice()).toBe(true)
    const missing = join(folder, 'no', 'file')
    await expect(save(missing, state(1))).rejects.toMatchObject({ ...refused, cause: { code: 'ENOENT' } })
    expect(fs.readdirSync(folder)).toEqual(['taken'])
  })

  test('temporary files of others are no obstacle', async () => {
    clear()
    for (let i = 0; i < 300; i++) fs.writeFileSync(`${file}.${process.pid}.${i}.tmp`, '')
    await save(file, state(3))
    expect(value()).toBe(3)
  })

  test('what a killed writer left is removed, what another writer still fills is not', async () => {
    clear()
    fs.writeFileSync(leftover, 'half')
    const others = [`${leftover}.txt`, join(folder, 'other.safetensors.0123456789abcdef.tmp')]
    for (const other of others) fs.writeFileSync(other, '')
    const writer = fs.openSync(leftover, 'r+')
    expect(native.lockFile(writer)).toBe(0)
    await save(file, state(1))
    expect(fs.existsSync(leftover)).toBe(true)
    fs.closeSync(writer)
    await save(file, state(2))
    expect(fs.readdirSync(folder).sort()).toEqual([...others, file].map((path) => basename(path)).sort())
  })
})

test('four threads save to one path', async () => {
  clear()
  const { code, stdout, stderr } = await runChild('saving-workers.mjs', [file, '100'])
  expect([code, stderr, JSON.parse(stdout)]).toEqual([0, '', []])
  expect(new Set(loadSafetensorsSync(file).tensors.a.dataSync()).size).toBe(1)
  expect(fs.readdirSync(folder)).toEqual(['state.safetensors'])
})

test('of two files none is replaced until both are on disk', async () => {
  clear()
  const [first, second] = ['first', 'second'].map((name) => join(folder, name))
  const contents = () => [first, second].map((path) => fs.readFileSync(path, 'utf8'))
  const write = (text: string) =>
    writeTogether(
      [first, second].map((path) => ({ path, parts: [Buffer.from(text)] })),
      'save',
    )
  await write('old')
  const seen: string[] = []
  for (let step = 1; ; step++) {
    Object.assign(faults, { countdown: step, code: 'EIO' })
    const error = await write('new').catch((error) => error)
    const reached = faults.countdown <= 0
    faults.countdown = Infinity
    expect(fs.readdirSync(folder).sort()).toEqual(['first', 'second'])
    if (!reached) break
    if (error) {
      expect(error.message).toMatch(/cannot write .*(first|second): EIO: injected; /)
      seen.push(contents().join())
      expect(error.message.includes(`; ${first} is replaced; the file from before is intact`)).toBe(
        seen.at(-1) === 'new,old',
      )
    }
    await write('old')
  }
  expect(contents()).toEqual(['new', 'new'])
  // until the second rename, then the sync of both folders
  expect([...new Set(seen)]).toEqual(['old,old', 'new,old', 'new,new'])
  expect(seen.filter((contents) => contents === 'new,old')).toHaveLength(1)
})

test('saves at the same time do not disturb each other', async () => {
  clear()
  const saves = Array.from({ length: 8 }, (_, i) => saveSafetensors(file, { a: full([1000], i) }))
  await Promise.all(saves)
  expect(new Set(loadSafetensorsSync(file).tensors.a.dataSync()).size).toBe(1)
  expect(fs.readdirSync(folder)).toEqual(['state.safetensors'])
})
