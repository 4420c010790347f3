export function plainName(demangled: string): string
