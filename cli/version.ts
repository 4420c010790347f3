import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { packageRoot } from '../lib/doctor/index.js'

/** Version of this package. */
export function packageVersion(): string {
  return JSON.parse(readFileSync(join(packageRoot, 'package.json'), 'utf8')).version
}
