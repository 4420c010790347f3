interface Arrow {
  from: string
  to: string
}
export function isAllowed(from: string, to: string): boolean
export function importsOf(file: string, source: string): { to: string; loads: boolean }[]
export function arrowsOf(root: string): (Arrow & { loads: boolean })[]
export function circlesOf(arrows: readonly Arrow[]): string[][]
