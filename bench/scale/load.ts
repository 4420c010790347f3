import { readFileSync } from 'node:fs'

/** Seconds that all processors were busy since the machine started, that of other virtual machines included. Linux. */
export function busySeconds(): number {
  const [user, nice, system, , , irq, softirq, steal] = readFileSync('/proc/stat', 'utf8')
    .split('\n')[0]
    .split(/\s+/)
    .slice(1)
    .map(Number)
  return (user + nice + system + irq + softirq + steal) / 100
}

/** Seconds of processor time of this process. */
export function ownSeconds(): number {
  const { user, system } = process.cpuUsage()
  return (user + system) / 1e6
}
