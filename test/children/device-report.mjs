// Prints devices() and the result of an explicit request for a GPU, as JSON.
import { devices, MoeError, memory, tensor } from '../../dist/index.js'

const listed = devices()
const opened = Object.keys(memory().devices) // by the listing
let request = 'ready'
try {
  tensor([1, 2], null, { device: process.argv[2] ?? 'cuda' }).dispose()
} catch (error) {
  request = error instanceof MoeError ? { code: error.code, message: error.message } : String(error)
}
const cpu = Array.from(tensor([1, 2]).mul(2).dataSync())
console.log(JSON.stringify({ devices: listed, opened, request, cpu }))
