// A program of somebody who uses the package. scripts/check-types.mjs compiles it against dist/*.d.ts with the strictest
// options, by several versions of TypeScript, with and without @types/node. Nothing runs.
import {
  AdamW,
  arange,
  captureStep,
  clipGradNorm,
  type DType,
  Embedding,
  Experts,
  Linear,
  loadSafetensorsSync,
  Module,
  MoE,
  type MoEResult,
  ones,
  ops,
  rand,
  randn,
  SparseMoEBlock,
  scope,
  type Tensor,
  type TensorOptions,
  tensor,
  zeros,
} from 'st-moe'
import {
  CharacterTokenizer,
  LanguageModel,
  type LanguageModelResult,
  makeOptimizer,
  TrainStep,
} from 'st-moe/language-model'

type Same<A, B> = (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : false
/** Compiles where the type of the value is T, neither wider nor narrower. */
declare function is<T>(): <V>(value: V, ...same: Same<V, T> extends true ? [] : ['another type', V]) => void

type AnyArray = Float32Array | Float64Array | Int32Array | Uint16Array

// ---- values are typed by their dtype, if it is known

is<Float32Array>()(randn([2, 3]).dataSync())
is<Float32Array>()(ones([2], { device: 'cpu' }).dataSync())
is<Int32Array>()(zeros([2], { dtype: 'i32' }).dataSync())
is<Float64Array>()(rand([2], { dtype: 'f64', requiresGrad: true }).dataSync())
is<Uint16Array>()(zeros([2], { dtype: 'bf16' }).dataSync())
is<Float32Array>()(
  tensor([
    [1, 2],
    [3, 4],
  ]).dataSync(),
)
is<Float32Array>()(tensor(1).dataSync())
is<Float32Array>()(tensor(new Float32Array(4), [2, 2]).dataSync())
is<Float64Array>()(tensor(new Float64Array(4)).dataSync())
is<Int32Array>()(tensor(new Int32Array(4)).dataSync())
is<Int32Array>()(tensor(new Uint8Array(4)).dataSync())
is<Float64Array>()(tensor([1, 2], null, { dtype: 'f64' }).dataSync())
is<Uint16Array>()(tensor(new Uint16Array(2), [2], { dtype: 'f16' }).dataSync())
is<Promise<Float32Array>>()(randn([2]).data())
const options: TensorOptions = { dtype: 'i32' }
is<AnyArray>()(zeros([2], options).dataSync())
declare const dtype: DType
is<AnyArray>()(zeros([2], { dtype }).dataSync())
is<Int32Array | Float32Array>()(arange(4).dataSync())

const x = randn([2, 3], { dtype: 'f64' })
is<Float64Array>()(x.add(1).mul(x).sum(0).reshape([3]).exp().clone().detach().dataSync())
is<Float64Array>()(x.matmul(x.transpose()).slice(0, 1).softmax().dataSync())
is<Float32Array>()(x.to('f32').dataSync())
is<Float64Array>()(x.to('cpu').dataSync())
is<Float64Array>()(ops.concat([x, x], 0).dataSync())
is<Float64Array | undefined>()(x.grad?.dataSync())
is<typeof x>()(x.copyFrom([1, 2, 3]))
x.registerHook((grad) => grad.neg()).remove()
x.backward(null, { retainGraph: true })
is<Int32Array>()(ops.topk(x, 2).indices.dataSync())
is<number>()(x.item())
const plain: Tensor = x
is<AnyArray>()(plain.dataSync())
plain.grad = randn([2, 3])
is<AnyArray | undefined>()(loadSafetensorsSync('moe.safetensors').tensors.x?.dataSync())

// ---- layers

const moe = new MoE({ dim: 16, numExperts: 4 })
const result = moe.forward(randn([1, 8, 16]), { stats: true, mask: ones([1, 8], { dtype: 'i32' }) })
is<MoEResult<'f32'>>()(result)
const [outputs, totalAuxLoss, balanceLoss, routerZLoss] = result
is<Tensor<'f32'>>()(outputs)
is<Tensor<'f32'>>()(totalAuxLoss)
is<Tensor<'f32'>>()(balanceLoss)
is<Tensor<'f32'>>()(routerZLoss)
is<Tensor<'f32'>>()(result.outputs)
is<Int32Array>()(result.routing.expertIndex.dataSync())
is<number[] | undefined>()(result.stats?.keptPerExpert)
const [blockOutputs] = new SparseMoEBlock(moe, { addFfBefore: true }).forward(x)
is<Tensor<'f64'>>()(blockOutputs)
is<Tensor<'f32'>>()(new Linear(4, 2).forward(ones([1, 4])))
is<AnyArray>()(new Embedding(10, 4).forward(arange(3)).dataSync())
is<Experts>()(new Experts(4, 16, 32))
is<Experts>()(new Experts(4, 16, 32, { dtype: 'f64' }))
for (const [name, parameter] of moe.namedParameters()) {
  is<string>()(name)
  is<Float32Array | Float64Array | Uint16Array>()(parameter.dataSync()) // bits, if it is frozen in bf16 or f16
}

class Model extends Module {
  readonly layers = [new Linear(16, 16), new Linear(16, 16)]
  forward(x: Tensor): Tensor {
    return this.layers.reduce<Tensor>((x, layer) => layer.forward(x).gelu(), x)
  }
}
const model = new Model()
const optimizer = new AdamW(model.parameters(), { lr: 1e-3, betas: [0.9, 0.99] })
is<number>()(clipGradNorm(model.parameters(), 1))
is<Tensor<'f64'>>()(clipGradNorm(model.parameters(), 1, { wait: false }))
is<Tensor<'f32'>>()(scope(() => randn([2])))
const step = captureStep(() => ({ loss: model.forward(ones([1, 16])).mean() }))
is<Tensor>()(step.replay().loss)
optimizer.step()
model.registerForwardHook((_module, _args, result: Tensor) => result.mul(2))
const handle = moe.forwardWithGrad(new Float32Array(16), [1, 1, 16])
is<Float32Array | Float64Array>()(handle.backward(new Float32Array(16)).dInput)

{
  using scoped = randn([2])
  using resources = handle
  is<boolean>()(scoped.disposed)
  is<number>()(resources.totalAuxLoss)
}

// ---- the language model is an entry of its own, with the classes of the main one

const language = new LanguageModel({ tokenizer: CharacterTokenizer.of('ab'), layers: 1 })
const asModule: Module = language
const predicted: LanguageModelResult = language.forward(zeros([1, 4], { dtype: 'i32' }))
const loss: number = new TrainStep(language, makeOptimizer(language, 1e-3)).run({
  input: new Int32Array(4),
  target: new Int32Array(4),
})
void [asModule, predicted, loss]
