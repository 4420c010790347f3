import { spawn } from 'node:child_process'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { createServer, type IncomingMessage } from 'node:http'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

// A registry of npm on the loopback device: what `npm publish` sends is stored, and package managers install from it.

interface Version {
  name: string
  version: string
  dist: { tarball: string; integrity: string }
}
interface Stored {
  name: string
  'dist-tags': Record<string, string>
  versions: Record<string, Version>
}
interface Sent extends Stored {
  _attachments: Record<string, { data: string }>
}

export interface PackageServer {
  address: string
  packages: Map<string, Stored>
  /** In the order in which they came. */
  order: string[]
  /** Names whose publishing fails: `refuse` before it is stored, `lose` after it, so that the answer is lost. */
  faults: Map<string, 'refuse' | 'lose'>
  /** Variables for package managers that use it, and nothing of the user who runs the tests. */
  env: NodeJS.ProcessEnv
  close(): void
}

async function textOf(request: IncomingMessage): Promise<string> {
  const parts: Buffer[] = []
  for await (const part of request) parts.push(part)
  return Buffer.concat(parts).toString()
}

export async function startPackageServer(): Promise<PackageServer> {
  const packages = new Map<string, Stored>()
  const tarballs = new Map<string, Buffer>()
  const faults: PackageServer['faults'] = new Map()
  const order: string[] = []
  let address = ''

  /** The status of the answer. */
  function store(sent: Sent): number {
    const known = packages.get(sent.name) ?? { name: sent.name, 'dist-tags': {}, versions: {} }
    const fault = faults.get(sent.name)
    if (fault === 'refuse') return 503
    for (const [version, manifest] of Object.entries(sent.versions)) {
      if (version in known.versions) return 403
      const [file] = Object.keys(sent._attachments).filter((name) => name.endsWith('.tgz'))
      const place = `/-/tarballs/${sent.name}/${version}.tgz`
      tarballs.set(place, Buffer.from(sent._attachments[file!]!.data, 'base64'))
      known.versions[version] = { ...manifest, dist: { ...manifest.dist, tarball: `${address}${place}` } }
    }
    Object.assign(known['dist-tags'], sent['dist-tags'])
    if (!known['dist-tags'].latest) known['dist-tags'].latest = Object.keys(known.versions)[0]!
    packages.set(sent.name, known)
    order.push(sent.name)
    return fault === 'lose' ? 503 : 201
  }

  const server = createServer(async (request, response) => {
    const name = decodeURIComponent(new URL(request.url!, address).pathname)
    const answer = (status: number, body: unknown) =>
      response.writeHead(status, { 'content-type': 'application/json' }).end(JSON.stringify(body))
    if (request.method === 'PUT') {
      const status = store(JSON.parse(await textOf(request)))
      answer(status, status === 201 ? { success: true } : { error: `refused with ${status}` })
    } else if (tarballs.has(name)) {
      response.writeHead(200, { 'content-type': 'application/octet-stream' }).end(tarballs.get(name))
    } else {
      const [, owner, tag] = /^\/(.*)\/(.*)$/.exec(name) ?? []
      const tagged = packages.get(owner ?? '') // pnpm asks for <name>/latest
      const found = packages.get(name.slice(1)) ?? tagged?.versions[tagged['dist-tags'][tag!] ?? tag!]
      answer(found ? 200 : 404, found ?? { error: 'not found' })
    }
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  const { port } = server.address() as AddressInfo
  address = `http://127.0.0.1:${port}`

  const home = mkdtempSync(join(tmpdir(), 'st-moe-home-'))
  const userconfig = join(home, '.npmrc')
  writeFileSync(userconfig, `registry=${address}/\n//127.0.0.1:${port}/:_authToken=token\nfetch-retries=0\n`)
  const { PATH } = process.env
  const env = {
    PATH,
    HOME: home,
    npm_config_userconfig: userconfig,
    npm_config_cache: join(home, 'cache'),
    npm_config_registry: `${address}/`, // of others than npm
    npm_config_audit: 'false',
    npm_config_update_notifier: 'false',
    YARN_NPM_REGISTRY_SERVER: address,
    YARN_UNSAFE_HTTP_WHITELIST: '127.0.0.1',
    YARN_ENABLE_TELEMETRY: '0',
    YARN_ENABLE_IMMUTABLE_INSTALLS: '0',
    YARN_GLOBAL_FOLDER: join(home, 'yarn'),
    BUN_CONFIG_REGISTRY: address,
  }
  const close = () => {
    server.close()
    server.closeAllConnections()
    rmSync(home, { recursive: true, force: true })
  }
  return { address, packages, order, faults, env, close }
}

/** Runs a program to its end, while this process goes on to answer. */
export async function runBeside(command: string, args: string[], options: { cwd?: string; env?: NodeJS.ProcessEnv }) {
  const child = spawn(command, args, { ...options, stdio: ['ignore', 'pipe', 'pipe'] })
  let output = ''
  for (const stream of [child.stdout, child.stderr])
    stream.setEncoding('utf8').on('data', (text: string) => {
      output += text
    })
  const status = await new Promise<number | null>((resolve, reject) =>
    child.once('error', reject).once('close', resolve),
  )
  return { status, output }
}
