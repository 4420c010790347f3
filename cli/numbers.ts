/** What the terminal, the report and the page of a run share; without imports, so that browsers load it. */

export const mean = (values: readonly number[]): number => values.reduce((a, b) => a + b, 0) / values.length

/** As 1:02:03 or 2:03. */
export function duration(seconds: number): string {
  const whole = Math.round(seconds)
  const [hours, minutes, rest] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60]
  const padded = (value: number): string => String(value).padStart(2, '0')
  return hours > 0 ? `${hours}:${padded(minutes)}:${padded(rest)}` : `${minutes}:${padded(rest)}`
}
