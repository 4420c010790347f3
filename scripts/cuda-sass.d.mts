export interface SassCounts {
  instructions: number
  read: number
  write: number
  local: number
}
export function countsOf(text: string): SassCounts
export function findNvdisasm(): string | null
export function sassOf(nvdisasm: string, cubin: string): Map<string, SassCounts>
