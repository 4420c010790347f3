import { Generator, ops, tensor } from '../../lib/index.js'
import { functionSubject, type Leaf, type Leaves, type Subject } from './gradcheck.js'
import { Draw } from './numbers.js'

/** What is checked together, and what of the library it covers. */
export interface Row {
  name: string
  ops?: readonly string[]
  modules?: readonly string[]
  subjects: () => Subject[]
}

export const draw = new Draw(2202_08906)
export const sizeOf = (shape: readonly number[]): number => shape.reduce((a, b) => a * b, 1)

/** Numbers that float32 holds. */
export const leaf = (shape: readonly number[], number: () => number = () => draw.normal()): Leaf => ({
  shape,
  data: draw.array(sizeOf(shape), () => Math.fround(number())),
})

export const show = (...shapes: (readonly number[])[]): string =>
  shapes.map((shape) => `[${shape.join(', ')}]`).join(' ')
const shapes: readonly (readonly number[])[] = [[], [1], [7], [3, 5], [2, 1, 17]]

type UnaryOp =
  | 'softplus'
  | 'neg'
  | 'exp'
  | 'square'
  | 'gelu'
  | 'silu'
  | 'sigmoid'
  | 'tanh'
  | 'log'
  | 'sqrt'
  | 'abs'
  | 'relu'

/** Each op on several shapes. `number` keeps away from where the derivative jumps or is not defined. */
function unaryRow(op: UnaryOp, number: () => number = () => 1.5 * draw.normal()): Row {
  const subjects = () =>
    shapes.map((shape) => functionSubject(show(shape), { x: leaf(shape, number) }, ({ x }) => ops[op](x)))
  return { name: op, ops: [op], subjects }
}

const positive = () => draw.between(0.3, 3)
const awayFromZero = () => draw.between(0.1, 2) * draw.of([-1, 1])

const broadcast: readonly [readonly number[], readonly number[]][] = [
  [
    [3, 5],
    [3, 5],
  ],
  [[3, 5], [5]],
  [[5], [3, 5]],
  [
    [2, 1, 4],
    [3, 1],
  ],
  [[], [2, 3]],
  [
    [1, 7],
    [3, 1],
  ],
]

function binaryRow(op: 'add' | 'sub' | 'mul' | 'div' | 'maximum' | 'minimum'): Row {
  const b = op === 'div' ? awayFromZero : undefined
  return {
    name: op,
    ops: [op],
    subjects: () => [
      ...broadcast.map(([s, t]) =>
        functionSubject(show(s, t), { a: leaf(s), b: leaf(t, b) }, (x) => ops[op](x.a, x.b)),
      ),
      functionSubject('a number', { a: leaf([4, 3]) }, ({ a }) => ops[op](a, 1.75)),
      functionSubject('itself', { a: leaf([4], awayFromZero) }, ({ a }) => ops[op](a, a)),
    ],
  }
}

const selectionRows: Row[] = [
  {
    name: 'pow',
    ops: ['pow'],
    subjects: () => [
      ...broadcast.map(([s, t]) =>
        functionSubject(show(s, t), { a: leaf(s, positive), b: leaf(t) }, ({ a, b }) => ops.pow(a, b)),
      ),
      functionSubject('of negative numbers', { a: leaf([5], awayFromZero) }, ({ a }) => ops.pow(a, 3)),
      functionSubject('to the power of 0', { a: leaf([5]) }, ({ a }) => ops.pow(a, 0)),
    ],
  },
  {
    name: 'where',
    ops: ['where'],
    subjects: () =>
      broadcast.map(([s, t]) => {
        const mask = tensor(
          draw.array(sizeOf(t), () => draw.integer(0, 1)),
          t,
        )
        return functionSubject(show(s, t), { a: leaf(s), b: leaf(t) }, ({ a, b }) => ops.where(mask, a, b))
      }),
  },
  {
    name: 'clamp',
    ops: ['clamp'],
    subjects: () => [
      functionSubject('both limits', { x: leaf([3, 7]) }, ({ x }) => ops.clamp(x, -0.501, 0.302)),
      functionSubject('one limit', { x: leaf([9]) }, ({ x }) => ops.clamp(x, 0.103)),
    ],
  },
]

const indexRows: Row[] = [
  {
    name: 'gather',
    ops: ['gather'],
    subjects: () =>
      [
        { shape: [4], axis: 0, to: [7] },
        { shape: [3, 4, 5], axis: 1, to: [3, 6, 5] },
        { shape: [3, 4, 5], axis: -1, to: [2, 3, 1] },
      ].map(({ shape, axis, to }) => {
        const index = tensor(targets(sizeOf(to), shape.at(axis)!, false), to)
        return functionSubject(show(shape, to), { x: leaf(shape) }, ({ x }) => ops.gather(x, axis, index))
      }),
  },
  {
    name: 'indexSelect',
    ops: ['indexSelect'],
    subjects: () =>
      [0, 1, -1].map((axis) => {
        const index = tensor(targets(6, 3, false))
        return functionSubject(`axis ${axis}`, { x: leaf([3, 4, 5]) }, ({ x }) => ops.indexSelect(x, axis, index))
      }),
  },
]

