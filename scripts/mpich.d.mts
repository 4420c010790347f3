export const mpichVersion: string
export function mpichFiles(system: string): Record<string, string>
