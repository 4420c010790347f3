import { randn, type Tensor } from '../../lib/index.js'

/** Enough work for many turns of the event loop. */
export const large = (): Tensor => {
  const x = randn([700, 700])
  return x.matmul(x).matmul(x).matmul(x)
}
