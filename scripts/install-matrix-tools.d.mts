export const nodes: Record<string, { name: string; versions: string[] }>
export function runtimesOf(system: string): Record<string, { spec: string; file: string; args: string[] }>
export function pathWith(
  node: string | null,
  folder: string,
  system?: { platform: string; SystemRoot?: string },
): string
export function fetchTools(names: string[]): void
export function toolFile(name: string, file: string): string
