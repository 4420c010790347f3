import { MoeError, show } from './errors.js'

/**
 * Element types: `f32` and `f64` for arithmetic, `i32` for indices. `bf16` and `f16` are storage formats, passed as
 * bits in a Uint16Array. `int8` is one of weights alone: each block of 32 elements of a row has a scale in f16.
 */
export type DType = 'f32' | 'f64' | 'bf16' | 'f16' | 'i32' | 'int8'

/** The dtypes for arithmetic, parameters and gradients. */
export type FloatDType = 'f32' | 'f64'

/** What the weights of GEMMs may be stored in, beside an x in f32. */
export type WeightFormat = 'f32' | 'bf16' | 'f16' | 'int8'

/** The typed array of each dtype. */
export interface DTypeArrays {
  /** 32-bit floating point. */
  f32: Float32Array
  /** 64-bit floating point. */
  f64: Float64Array
  /** The bits of bfloat16 numbers. */
  bf16: Uint16Array
  /** The bits of 16-bit floating point. */
  f16: Uint16Array
  /** 32-bit integers. */
  i32: Int32Array
  /** None: convert it with `to('f32')`. */
  int8: never
}

/**
 * The dtype that GEMM operands are rounded to; GEMMs accumulate in the dtype of the layer. `bf16x3`: operands as sums of
 * two bf16, which have 16 bits of precision, on processors with AMX, and f32 everywhere else.
 */
export type ComputeDType = 'f32' | 'f64' | 'bf16' | 'bf16x3' | 'f16'

/** Those of an f32 layer. */
export const computeDTypes = ['f32', 'bf16', 'bf16x3', 'f16'] as const satisfies readonly ComputeDType[]

/** The arrays that {@link tensor} accepts; Uint16Array holds the bits of bf16 or f16. */
export type TypedArray =
  | Float32Array
  | Float64Array
  | Int32Array
  | Uint16Array
  | Int16Array
  | Int8Array
  | Uint8Array
  | Uint8ClampedArray
  | Uint32Array

/** Order of the native enumeration, in which those in blocks come last. */
const elementTypes = ['f32', 'f64', 'bf16', 'f16', 'i32'] as const satisfies readonly DType[]
export const dtypes: readonly DType[] = [...elementTypes, 'int8']
const sizes: Record<DType, number> = { f32: 4, f64: 8, bf16: 2, f16: 2, i32: 4, int8: 1 }

const codes: readonly (DType | ComputeDType)[] = [...dtypes, 'bf16x3']

export const dtypeCode = (dtype: DType | ComputeDType): number => codes.indexOf(dtype)
/** Bytes of an element, without the scales of blocks. */
export const dtypeSize = (dtype: DType): number => sizes[dtype]
export const isFloat = (dtype: DType): boolean => dtype === 'f32' || dtype === 'f64'

/** Bytes of the elements of a tensor, with the scales of blocks. */
export const bytesOf = ({ dtype, shape, size }: { dtype: DType; shape: readonly number[]; size: number }): number =>
  size * dtypeSize(dtype) + (isBlocked(dtype) ? 2 * scalesShape(shape).reduce((product, n) => product * n, 1) : 0)

/** Stored in blocks that share a scale (`native/core/blocks.h`). */
export const isBlocked = (dtype: DType): boolean => !(elementTypes as readonly DType[]).includes(dtype)

/** The shape of the scales of a blocked tensor: one for 32 elements of a row, or fewer. */
export const scalesShape = (shape: readonly number[]): readonly number[] =>
  shape.map((n, i) => (i === shape.length - 1 ? Math.ceil(n / 32) : n))

/** The first byte of the scales in the memory of a blocked tensor with so many elements. */
export const scalesAt = (size: number): number => Math.ceil(size / 64) * 64

export const weightFormats = ['f32', 'bf16', 'f16', 'int8'] as const satisfies readonly WeightFormat[]

/** The dtypes that weights may have beside an x of a dtype. */
export const weightDTypes = (dtype: DType): readonly DType[] => (dtype === 'f32' ? weightFormats : [dtype])

export function checkDType(op: string, value: unknown, allowed: readonly DType[] = elementTypes): DType {
  if (allowed.includes(value as DType)) return value as DType
  throw new MoeError('DTYPE', op, `dtype must be one of ${allowed.join(', ')}, got ${show(value)}`)
}

/** The dtype of a layer, or one of {@link computeDTypes} for f32. */
export function checkComputeDType(op: string, value: unknown, dtype: DType): ComputeDType {
  const allowed: readonly unknown[] = dtype === 'f32' ? computeDTypes : [dtype]
  if (value === undefined) return dtype as ComputeDType
  if (allowed.includes(value)) return value as ComputeDType
  const names = allowed.map((name) => `'${name}'`).join(', ')
  throw new MoeError('OPTION', op, `computeDtype must be one of ${names} with dtype '${dtype}', got ${show(value)}`)
}

/**
 * Returns `fn()`, which allocates `what`. Errors: OUT_OF_MEMORY if JavaScript cannot allocate it.
 *
 * @example
 * ```ts
 * console.log(utils.allocated('load', '4 numbers', () => new Float32Array(4)).length) // → 4
 * ```
 */
export function allocated<T>(op: string, what: string, fn: () => T): T {
  try {
    return fn()
  } catch (cause) {
    throw new MoeError('OUT_OF_MEMORY', op, `cannot allocate ${what}`, { cause })
  }
}

const arrays = { f32: Float32Array, f64: Float64Array, bf16: Uint16Array, f16: Uint16Array, i32: Int32Array }

/** A new typed array for a dtype. Errors: DTYPE for one in blocks. */
export function allocateArray<D extends DType>(op: string, dtype: D, size: number): DTypeArrays[D] {
  const ArrayOf = arrays[dtype as keyof typeof arrays]
  if (!ArrayOf)
    throw new MoeError('DTYPE', op, `the elements of ${dtype} share scales; convert them with to('f32') first`)
  return allocated(op, `an array of ${size} ${dtype}`, () => new ArrayOf(size) as DTypeArrays[D])
}
