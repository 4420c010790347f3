type Manifest = Record<string, unknown> & { name: string; version: string }
export function manifestsOf(
  project: Record<string, unknown>,
  built: string[],
  plugins: string[],
  mpich?: string[],
): { main: Manifest; addons: Manifest[]; cuda: Manifest | null; mpich: Manifest[] }
