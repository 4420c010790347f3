export function pythonWith(file: string, environment: string): string
