import { Tensor } from './tensor.js'

type Method<M> = M extends (...args: infer A) => infer R ? (tensor: Tensor, ...args: A) => R : never

/**
 * Turns functions whose first argument is a tensor into methods of {@link Tensor}. The file of a function also declares
 * its method: `declare module '../tensor/tensor.js' { interface Tensor<D extends DType> { … } }`.
 */
export function asMethods<K extends keyof Tensor>(functions: { [N in K]: Method<Tensor[N]> }): void {
  for (const name of Object.keys(functions) as K[]) {
    const fn = functions[name] as (...args: unknown[]) => unknown
    const value = function (this: Tensor, ...args: unknown[]): unknown {
      return fn(this, ...args)
    }
    Object.defineProperty(value, 'name', { value: name })
    Object.defineProperty(Tensor.prototype, name, { value, writable: true, configurable: true })
  }
}
