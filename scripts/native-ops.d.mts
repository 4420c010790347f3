export interface DeclaredArgument {
  name: string
  macro: string
  element: string
  shape: string
}
export interface DeclaredOp {
  name: string
  jsName: string
  comment: string
  byHand: boolean
  /** One call takes the arguments of many. */
  batch: boolean
  args: DeclaredArgument[]
  outputs: { name: string; optional: boolean }[]
}
export function declaredOps(): DeclaredOp[]
export function writeNativeOps(): void
