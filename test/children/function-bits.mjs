// SHA-256 of the float32 values, and of the gradients, of the functions that the command line names, for a million arguments:
// half of them spread over all bit patterns, half between -8 and 8. A NaN counts as one value.
import { createHash } from 'node:crypto'
import { devices, ops, scope, tensor } from '../../dist/index.js'

const half = 500_000
const bits = new Uint32Array(2 * half)
const numbers = new Float32Array(bits.buffer)
for (let i = 0; i < half; i++) {
  bits[i] = i * 8589
  numbers[half + i] = (i - half / 2) / (half / 16)
}

function hashOf(x) {
  const values = new Uint32Array(x.dataSync().slice().buffer)
  for (let i = 0; i < values.length; i++) if ((values[i] & 0x7fffffff) > 0x7f800000) values[i] = 0x7fc00000
  return createHash('sha256').update(values).digest('hex').slice(0, 16)
}

/** The hash of f and that of its gradient. */
const hashes = (f) =>
  scope(() => {
    const x = tensor(numbers, [2 * half], { requiresGrad: true })
    const y = f(x)
    y.sum().backward()
    return `${hashOf(y)} ${hashOf(x.grad)}`
  })

const functions = Object.fromEntries(process.argv.slice(2).map((name) => [name, (x) => ops[name](x)]))
for (const exponent of [-2.5, 0.3, 3]) functions[`pow ${exponent}`] = (x) => ops.pow(x, exponent)
functions['pow of 1.7'] = (x) => ops.pow(1.7, x)
const found = Object.entries(functions).map(([name, f]) => [name, hashes(f)])
console.log(JSON.stringify({ variant: devices()[0].variant, hashes: Object.fromEntries(found) }))
