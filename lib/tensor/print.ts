import { sizeOf } from '../runtime/check.js'
import { type DType, dtypeCode, isBlocked } from '../runtime/dtype.js'
import { type Handle, native } from '../runtime/native.js'

/** Values as text, by the rules of PyTorch (torch/_tensor_str.py) with its default settings. */

/** A tensor with more elements shows `edge` entries at each end of an axis. */
const mostWhole = 1000
const edge = 3
const lineWidth = 80
const precision = 4

/** The elements of a small tensor. f64 holds those of every dtype. */
function numbersOf(x: Handle, size: number): number[] {
  const data = new Float64Array(size)
  const exact = native.convert(x, dtypeCode('f64'))
  try {
    native.toData(exact, data)
  } finally {
    native.release(exact)
  }
  return Array.from(data)
}

const isLong = (n: number): boolean => n > 2 * edge

/** Where the shown entries of a long axis, or all of a short one, are. */
const shownOf = (n: number): number[] =>
  isLong(n) ? [0, 1, 2, n - 3, n - 2, n - 1] : Array.from({ length: n }, (_, i) => i)

/** The shown elements of part of a tensor, in row-major order. Reads nothing else. */
function edgesOf(x: Handle, shape: readonly number[], strides: readonly number[], offset = 0): number[] {
  const dims = shape.flatMap((n, i) =>
    isLong(n)
      ? [
          { n: 2, stride: (n - edge) * strides[i] },
          { n: edge, stride: strides[i] },
        ]
      : [{ n, stride: strides[i] }],
  )
  if (dims.length > 8)
    return shownOf(shape[0]).flatMap((i) => edgesOf(x, shape.slice(1), strides.slice(1), offset + i * strides[0]))
  const lengths = dims.map(({ n }) => n)
  const part = native.stridedRead(
    x,
    lengths,
    dims.map(({ stride }) => stride),
    offset,
  )
  try {
    return numbersOf(part, sizeOf(lengths))
  } finally {
    native.release(part)
  }
}

/** `write(precision)`, but ties go to the even digit, as in Python; JavaScript rounds them away from 0. */
function halfToEven(write: (digits: number) => string): string {
  const [, start, digits, end] = /^(.*\.)(\d+)(.*)$/.exec(write(100)) as string[]
  const isTie = /^50*$/.test(digits.slice(precision))
  const isEven = Number(digits[precision - 1]) % 2 === 0
  return isTie && isEven ? start + digits.slice(0, precision) + end : write(precision)
}

const fixed = (x: number): string => halfToEven((digits) => x.toFixed(digits))
const scientific = (x: number): string =>
  halfToEven((digits) => x.toExponential(digits)).replace(/e([+-])(\d)$/, 'e$10$2')

/** How one number is written so that all of `values` align. */
function formatOf(values: readonly number[], isInteger: boolean): (x: number) => string {
  const counted = isInteger ? values : values.filter((x) => Number.isFinite(x) && x !== 0)
  const sizes = counted.map(Math.abs)
  const [least, most] = [Math.min(...sizes), Math.max(...sizes)]
  const whole = counted.every(Number.isInteger)
  const isWide = !isInteger && counted.length > 0 && (most / least > 1000 || most > 1e8 || (!whole && least < 1e-4))
  const finite = (x: number): string => {
    if (isInteger) return String(x)
    if (isWide) return scientific(x)
    return `${Object.is(x, -0) ? '-' : ''}${whole ? `${x.toFixed(0)}.` : fixed(x)}`
  }
  const width = Math.max(1, ...counted.map((x) => finite(x).length))
  return (x) => (Number.isNaN(x) ? 'nan' : Number.isFinite(x) ? finite(x) : x > 0 ? 'inf' : '-inf').padStart(width)
}

/** The numbers as nested brackets, each line after the first indented by `indent`. */
function nested(texts: readonly string[], shape: readonly number[], isCut: boolean, indent: number): string {
  const [n, ...rest] = shape
  const gap = isCut && isLong(n)
  const shown = gap ? 2 * edge : n
  const withGap = (entries: string[], dots: string): string[] =>
    gap ? [...entries.slice(0, edge), dots, ...entries.slice(edge)] : entries
  const pad = ' '.repeat(indent + 1)
  if (rest.length === 0) {
    const perLine = Math.max(1, Math.floor((lineWidth - indent) / (texts[0].length + 2)))
    const entries = withGap([...texts], ' ...')
    const lines = Array.from({ length: Math.ceil(entries.length / perLine) }, (_, i) =>
      entries.slice(i * perLine, (i + 1) * perLine).join(', '),
    )
    return `[${lines.join(`,\n${pad}`)}]`
  }
  const each = texts.length / shown
  const parts = Array.from({ length: shown }, (_, i) =>
    nested(texts.slice(i * each, (i + 1) * each), rest, isCut, indent + 1),
  )
  return `[${withGap(parts, '...').join(`,${'\n'.repeat(rest.length)}${pad}`)}]`
}

/** The values of a tensor, as the argument of `tensor(`; at most those that are shown are read. */
export function printValues(x: Handle, shape: readonly number[], dtype: DType, indent: number): string {
  const size = sizeOf(shape)
  if (size === 0) return '[]'
  if (isBlocked(dtype)) {
    const wide = native.convert(x, dtypeCode('f32'))
    try {
      return printValues(wide, shape, 'f32', indent)
    } finally {
      native.release(wide)
    }
  }
  const isCut = size > mostWhole
  const strides = shape.map((_, i) => sizeOf(shape.slice(i + 1)))
  const values = isCut ? edgesOf(x, shape, strides) : numbersOf(x, size)
  const texts = values.map(formatOf(values, dtype === 'i32'))
  return shape.length === 0 ? texts[0].trimStart() : nested(texts, shape, isCut, indent)
}

/** `text` and what follows it, on the same line if it fits. */
export function withSuffix(text: string, suffix: string, indent: number): string {
  const last = text.length - text.lastIndexOf('\n') - 1
  const fits = last + suffix.length + 3 <= lineWidth
  return `${text},${fits ? ' ' : `\n${' '.repeat(indent)}`}${suffix})`
}
