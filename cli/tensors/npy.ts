/** NumPy's files (numpy.lib.format): one array, or a zip of arrays. Arrays of Python objects are pickles: they are refused. */
import type { BoundedFile } from './bounded-file.js'
import { type Dtype, dtypeOf, isDtypeName, opaqueDtype } from './dtypes.js'
import { elementsOf, refused, type Tensor, type TensorFile } from './tensor-file.js'
import { memberBytes, readZip } from './zip.js'

export const NPY_MAGIC = Buffer.from('\x93NUMPY', 'latin1')
/** NumPy itself writes one over 10,000 only for structured arrays, which are refused. */
const HEADER_BYTES_MAX = 65_536
const HEADER =
  /^\{'descr': '([<>|=]?)([a-zA-Z])(\d{1,6})(\[[\w ]{1,20}\])?', 'fortran_order': (True|False), 'shape': \(([\d, ]*)\), \}\s*$/

export async function readNpy(file: BoundedFile): Promise<TensorFile> {
  const array = await readArray(file.size, () => file.bytes(0, file.size))
  return { format: 'npy', tensors: new Map([['array', array]]), values: new Map() }
}

export async function readNpz(file: BoundedFile): Promise<TensorFile> {
  const tensors = new Map<string, Tensor>()
  for (const member of readZip(file).values()) {
    if (!member.name.endsWith('.npy')) throw refused('it is a zip file, and not one of NumPy or torch')
    const name = member.name.slice(0, -'.npy'.length)
    tensors.set(name, await readArray(member.bytes, () => memberBytes(file, member)))
  }
  return { format: 'npz', tensors, values: new Map() }
}

async function readArray(size: number, open: () => Iterable<Buffer> | AsyncIterable<Buffer>): Promise<Tensor> {
  const start = await startOf(open())
  if (start.length < 12 || !start.subarray(0, 6).equals(NPY_MAGIC)) throw refused('it is not an array of NumPy')
  const isFirstVersion = start[6] === 1
  const length = isFirstVersion ? start.readUInt16LE(8) : start.readUInt32LE(8)
  const headerAt = isFirstVersion ? 10 : 12
  const dataAt = headerAt + length
  if (length > HEADER_BYTES_MAX || dataAt > start.length)
    throw refused('the header of an array is too long, or is cut short')
  const match = HEADER.exec(start.toString('latin1', headerAt, dataAt))
  if (match === null) throw refused('an array is of objects or of records, or its header is not one of NumPy')
  const [, order, kind, digits, , isFortran, shapeText] = match
  const dtype = dtypeFrom(kind!, Number(digits), order === '>')
  const shape = (shapeText!.match(/\d+/g) ?? []).map(Number)
  if (dataAt + elementsOf(shape) * dtype.bytes !== size)
    throw refused('an array has more or fewer bytes than its shape')
  return {
    dtype,
    shape,
    layout: isFortran === 'True' && shape.length > 1 ? 'F' : 'C',
    bytes: () => behind(open(), dataAt),
    gathered: () => undefined,
  }
}

const KINDS: Readonly<Record<string, string>> = { i: 'int', u: 'uint', f: 'float', c: 'complex' }

function dtypeFrom(kind: string, size: number, isBigEndian: boolean): Dtype {
  if (kind === 'O') throw refused('an array is of Python objects, which only Python could make by executing them')
  if (kind === 'b' && size === 1) return dtypeOf('bool')
  // Times are whole numbers of their unit.
  if ((kind === 'M' || kind === 'm') && size === 8) return dtypeOf('int64', isBigEndian)
  const name = `${KINDS[kind] ?? ''}${size * 8}`
  if (Object.hasOwn(KINDS, kind) && isDtypeName(name)) return dtypeOf(name, isBigEndian)
  if (kind === 'S' || kind === 'V') return opaqueDtype(`bytes${size}`, size)
  if (kind === 'U') return opaqueDtype(`text${size}`, 4 * size)
  throw refused(`an array has the type ${kind}${size}, which is not known`)
}

async function startOf(pieces: Iterable<Buffer> | AsyncIterable<Buffer>): Promise<Buffer> {
  const found: Buffer[] = []
  let bytes = 0
  for await (const piece of pieces) {
    found.push(piece)
    bytes += piece.length
    if (bytes >= HEADER_BYTES_MAX + 12) break
  }
  return Buffer.concat(found)
}

async function* behind(pieces: Iterable<Buffer> | AsyncIterable<Buffer>, bytes: number): AsyncGenerator<Buffer> {
  let left = bytes
  for await (const piece of pieces) {
    const skipped = Math.min(left, piece.length)
    left -= skipped
    if (skipped < piece.length) yield piece.subarray(skipped)
  }
}
