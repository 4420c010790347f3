import { closeSync, fsyncSync, openSync, rmSync, writeSync } from 'node:fs'
import { hostname } from 'node:os'
import { join } from 'node:path'
import { types } from 'node:util'
import { scope } from '../autograd/scope.js'
import { makeFolder } from '../io/make-folder.js'
import { checkInteger, checkOptions, fail, showShape } from '../runtime/check.js'
import { MoeError, show } from '../runtime/errors.js'
import { checkTensor, type Tensor } from '../tensor/tensor.js'
import { encodePng } from './png.js'
import { bytesField, doubleField, doublesField, floatField, integerField } from './protobuf.js'
import { recordOf } from './records.js'

/** Options of {@link SummaryWriter}. */
export interface SummaryWriterOptions {
  /** Of a resumed run: TensorBoard drops what an earlier file has from this step on. */
  purgeStep?: number
}

let files = 0

/**
 * Writes a file that TensorBoard shows (`tensorboard --logdir folder`): scalars, histograms, images and texts by tag and
 * step; the methods of torch.utils.tensorboard.SummaryWriter. Each call is one write at the end of the file, so that a
 * killed process loses nothing that it added.
 *
 * @example
 * ```ts
 * using writer = new SummaryWriter('runs/first')
 * for (let step = 0; step < 3; step++) writer.addScalar('loss', 1 / (step + 1), step)
 * writer.addHistogram('gates', randn([100]), 2)
 * ```
 */
export class SummaryWriter {
  /** The file. */
  readonly path: string
  #file: number | null

  /** Creates the folder if there is none, and a new file in it. Errors: FILE_SYSTEM, OPTION. */
  constructor(folder: string, options?: SummaryWriterOptions) {
    const op = 'SummaryWriter'
    if (typeof folder !== 'string' || folder === '') fail('OPTION', op, `folder must be a path, got ${show(folder)}`)
    const { purgeStep } = checkOptions<SummaryWriterOptions>(op, options, ['purgeStep'])
    if (purgeStep !== undefined) checkInteger(op, 'purgeStep', purgeStep, 0)
    const seconds = String(Math.floor(Date.now() / 1000)).padStart(10, '0')
    this.path = join(folder, `events.out.tfevents.${seconds}.${hostname()}.${process.pid}.${files++}`)
    this.#file = onDisk(op, this.path, () => {
      makeFolder(folder)
      return openSync(this.path, 'ax')
    })
    const started = 1
    try {
      this.#write(op, 0, bytesField(3, 'brain.Event:2'))
      if (purgeStep !== undefined) this.#write(op, purgeStep, bytesField(7, [integerField(1, started)]))
    } catch (error) {
      this.close()
      rmSync(this.path, { force: true })
      throw error
    }
  }

  /** A number, of any size; NaN and infinities too. Errors: OPTION, FILE_SYSTEM. */
  addScalar(tag: string, value: number, step: number): void {
    const op = 'SummaryWriter.addScalar'
    if (typeof value !== 'number') fail('OPTION', op, `value must be a number, got ${show(value)}`)
    this.#add(op, tag, step, [floatField(2, value)])
  }

  /**
   * How many of the values are in each of `bins` intervals of equal width between the least and the largest. Reads the
   * whole tensor, and waits for a GPU. Errors: OPTION for none, NON_FINITE, FILE_SYSTEM.
   */
  addHistogram(tag: string, values: Tensor | ArrayLike<number>, step: number, bins = 30): void {
    const op = 'SummaryWriter.addHistogram'
    checkInteger(op, 'bins', bins, 1, 10_000)
    this.#add(op, tag, step, [bytesField(5, histogramOf(op, numbersOf(op, values), bins))])
  }

  /**
   * An image of values from 0 (black) to 1, which are clamped: [H, W], or [H, W, 3] in red, green and blue. Errors: SHAPE,
   * NON_FINITE, FILE_SYSTEM.
   */
  addImage(tag: string, image: Tensor, step: number): void {
    const op = 'SummaryWriter.addImage'
    const { shape } = checkTensor(op, 'image', image)
    const [height, width, channels = 1] = shape
    if (shape.length < 2 || shape.length > 3 || image.size === 0 || (shape.length === 3 && channels !== 3))
      fail('SHAPE', op, `image must be [H, W] or [H, W, 3], got ${showShape(shape)}`)
    const values = numbersOf(op, image)
    const pixels = Uint8Array.from(values, (value) => Math.round(255 * Math.min(1, Math.max(0, value))))
    const png = encodePng(pixels, height, width, channels as 1 | 3)
    const about = [integerField(1, height), integerField(2, width), integerField(3, channels)]
    this.#add(op, tag, step, [bytesField(4, [...about, bytesField(4, png)])])
  }

  /** A text, in Markdown. Errors: OPTION, FILE_SYSTEM. */
  addText(tag: string, text: string, step: number): void {
    const op = 'SummaryWriter.addText'
    if (typeof text !== 'string') fail('OPTION', op, `text must be a string, got ${show(text)}`)
    const string = 7
    const shape = bytesField(2, [bytesField(2, [integerField(1, 1)])])
    this.#add(op, `${tag}/text_summary`, step, [
      bytesField(8, [integerField(1, string), shape, bytesField(8, text)]),
      bytesField(9, [bytesField(1, [bytesField(1, 'text')])]),
    ])
  }

  /** Waits until all is on the disk. Errors: FILE_SYSTEM. */
  flush(): void {
    const file = this.#open('SummaryWriter.flush')
    onDisk('SummaryWriter.flush', this.path, () => fsyncSync(file))
  }

  /** Closes the file. A second call does nothing. */
  close(): void {
    if (this.#file !== null) closeSync(this.#file)
    this.#file = null
  }

  /** For `using`. */
  [Symbol.dispose](): void {
    this.close()
  }

  #open(op: string): number {
    return this.#file ?? fail('DISPOSED', op, 'the writer has been closed')
  }

  #add(op: string, tag: string, step: number, value: readonly Uint8Array[]): void {
    if (typeof tag !== 'string' || tag === '') fail('OPTION', op, `tag must be a string, got ${show(tag)}`)
    checkInteger(op, 'step', step, 0)
    this.#write(op, step, bytesField(5, [bytesField(1, [bytesField(1, tag), ...value])]))
  }

  #write(op: string, step: number, what: Uint8Array): void {
    const file = this.#open(op)
    const event = [doubleField(1, Date.now() / 1000), integerField(2, step), what]
    const record = recordOf(Buffer.concat(event))
    onDisk(op, this.path, () => {
      for (let at = 0; at < record.length; ) at += writeSync(file, record, at)
    })
  }
}

