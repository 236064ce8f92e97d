/** Two files of tensors, name by name: which differ, and by how much at most. */
import { BoundedFile, PIECE_BYTES } from './bounded-file.js'
import { type Dtype, differenceOf, largestDifference } from './dtypes.js'
import { NPY_MAGIC, readNpy, readNpz } from './npy.js'
import { readSafetensors } from './safetensors.js'
import { refused, type Tensor, type TensorFile, type TensorFormat } from './tensor-file.js'
import { readTorch } from './torch.js'
import { readZip } from './zip.js'

export interface TensorDifference {
  readonly name: string
  readonly change: 'changed' | 'missing' | 'added'
  /** `float32[3,4]`, or the value itself where it is not a tensor. */
  readonly recorded?: string
  readonly found?: string
  /** Absolute; null: there is none, as between other shapes, other texts, or a number and NaN. */
  readonly largest: number | null
}

export interface TensorComparison {
  readonly format: TensorFormat
  /** Names in either file, of tensors and of other values. */
  readonly names: number
  readonly equal: number
  /** Of all that differ; null: something differs that has no distance. */
  readonly largest: number | null
  /** DIFFERENCES_MAX at most, in the order of the recorded file. */
  readonly differences: readonly TensorDifference[]
}

export interface FileOfRun {
  readonly path: string
  /** The run's own folder for outputs. Trainers write it into their checkpoints, and each run has another one. */
  readonly outputDir: string
}

const DIFFERENCES_MAX = 1000
/** Of a text that is shown. */
const TEXT_MAX = 200

/** Throws INVALID_ARGUMENT for what is not a file of tensors, and what reading throws. */
export async function compareTensorFiles(was: FileOfRun, is: FileOfRun): Promise<TensorComparison> {
  const files = [BoundedFile.open(was.path), BoundedFile.open(is.path)] as const
  try {
    const [recorded, found] = [await readTensors(files[0], was), await readTensors(files[1], is)]
    if (recorded.format !== found.format) throw refused(`one is ${recorded.format}, the other ${found.format}`)
    return await compare(recorded, found)
  } finally {
    for (const file of files) file.close()
  }
}

async function readTensors(file: BoundedFile, { path, outputDir }: FileOfRun): Promise<TensorFile> {
  const { format, tensors, values } = await readFormat(file, path)
  const plain = (text: string) => text.replaceAll(outputDir, '$BOBBIN_OUTPUT')
  const named = <T>(map: ReadonlyMap<string, T>) =>
    new Map([...map].map(([name, thing]) => [plain(name), thing] as const))
  const texts = [...named(values)].map(
    ([name, value]) => [name, typeof value === 'string' ? plain(value) : value] as const,
  )
  return { format, tensors: named(tensors), values: new Map(texts) }
}

async function readFormat(file: BoundedFile, path: string): Promise<TensorFile> {
  const start = file.read(0, Math.min(8, file.size))
  if (start.subarray(0, 6).equals(NPY_MAGIC)) return readNpy(file)
  if (start.subarray(0, 2).toString('latin1') === 'PK') {
    const members = readZip(file)
    const pickles = [...members.values()].filter(({ name }) => /^[^/]+\/data\.pkl$/.test(name))
    return pickles.length === 1 ? readTorch(file, members, pickles[0]!) : readNpz(file)
  }
  if (/\.safetensors$/.test(path)) return readSafetensors(file)
  throw refused('it is not a file of tensors that is known: safetensors, npy, npz, or a zip of torch.save')
}

async function compare(recorded: TensorFile, found: TensorFile): Promise<TensorComparison> {
  const names = new Set([recorded, found].flatMap(({ tensors, values }) => [...tensors.keys(), ...values.keys()]))
  const differences: TensorDifference[] = []
  let equal = 0
  let largest = 0
  for (const name of names) {
    const [was, is] = [thingOf(recorded, name), thingOf(found, name)]
    const distance = was === undefined || is === undefined ? Number.POSITIVE_INFINITY : await distanceOf(was, is)
    if (distance === 0) {
      equal++
      continue
    }
    largest = Math.max(largest, distance)
    if (differences.length >= DIFFERENCES_MAX) continue
    differences.push({
      name,
      change: was === undefined ? 'added' : is === undefined ? 'missing' : 'changed',
      ...(was !== undefined && { recorded: textOf(was) }),
      ...(is !== undefined && { found: textOf(is) }),
      largest: finite(distance),
    })
  }
  return { format: recorded.format, names: names.size, equal, largest: finite(largest), differences }
}

type Thing = Tensor | number | string

function thingOf({ tensors, values }: TensorFile, name: string): Thing | undefined {
  return tensors.get(name) ?? values.get(name)
}

function finite(distance: number): number | null {
  return Number.isFinite(distance) ? distance : null
}

function textOf(thing: Thing): string {
  if (typeof thing === 'object') return `${thing.dtype.name}[${thing.shape.join(',')}]`
  return String(thing).slice(0, TEXT_MAX)
}

async function distanceOf(was: Thing, is: Thing): Promise<number> {
  if (typeof was === 'object' && typeof is === 'object') return tensorDistance(was, is)
  if (typeof was === 'number' && typeof is === 'number') return differenceOf(was, is)
  return was === is ? 0 : Number.POSITIVE_INFINITY
}

async function tensorDistance(was: Tensor, is: Tensor): Promise<number> {
  if (textOf(was) !== textOf(is)) return Number.POSITIVE_INFINITY
  if (was.dtype.isBigEndian !== is.dtype.isBigEndian) throw refused('two tensors have another byte order')
  if (was.layout === is.layout && was.layout !== 'gaps') return streamDistance(was.bytes(), is.bytes(), was.dtype)
  const [a, b] = [was.gathered(), is.gathered()]
  if (a === undefined || b === undefined) throw refused('two large tensors have their elements in another order')
  return largestDifference(a, b, was.dtype)
}

/** Both have the same number of bytes, which their shapes and types say. */
async function streamDistance(
  was: Iterable<Buffer> | AsyncIterable<Buffer>,
  is: Iterable<Buffer> | AsyncIterable<Buffer>,
  dtype: Dtype,
): Promise<number> {
  const others = wholePieces(is, dtype.bytes)
  let largest = 0
  for await (const piece of wholePieces(was, dtype.bytes)) {
    const other = (await others.next()).value
    if (other?.length !== piece.length) throw refused('two tensors of one shape have other lengths')
    largest = Math.max(largest, largestDifference(piece, other, dtype))
  }
  return largest
}

/** Pieces of equal length, whatever they come in: whole elements, about PIECE_BYTES. */
async function* wholePieces(
  pieces: Iterable<Buffer> | AsyncIterable<Buffer>,
  elementBytes: number,
): AsyncGenerator<Buffer, undefined> {
  const length = elementBytes * Math.max(1, Math.floor(PIECE_BYTES / Math.max(1, elementBytes)))
  let pending: Buffer[] = []
  let bytes = 0
  for await (const piece of pieces) {
    pending.push(piece)
    bytes += piece.length
    if (bytes < length) continue
    const joined = Buffer.concat(pending)
    let at = 0
    for (; at + length <= joined.length; at += length) yield joined.subarray(at, at + length)
    pending = [joined.subarray(at)]
    bytes = joined.length - at
  }
  if (bytes > 0) yield Buffer.concat(pending)
  return undefined
}
