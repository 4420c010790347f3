// Publishes the tarballs of scripts/pack.mjs, `st-moe` after those that it names. Packages that the registry has, with the
// same bytes, are skipped, so a run that failed half way can be finished. Needs npm and this file, no other package.
//
//   node scripts/publish.mjs [--folder FOLDER] [--version TAG] [--provenance] [--check]
//
// --folder: build/package by default. --version: the tag of Git, such as v0.1.0, which must be the version of the
// packages. --provenance: with a signed statement of where they were built, for which each needs `repository`; on GitHub
// only. --check: publishes nothing. The environment variable SHA256SUMS: the output of sha256sum for the tarballs, all
// of which must be there with these bytes. The registry is npm's (`npm config get registry`).
import { execFileSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { readdirSync, readFileSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'

const main = 'st-moe'
const stop = (message) => {
  throw new Error(`publish: ${message}`)
}
const hash = (algorithm, bytes, encoding) => createHash(algorithm).update(bytes).digest(encoding)

/** The packages in a folder, `st-moe` last. */
export function readPackages(folder) {
  const files = readdirSync(folder).filter((name) => name.endsWith('.tgz'))
  const packages = files.sort().map((name) => {
    const file = path.join(folder, name)
    const bytes = readFileSync(file)
    const manifest = JSON.parse(execFileSync('tar', ['-xOzf', file, 'package/package.json'], { encoding: 'utf8' }))
    return {
      file,
      manifest,
      sha256: hash('sha256', bytes, 'hex'),
      integrity: `sha512-${hash('sha512', bytes, 'base64')}`,
    }
  })
  const isMain = ({ manifest }) => manifest.name === main
  return [...packages.filter((one) => !isMain(one)), ...packages.filter(isMain)]
}

/** What is wrong with the packages, before a registry is asked. */
export function faults(packages, { tag, sums, provenance }) {
  const last = packages.at(-1)?.manifest
  if (last?.name !== main) return [`there is no ${main}: node scripts/pack.mjs --all`]
  const { version } = last
  const found = packages.map(({ manifest }) => manifest.name)
  const wanted = Object.keys(last.optionalDependencies ?? {})
  const pinned = new Map(
    sums?.split('\n').flatMap((line) => [/^(\w{64}) [ *](.+)$/.exec(line)?.slice(1).reverse() ?? []]),
  )
  const names = packages.map(({ file }) => path.basename(file))
  return [
    ...(tag && tag !== `v${version}` ? [`the tag is ${tag}, the version ${version}`] : []),
    ...wanted.filter((name) => !found.includes(name)).map((name) => `there is no ${name}, which ${main} needs`),
    ...packages.flatMap(({ file, manifest, sha256 }) => [
      ...(manifest.version === version ? [] : [`${manifest.name} has version ${manifest.version}, not ${version}`]),
      ...(sums === undefined || pinned.get(path.basename(file)) === sha256 ? [] : [`${file} is not what was packed`]),
      ...(!provenance || manifest.repository
        ? []
        : [`${manifest.name} has no repository, which package.json must name for the provenance`]),
    ]),
    ...[...pinned.keys()].filter((name) => name && !names.includes(name)).map((name) => `${name} is missing`),
  ]
}

const numbers = (version) => version.split('-')[0].split('.').map(Number)
const isOlder = (a, b) => {
  const at = [0, 1, 2].find((i) => numbers(a)[i] !== numbers(b)[i])
  return at !== undefined && numbers(a)[at] < numbers(b)[at]
}

/** The dist-tag of a version where `latest` is that of `newest`, or of nothing. npm refuses tags such as `v0.1`. */
export function distTag(version, newest) {
  const [, prerelease] = version.split(/-(.*)/)
  if (prerelease) return /^[a-z]+/.exec(prerelease)?.[0] ?? 'next'
  return newest && isOlder(version, newest) ? `release-${numbers(version).slice(0, 2).join('.')}` : 'latest'
}

/** What the registry has of a package, or null. */
async function published(from, name) {
  const address = new URL(name.replace('/', '%2f'), from.replace(/\/*$/, '/'))
  const response = await fetch(address, { headers: { accept: 'application/json' } })
  if (response.status === 404) return null
  if (!response.ok) stop(`${from} answers ${response.status} for ${name}`)
  return response.json()
}

async function publish({ folder, tag, provenance, check }) {
  const { SHA256SUMS: sums, GITHUB_EVENT_NAME: event } = process.env
  if (!check && event && event !== 'push') stop(`this run was started by ${event}, and only a pushed tag publishes`)
  const packages = readPackages(folder)
  const wrong = faults(packages, { tag, sums, provenance })
  if (wrong.length > 0) stop(wrong.join('\npublish: '))
  const npm = process.platform === 'win32' ? 'npm.cmd' : 'npm'
  const registry = execFileSync(npm, ['config', 'get', 'registry'], { encoding: 'utf8' }).trim()
  const there = await Promise.all(packages.map(({ manifest }) => published(registry, manifest.name)))
  const states = packages.map(({ manifest, integrity }, i) => {
    const integrityThere = there[i]?.versions?.[manifest.version]?.dist?.integrity
    return integrityThere === undefined ? 'missing' : integrityThere === integrity ? 'there' : 'other'
  })
  const others = packages.filter((_, i) => states[i] === 'other').map(({ manifest }) => manifest.name)
  if (others.length > 0)
    stop(`the registry has other bytes under this version of ${others.join(', ')}: take another version`)
  const { version } = packages.at(-1).manifest
  const dist = distTag(version, there.at(-1)?.['dist-tags']?.latest)
  for (const [i, { file, manifest }] of packages.entries()) {
    const name = `${manifest.name}@${version}`
    if (states[i] === 'there') console.log(`${name} is published already`)
    else if (check) console.log(`${name} would be published as ${dist}`)
    else {
      const flags = ['--access', 'public', '--tag', dist, '--ignore-scripts', ...(provenance ? ['--provenance'] : [])]
      execFileSync(npm, ['publish', path.resolve(file), ...flags], { stdio: 'inherit' })
      console.log(`${name} is published as ${dist}`)
    }
  }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const { values } = parseArgs({
    options: {
      folder: { type: 'string', default: fileURLToPath(new URL('../build/package', import.meta.url)) },
      version: { type: 'string' },
      provenance: { type: 'boolean', default: false },
      check: { type: 'boolean', default: false },
    },
  })
  await publish({ ...values, tag: values.version }).catch((error) => {
    console.error(error.message)
    process.exitCode = 1
  })
}