function onDisk<T>(op: string, path: string, fn: () => T): T {
  try {
    return fn()
  } catch (cause) {
    throw new MoeError('FILE_SYSTEM', op, `cannot write ${path}: ${(cause as Error).message}`, { cause })
  }
}

const dataOf = (x: Tensor): ArrayLike<number> =>
  x.dtype === 'bf16' || x.dtype === 'f16' ? scope(() => x.to('f32').dataSync()) : x.dataSync()

/** Finite numbers. */
function numbersOf(op: string, values: Tensor | ArrayLike<number>): ArrayLike<number> {
  const isList = (ArrayBuffer.isView(values) && !types.isDataView(values)) || Array.isArray(values)
  const numbers = isList ? (values as ArrayLike<number>) : dataOf(checkTensor(op, 'values', values))
  for (let i = 0; i < numbers.length; i++) {
    if (typeof numbers[i] !== 'number') fail('OPTION', op, `values[${i}] must be a number, got ${show(numbers[i])}`)
    if (!Number.isFinite(numbers[i])) fail('NON_FINITE', op, `values must be finite, got ${numbers[i]}`)
  }
  return numbers
}

/** A HistogramProto, whose buckets end at their limits. */
function histogramOf(op: string, values: ArrayLike<number>, bins: number): Uint8Array[] {
  if (values.length === 0) fail('OPTION', op, 'values must not be empty')
  let [least, most, sum, squares] = [Infinity, -Infinity, 0, 0]
  for (let i = 0; i < values.length; i++) {
    const value = values[i]
    if (value < least) least = value
    if (value > most) most = value
    sum += value
    squares += value * value
  }
  const half = (most / 2 - least / 2) / bins || 0.5 // of a bucket's width: twice as much may overflow
  const counts = new Array<number>(bins).fill(0)
  for (let i = 0; i < values.length; i++) counts[Math.min(bins - 1, Math.floor((values[i] / 2 - least / 2) / half))]++
  const limits = counts.map((_, i) => (least / 2 + half * (i + 1)) * 2)
  limits[bins - 1] = Math.max(most, limits[bins - 1])
  const totals = [least, most, values.length, sum, squares].map((value, i) => doubleField(i + 1, value))
  return [...totals, doublesField(6, limits), doublesField(7, counts)]
}
