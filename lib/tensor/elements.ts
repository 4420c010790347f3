import { fail } from '../runtime/check.js'
import { Tensor } from './tensor.js'

/** `x[0] = 3` would make a property of x and change no element. Only a name that no tensor has comes here. */
const behind = new Proxy(
  {},
  {
    set(target, name, value, receiver) {
      if (typeof name === 'string' && /^-?\d+$/.test(name))
        fail(
          'UNSUPPORTED',
          'Tensor',
          `x[${name}] = … sets no element of a tensor: x.copyFrom(values) sets all of them, and where() and concat() make a new tensor`,
        )
      return Reflect.set(target, name, value, receiver)
    },
  },
)
Object.setPrototypeOf(Tensor.prototype, behind)
