// The C++ tests and the tests of the library on other systems, under emulators: prints the counts of each system. Needs the
// prebuilds of these.
//
//   node test/platforms/run.mjs [--target NAME …] [--install]      --install: Debian's packages of the emulators, as root
import { execFileSync, spawnSync } from 'node:child_process'
import { existsSync } from 'node:fs'
import { availableParallelism } from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { emulators, lackOf, nodeOf, prepare, runOn } from '../../scripts/emulators.mjs'
import { addonOf } from '../../scripts/targets.mjs'
import { compileSuite, suiteFiles } from './compile.mjs'

const root = fileURLToPath(new URL('../..', import.meta.url))
const { values } = parseArgs({ options: { target: { type: 'string', multiple: true }, install: { type: 'boolean' } } })
const targets = values.target ?? Object.keys(emulators)

const total = { passed: 0, failed: 0, skipped: 0 }

function add(target, name, passed, failed, skipped) {
  total.passed += passed
  total.failed += failed
  total.skipped += skipped
  console.log(`${target}: ${name}: ${passed} passed, ${failed} failed, ${skipped} skipped`)
}

function nativeTests(target) {
  const build = path.join(root, 'build', `${target}-tests`)
  const flags = ['--tests', '--target', target]
  execFileSync(process.execPath, [path.join(root, 'scripts/prebuilds.mjs'), ...flags], { stdio: 'inherit' })
  const jobs = String(availableParallelism())
  const ctest = spawnSync('ctest', ['--test-dir', build, '--output-on-failure', '--parallel', jobs], {
    env: { ...process.env, WINEDEBUG: '-all' },
    encoding: 'utf8',
    maxBuffer: 2 ** 28,
  })
  const [, failed, all] = /(\d+) tests failed out of (\d+)/.exec(ctest.stdout) ?? ['', '1', '1']
  const skipped = ctest.stdout.match(/\*\*\*Skipped/g)?.length ?? 0
  if (failed !== '0') console.log(ctest.stdout.slice(-5000))
  add(target, 'C++ tests', all - failed - skipped, Number(failed), skipped)
}

async function suiteTests(target, folder) {
  const node = nodeOf(target)
  const { command } = emulators[target]
  const env = {
    ...process.env,
    ...(target.endsWith('musl') && { LIBC: 'musl' }),
    // QEMU runs one program, not those that it starts; Wine runs both.
    ...(target.startsWith('linux') && command && { ST_MOE_TEST_EMULATOR: command.join(' ') }),
  }
  const waiting = suiteFiles()
  const work = async () => {
    for (let name = waiting.shift(); name; name = waiting.shift()) {
      const { stdout, stderr } = await runOn(target, node, ['run.mjs', name.replace(/ts$/, 'js')], { cwd: folder, env })
      const counts = /(\d+) passed, (\d+) failed, (\d+) skipped\n$/.exec(stdout)?.slice(1).map(Number)
      if (!counts || counts[1] > 0) console.log(`${stdout}${stderr}`.slice(-5000))
      add(target, name, ...(counts ?? [0, 1, 0]))
    }
  }
  await Promise.all(Array.from({ length: availableParallelism() }, work))
}

const folder = await compileSuite()
for (const target of targets) {
  const lack = lackOf(target)
  if (lack && values.install) {
    const env = { ...process.env, DEBIAN_FRONTEND: 'noninteractive' }
    execFileSync('sh', ['-c', `${lack} -y -qq`], { stdio: 'inherit', env })
  }
  if (lackOf(target)) {
    console.log(`${target}: skipped: ${lack}`)
    total.skipped++
    continue
  }
  if (!existsSync(path.join(root, addonOf(target))))
    throw new Error(`platforms: npm run prebuilds -- --target ${target}`)
  await prepare(target)
  nativeTests(target)
  await suiteTests(target, folder)
}
console.log(`${total.passed} passed, ${total.failed} failed, ${total.skipped} skipped`)
process.exitCode = total.failed > 0 || total.passed === 0 ? 1 : 0
