import { ops, type Tensor, tensor } from '../../lib/index.js'
import { functionSubject, type Subject } from './gradcheck.js'
import { draw, leaf, type Row, show, sizeOf, targets } from './op-rows.js'

function crossEntropySubject(shape: readonly number[], ignore: boolean, options?: ops.CrossEntropyOptions): Subject {
  const lead = shape.slice(0, -1)
  const target = targets(sizeOf(lead), shape[shape.length - 1], ignore)
  return functionSubject(show(shape), { logits: leaf(shape, () => 2 * draw.normal()) }, ({ logits }) =>
    ops.crossEntropy(logits, tensor(target, lead), options),
  )
}

type Pair = (a: Tensor, b: Tensor, reduction: 'mean' | 'sum' | 'none') => Tensor

/** A loss on several shapes and by each reduction. Numbers stay away from where a derivative jumps. */
function lossRow(op: keyof typeof ops, loss: Pair, target?: () => number): Row {
  const number = () => draw.integer(-9, 9) / 3 + 0.05 * draw.next()
  const subjects = () =>
    [[3, 4], [], [7]].flatMap((s) =>
      (['mean', 'sum', 'none'] as const).map((reduction) =>
        functionSubject(
          `${show(s)} ${reduction}`,
          { a: leaf(s, number), b: leaf(s, target ?? (() => number() + 0.5)) },
          ({ a, b }) => loss(a, b, reduction),
        ),
      ),
    )
  return { name: op, ops: [op], subjects }
}

const share = () => draw.between(0.1, 0.9)
export const lossRows: Row[] = [
  {
    name: 'crossEntropy',
    ops: ['crossEntropy'],
    subjects: () => [
      crossEntropySubject([5, 7], false),
      crossEntropySubject([2, 4, 9], true),
      crossEntropySubject([1, 2], false),
      crossEntropySubject([6], false),
      ...(['mean', 'sum', 'none'] as const).map((reduction) =>
        crossEntropySubject([2, 4, 9], true, { reduction, labelSmoothing: 0.2 }),
      ),
      crossEntropySubject([5, 7], true, { reduction: 'sum' }),
    ],
  },

  lossRow('mseLoss', (a, b, reduction) => ops.mseLoss(a, b, { reduction })),
  lossRow('huberLoss', (a, b, reduction) => ops.huberLoss(a, b, { reduction, delta: 0.75 })),
  lossRow('smoothL1Loss', (a, b, reduction) => ops.smoothL1Loss(a, b, { reduction, beta: 0.75 })),
  lossRow('smoothL1Loss', (a, b, reduction) => ops.smoothL1Loss(a, b, { reduction, beta: 0 })),
  lossRow('klDiv', (a, b, reduction) => ops.klDiv(a, b, { reduction }), share),
  lossRow('klDiv', (a, b, reduction) => ops.klDiv(a, b, { reduction, logTarget: true })),
  lossRow(
    'binaryCrossEntropyWithLogits',
    (a, b, reduction) => ops.binaryCrossEntropyWithLogits(a, b, { reduction }),
    share,
  ),
  lossRow(
    'binaryCrossEntropyWithLogits',
    (a, b, reduction) => ops.binaryCrossEntropyWithLogits(a, b, { reduction, posWeight: 2.5 }),
    share,
  ),
]
