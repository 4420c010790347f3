// A GEMM with a number that TF32 would round, and a router's selection between two weights that it would make equal.
import { ops, tensor } from '../../dist/index.js'

const cuda = { device: 'cuda' }
const fine = 1 + 2 ** -12
const product = ops.linear(tensor([fine], [1, 1], cuda), tensor([1], [1, 1], cuda)).item()
const { expertIndex } = ops.route(tensor([1], [1, 1, 1], cuda), tensor([1, fine], [2, 1], cuda))
console.log(JSON.stringify({ product, chosen: Array.from(expertIndex.dataSync()) }))
