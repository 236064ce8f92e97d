/**
 * Files of numbers, as a comparison sees them: names, types, shapes, and the bytes of one tensor at a time. The files come from
 * strangers, so a reader takes no number of a file without a bound, executes nothing, and refuses what it does not know.
 */
import { BobbinError } from '../../daemon/model/index.js'
import type { Dtype } from './dtypes.js'

export const TENSOR_FORMATS = ['safetensors', 'npy', 'npz', 'torch'] as const
export type TensorFormat = (typeof TENSOR_FORMATS)[number]

export interface Tensor {
  readonly dtype: Dtype
  readonly shape: readonly number[]
  /** Two tensors of equal layout have their elements in the same order. */
  readonly layout: string
  /** All bytes, in the order of the layout. */
  bytes(): Iterable<Buffer> | AsyncIterable<Buffer>
  /** All bytes in the order of the indices (C); undefined: they are too many to be gathered. */
  gathered(): Buffer | undefined
}

export interface TensorFile {
  readonly format: TensorFormat
  readonly tensors: ReadonlyMap<string, Tensor>
  /** What a file holds beside tensors: numbers as such, everything else as text that is equal or is not. */
  readonly values: ReadonlyMap<string, number | string>
}

export function refused(why: string): BobbinError {
  return new BobbinError('INVALID_ARGUMENT', why)
}

/** How many elements a shape has. Throws INVALID_ARGUMENT for what is not a shape, or has more than a file can hold. */
export function elementsOf(shape: readonly unknown[]): number {
  if (shape.length > DIMENSIONS_MAX) throw refused(`a tensor has ${shape.length} dimensions, at most ${DIMENSIONS_MAX}`)
  let elements = 1
  for (const length of shape) {
    if (!isCount(length)) throw refused('a shape has a length that is not a whole number')
    elements *= length
  }
  if (!Number.isSafeInteger(elements)) throw refused('a shape has more elements than any file')
  return elements
}

export function isCount(value: unknown): value is number {
  return typeof value === 'number' && Number.isSafeInteger(value) && value >= 0
}

/** NumPy's own is 64. */
const DIMENSIONS_MAX = 64