const reductions: readonly [readonly number[], number | readonly number[] | undefined, boolean][] = [
  [[3, 5], undefined, false],
  [[], undefined, false],
  [[3, 5], 0, false],
  [[3, 5], -1, true],
  [[2, 3, 5], [0, 2], false],
  [[2, 3, 5], [-1, 1], true],
]

function reduceRow(op: 'sum' | 'mean' | 'max' | 'min'): Row {
  return {
    name: op,
    ops: [op],
    subjects: () =>
      reductions.map(([shape, axis, keep]) =>
        functionSubject(`${show(shape)} over ${axis}`, { x: leaf(shape) }, ({ x }) => ops[op](x, axis, keep)),
      ),
  }
}

const matmulShapes: readonly [readonly number[], readonly number[]][] = [
  [
    [3, 4],
    [4, 5],
  ],
  [
    [1, 1],
    [1, 1],
  ],
  [
    [2, 3, 7],
    [2, 7, 1],
  ],
  [
    [2, 3, 4],
    [4, 5],
  ],
  [
    [3, 4],
    [2, 2, 4, 3],
  ],
  [
    [9, 33],
    [33, 17],
  ],
]

const shapeRows: Row[] = [
  {
    name: 'reshape',
    ops: ['reshape'],
    subjects: () => [
      functionSubject('[2, 6] to [3, -1]', { x: leaf([2, 6]) }, ({ x }) => ops.reshape(x, [3, -1])),
      functionSubject('[1] to []', { x: leaf([1]) }, ({ x }) => ops.reshape(x, [])),
    ],
  },
  {
    name: 'transpose',
    ops: ['transpose'],
    subjects: () => [
      functionSubject('[3, 5]', { x: leaf([3, 5]) }, ({ x }) => ops.transpose(x)),
      functionSubject('[2, 3, 5] 0, 2', { x: leaf([2, 3, 5]) }, ({ x }) => ops.transpose(x, 0, 2)),
    ],
  },
  {
    name: 'slice',
    ops: ['slice'],
    subjects: () => [
      functionSubject('[4, 5] rows 1 to 3', { x: leaf([4, 5]) }, ({ x }) => ops.slice(x, 0, 1, 3)),
      functionSubject('[2, 3, 5] from −2', { x: leaf([2, 3, 5]) }, ({ x }) => ops.slice(x, -1, -2)),
    ],
  },
  {
    name: 'concat',
    ops: ['concat'],
    subjects: () => [
      functionSubject('axis 0', { a: leaf([2, 3]), b: leaf([1, 3]) }, ({ a, b }) => ops.concat([a, b], 0)),
      functionSubject('axis -1', { a: leaf([2, 3]), b: leaf([2, 4]) }, ({ a, b }) => ops.concat([a, b, a], -1)),
    ],
  },
  {
    name: 'stack, squeeze, unsqueeze',
    ops: ['stack', 'squeeze', 'unsqueeze'],
    subjects: () => [
      functionSubject('stack', { a: leaf([2, 3]), b: leaf([2, 3]) }, ({ a, b }) => ops.stack([a, b, a], -1)),
      functionSubject('squeeze', { x: leaf([1, 3, 1]) }, ({ x }) => ops.squeeze(x, 0).squeeze()),
      functionSubject('unsqueeze', { x: leaf([2, 3]) }, ({ x }) => ops.unsqueeze(x, 1)),
    ],
  },
  {
    name: 'clone',
    ops: ['clone'],
    subjects: () => [functionSubject('[3, 2]', { x: leaf([3, 2]) }, ({ x }) => ops.clone(x))],
  },
  {
    // Through the other type and back. Numbers and step are such that float32 holds all of them.
    name: 'to',
    ops: ['to'],
    subjects: () => [
      functionSubject(
        'f64 and f32',
        { x: leaf([3, 4], () => draw.integer(-64, 64) / 16) },
        ({ x }, dtype) => ops.to(ops.to(x, dtype === 'f64' ? 'f32' : 'f64'), dtype),
        2 ** -10,
      ),
    ],
  },
]

export const targets = (count: number, V: number, ignore: boolean) =>
  Int32Array.from({ length: count }, (_, i) => (ignore && i % 3 === 1 ? -100 : draw.integer(0, V - 1)))

function attentionSubject(
  [B, Nq, Nk, D]: [number, number, number, number],
  heads: number,
  causal: boolean,
  { kvHeads = heads, masked = false } = {},
): Subject {
  const width = (D / heads) * kvHeads
  const leaves: Leaves = { q: leaf([B, Nq, D]), k: leaf([B, Nk, width]), v: leaf([B, Nk, width]) }
  const mask = masked ? tensor(targets(B * Nk, 2, false), [B, Nk]) : null
  return functionSubject(`${show([B, Nq, Nk, D])} heads ${heads} causal ${causal}`, leaves, ({ q, k, v }) =>
    ops.attention(q, k, v, { heads, kvHeads, causal, mask, scale: causal ? undefined : 0.4 }),
  )
}

