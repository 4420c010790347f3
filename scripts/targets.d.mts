export const targets: Record<string, string>
export const mpichSystems: Record<string, string>
export const plugins: Record<string, string>
export function addonOf(target: string): string
export function ownTarget(): string
export function systemOf(target: string): { platform: string; arch: string; libc?: string }
