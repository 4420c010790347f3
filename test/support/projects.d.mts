export const programFolders: string[]
export function exceptionsOf(place: string): { file: string; reason: string }[]
export function libraryFiles(): string[]
