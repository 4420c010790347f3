// A GEMM with a number that TF32 would round, and a router's selection between two weights that it would make equal, of
// few experts and of so many that a GEMM multiplies by their weights.
import { ops, tensor } from '../../dist/index.js'

const cuda = { device: 'cuda' }
const fine = 1 + 2 ** -12
const product = ops.linear(tensor([fine], [1, 1], cuda), tensor([1], [1, 1], cuda)).item()
const chosen = [2, 40].map((experts) => {
  const weights = Float32Array.from({ length: experts }, (_, e) => [1, fine][e] ?? 0)
  const { expertIndex } = ops.route(tensor([1], [1, 1, 1], cuda), tensor(weights, [experts, 1], cuda))
  return Array.from(expertIndex.dataSync())
})
console.log(JSON.stringify({ product, chosen }))
