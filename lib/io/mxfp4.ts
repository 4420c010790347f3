import { reshape } from '../ops/reshape.js'
import { transpose } from '../ops/strided.js'
import { allocateArray } from '../runtime/dtype.js'
import { tensor } from '../tensor/create.js'
import type { Tensor } from '../tensor/tensor.js'

/** The 16 values of FP4 (E2M1). OCP Microscaling Formats (MX) 1.0, §5.3.3. */
const values = [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0, -0.5, -1, -1.5, -2, -3, -4, -6]

/**
 * A matrix [columns, rows] as gpt-oss stores it: blocks [rows, G, 16], two numbers a byte, the low half first, of which 32
 * share a scale [rows, G], 2^(scale − 127). Both are i32, as they are read from a file; f32.
 */
export function fromMxfp4(blocks: Tensor, scales: Tensor): Tensor {
  const [rows, G] = scales.shape
  const [bytes, exponents] = [blocks.dataSync(), scales.dataSync()]
  const out = allocateArray('loadTransformersMoE', 'f32', bytes.length * 2)
  for (let i = 0; i < bytes.length; i++) {
    const byte = Number(bytes[i])
    const scale = 2 ** (Number(exponents[i >> 4]) - 127)
    out[2 * i] = values[byte & 15] * scale
    out[2 * i + 1] = values[(byte >> 4) & 15] * scale
  }
  return transpose(reshape(tensor(out), [rows, G * 32]))
}