const rowsOf = (shapes: readonly (readonly number[])[], f: (shape: readonly number[]) => Subject) => () => shapes.map(f)

const layerRows: Row[] = [
  {
    name: 'matmul',
    ops: ['matmul'],
    subjects: () =>
      matmulShapes.map(([s, t]) =>
        functionSubject(show(s, t), { a: leaf(s), b: leaf(t) }, ({ a, b }) => ops.matmul(a, b)),
      ),
  },
  {
    name: 'linear',
    ops: ['linear'],
    subjects: rowsOf([[1, 1], [2, 3, 5], [19, 7], [4]], (shape) => {
      const I = shape[shape.length - 1]
      const leaves = { x: leaf(shape), w: leaf([6, I]), bias: leaf([6]) }
      return functionSubject(show(shape), leaves, ({ x, w, bias }) => [ops.linear(x, w, bias), ops.linear(x, w)])
    }),
  },
  {
    name: 'embedding',
    ops: ['embedding'],
    subjects: rowsOf([[5], [2, 3], []], (shape) => {
      const index = targets(sizeOf(shape), 4, false)
      return functionSubject(show(shape), { w: leaf([4, 3]) }, ({ w }) => ops.embedding(w, tensor(index, shape)))
    }),
  },
  {
    name: 'rmsNorm',
    ops: ['rmsNorm'],
    subjects: rowsOf([[4, 5], [2, 3, 1], [17], [3, 33]], (shape) => {
      const leaves = { x: leaf(shape, awayFromZero), gamma: leaf(shape.slice(-1)) }
      return functionSubject(show(shape), leaves, ({ x, gamma }) => ops.rmsNorm(x, gamma))
    }),
  },
  {
    name: 'layerNorm',
    ops: ['layerNorm'],
    subjects: rowsOf([[4, 5], [2, 3, 7], [17], [3, 33]], (shape) => {
      const leaves = { x: leaf(shape), weight: leaf(shape.slice(-1)), bias: leaf(shape.slice(-1)) }
      return functionSubject(show(shape), leaves, ({ x, weight, bias }) => ops.layerNorm(x, weight, bias, 1e-3))
    }),
  },
  {
    name: 'softmax',
    ops: ['softmax'],
    subjects: () => [
      ...[[4, 5], [2, 3, 1], [19]].map((s) => functionSubject(show(s), { x: leaf(s) }, ({ x }) => ops.softmax(x))),
      functionSubject('[3, 4, 2], axis 1', { x: leaf([3, 4, 2]) }, ({ x }) => ops.softmax(x, 1)),
    ],
  },
  {
    name: 'logSoftmax',
    ops: ['logSoftmax'],
    subjects: () => [
      ...[[4, 5], [2, 3, 1], [19]].map((s) => functionSubject(show(s), { x: leaf(s) }, ({ x }) => ops.logSoftmax(x))),
      functionSubject('[3, 4, 2], axis 1', { x: leaf([3, 4, 2]) }, ({ x }) => ops.logSoftmax(x, 1)),
    ],
  },
  {
    name: 'attention',
    ops: ['attention'],
    subjects: () => [
      attentionSubject([2, 5, 5, 6], 2, true),
      attentionSubject([1, 3, 7, 4], 1, true),
      attentionSubject([2, 6, 3, 9], 3, false),
      attentionSubject([1, 1, 1, 2], 1, true),
      attentionSubject([2, 5, 5, 8], 4, true, { kvHeads: 2 }),
      attentionSubject([2, 5, 6, 6], 3, false, { kvHeads: 1, masked: true }),
      attentionSubject([2, 6, 6, 4], 2, true, { masked: true }),
    ],
  },
  {
    name: 'rotary',
    ops: ['rotary'],
    subjects: rowsOf(
      [
        [5, 4],
        [2, 7, 12],
        [2, 1, 3, 4],
      ],
      (s) =>
        functionSubject(show(s), { x: leaf(s) }, ({ x }) => {
          const position = s.length === 3 ? tensor(Int32Array.of(5, -1)) : null
          return ops.rotary(x, { heads: 2, base: 100, position })
        }),
    ),
  },
  {
    name: 'dropout',
    ops: ['dropout'],
    subjects: rowsOf([[4, 5], [33]], (s) =>
      functionSubject(show(s), { x: leaf(s) }, ({ x }) => ops.dropout(x, 0.4, new Generator(11))),
    ),
  },
]

export const opRows: Row[] = [
  ...(['softplus', 'neg', 'exp', 'square', 'gelu', 'silu', 'sigmoid', 'tanh'] as const).map((op) => unaryRow(op)),
  ...(['log', 'sqrt'] as const).map((op) => unaryRow(op, positive)),
  ...(['abs', 'relu'] as const).map((op) => unaryRow(op, awayFromZero)),
  ...(['add', 'sub', 'mul', 'div', 'maximum', 'minimum'] as const).map(binaryRow),
  ...selectionRows,
  ...(['sum', 'mean', 'max', 'min'] as const).map(reduceRow),
  ...indexRows,
  ...shapeRows,
  ...layerRows,
]
