export interface Packed {
  file: string
  manifest: { name: string; version: string; repository?: unknown; optionalDependencies?: Record<string, string> }
  sha256: string
  integrity: string
}
export function readPackages(folder: string): Packed[]
export function faults(packages: Packed[], options: { tag?: string; sums?: string; provenance?: boolean }): string[]
export function distTag(version: string, newest?: string): string
