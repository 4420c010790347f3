import { faultOfBuild } from '../../scripts/sources.mjs'

/** Before tests that start programs of dist/: it must be what the sources make. */
export function setup(): void {
  const fault = faultOfBuild()
  if (fault !== null) throw new Error(fault)
}
