export function hashOfSources(): string
export function marked(source: string): string
export function faultOfBuild(): string | null
