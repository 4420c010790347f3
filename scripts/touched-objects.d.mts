export function touchedObjects(file: string, build?: string): string[]
