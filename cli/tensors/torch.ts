/**
 * Checkpoints of torch.save (torch/serialization.py, since 1.6): a zip file with a pickle, `data.pkl`, and one member per storage,
 * `data/<key>`. A tensor is a view of a storage: an offset, a shape and strides, in elements. Names are the way to a value in the
 * checkpoint: `model/layer.weight`, `optimizer/state/0/exp_avg`.
 */
import type { BoundedFile } from './bounded-file.js'
import { type Dtype, dtypeOf, isDtypeName, type NumberDtype } from './dtypes.js'
import { PyCall, PyDict, PyGlobal, PyList, PyPersistent, type PyValue, readPickle } from './pickle.js'
import { elementsOf, isCount, refused, type Tensor, type TensorFile } from './tensor-file.js'
import { memberBytes, type ZipMember } from './zip.js'

const PICKLE_BYTES_MAX = 64 * 2 ** 20
/** A pickle may have one value in many places, and those in many: what is walked through has a bound. */
const VALUES_MAX = 5_000_000
const DEPTH_MAX = 50
/** Elements of a view with gaps are picked one by one, from so many bytes at most. */
const GATHERED_BYTES_MAX = 64 * 2 ** 20

const STORAGES: Readonly<Record<string, NumberDtype | 'untyped'>> = {
  'torch.DoubleStorage': 'float64',
  'torch.FloatStorage': 'float32',
  'torch.HalfStorage': 'float16',
  'torch.BFloat16Storage': 'bfloat16',
  'torch.LongStorage': 'int64',
  'torch.IntStorage': 'int32',
  'torch.ShortStorage': 'int16',
  'torch.CharStorage': 'int8',
  'torch.ByteStorage': 'uint8',
  'torch.BoolStorage': 'bool',
  'torch.ComplexFloatStorage': 'complex64',
  'torch.ComplexDoubleStorage': 'complex128',
  'torch.storage.UntypedStorage': 'untyped',
}
const REBUILD = 'torch._utils._rebuild_'
const FUNCTIONS = new Set([
  ...['tensor', 'tensor_v2', 'tensor_v3', 'parameter'].map(name => REBUILD + name),
  'torch.Size',
  'torch.device',
  // Bytes, in the protocol that torch.save has.
  '_codecs.encode',
])

const NAMES = { functions: FUNCTIONS, isType: (name: string) => Object.hasOwn(STORAGES, name) || isDtype(name) }

function isDtype(name: string): boolean {
  return name.startsWith('torch.') && isDtypeName(name.slice('torch.'.length))
}

export async function readTorch(
  file: BoundedFile,
  members: ReadonlyMap<string, ZipMember>,
  pickle: ZipMember,
): Promise<TensorFile> {
  if (pickle.bytes > PICKLE_BYTES_MAX)
    throw refused(`its pickle has ${pickle.bytes} bytes, at most ${PICKLE_BYTES_MAX}`)
  const folder = pickle.name.slice(0, -'data.pkl'.length)
  const order = members.get(`${folder}byteorder`)
  if (order !== undefined && order.bytes <= 16 && (await whole(file, order)).toString('latin1') !== 'little')
    throw refused('it was written by a machine of another byte order')
  const root = readPickle(await whole(file, pickle), NAMES)
  const reader = new Reader(file, key => members.get(`${folder}data/${key}`))
  reader.walk('', root, 0)
  return { format: 'torch', tensors: reader.tensors, values: reader.values }
}

async function whole(file: BoundedFile, member: ZipMember): Promise<Buffer> {
  const pieces: Buffer[] = []
  for await (const piece of memberBytes(file, member)) pieces.push(piece)
  return Buffer.concat(pieces)
}

class Reader {
  readonly tensors = new Map<string, Tensor>()
  readonly values = new Map<string, number | string>()
  #seen = 0

  constructor(
    private readonly file: BoundedFile,
    private readonly storage: (key: string) => ZipMember | undefined,
  ) {}

  walk(path: string, value: PyValue, depth: number): void {
    this.#seen++
    if (this.#seen > VALUES_MAX || depth > DEPTH_MAX)
      throw refused('its pickle has too many values, or too many in each other')
    const below = (name: string | number) => (path === '' ? String(name) : `${path}/${name}`)
    if (value instanceof PyDict) {
      for (const [key, item] of value.entries) this.walk(below(keyText(key)), item, depth + 1)
    } else if (value instanceof PyList) {
      value.items.forEach((item, i) => {
        this.walk(below(i), item, depth + 1)
      })
    } else if (value instanceof PyCall && value.name.startsWith(REBUILD)) {
      this.#add(this.tensors, path, this.#tensor(value))
    } else if (value instanceof PyCall || value instanceof PyGlobal || value instanceof PyPersistent) {
      this.#add(this.values, path, plainText(value))
    } else {
      this.#add(this.values, path, scalarOf(value))
    }
  }

  #add<T>(to: Map<string, T>, path: string, value: T): void {
    if (this.tensors.has(path) || this.values.has(path)) throw refused('two of its values have one name')
    to.set(path, value)
  }

  #tensor({ name, args }: PyCall): Tensor {
    if (name === `${REBUILD}parameter`) {
      const [data] = args
      if (data instanceof PyCall && data.name !== name && data.name.startsWith(REBUILD)) return this.#tensor(data)
      throw refused('a parameter has no tensor')
    }
    const [storage, offset, size, stride] = args
    if (!(storage instanceof PyPersistent) || !(storage.id instanceof PyList)) throw refused('a tensor has no storage')
    const [kind, type, key, , count] = storage.id.items
    if (kind !== 'storage' || !(type instanceof PyGlobal) || typeof key !== 'string' || !isCount(count))
      throw refused('a storage is not one of torch')
    const dtype = dtypeOfStorage(type.name, name === `${REBUILD}tensor_v3` ? args[6] : undefined)
    const member = this.storage(key)
    const storageBytes = STORAGES[type.name] === 'untyped' ? count : count * dtype.bytes
    if (member === undefined || member.isDeflated || member.bytes !== storageBytes)
      throw refused('the storage of a tensor is missing, or has another length')
    const [shape, strides] = [countsOf(size), countsOf(stride)]
    if (!isCount(offset) || shape.length !== strides.length) throw refused('a tensor is not one of torch')
    return viewOf(this.file, member, { dtype, offset, shape, strides })
  }
}

interface View {
  readonly dtype: Dtype
  readonly offset: number
  readonly shape: readonly number[]
  readonly strides: readonly number[]
}

function viewOf(file: BoundedFile, member: ZipMember, { dtype, offset, shape, strides }: View): Tensor {
  const elements = elementsOf(shape)
  const last = elements === 0 ? -1 : shape.reduce((sum, length, i) => sum + (length - 1) * strides[i]!, 0)
  const spanBytes = (last + 1) * dtype.bytes
  const at = offset * dtype.bytes
  if (!Number.isSafeInteger(last) || at + spanBytes > member.bytes) throw refused('a tensor is outside of its storage')
  const isDense = last + 1 === elements && isPermuted(shape, strides)
  const gathered = () => {
    if (spanBytes > GATHERED_BYTES_MAX || elements * dtype.bytes > GATHERED_BYTES_MAX) return undefined
    return gather(file.read(member.at + at, spanBytes), elements, { dtype, offset, shape, strides })
  }
  const layout = isDense ? layoutOf(shape, strides) : 'gaps'
  return {
    dtype,
    shape,
    layout,
    bytes: () => {
      if (isDense) return file.bytes(member.at + at, spanBytes)
      const found = gathered()
      if (found === undefined) throw refused('a tensor is a view with gaps of a large storage')
      return [found]
    },
    gathered,
  }
}

/** Each element of the span once: the strides are those of a whole tensor whose dimensions were put in another order. */
function isPermuted(shape: readonly number[], strides: readonly number[]): boolean {
  const long = shape.map((length, i) => ({ length, stride: strides[i]! })).filter(({ length }) => length > 1)
  let expected = 1
  for (const { length, stride } of long.sort((a, b) => a.stride - b.stride)) {
    if (stride !== expected) return false
    expected *= length
  }
  return true
}

/** `C`, or the strides of the dimensions that are longer than one. */
function layoutOf(shape: readonly number[], strides: readonly number[]): string {
  const long = shape.map((length, i) => ({ length, stride: strides[i]! })).filter(({ length }) => length > 1)
  const isC = long.every(({ stride }, i) => i === 0 || long[i - 1]!.stride > stride)
  return isC ? 'C' : long.map(({ stride }) => stride).join(',')
}

function gather(span: Buffer, elements: number, { dtype, shape, strides }: View): Buffer {
  const found = Buffer.alloc(elements * dtype.bytes)
  const index = shape.map(() => 0)
  let from = 0
  for (let i = 0; i < elements; i++) {
    span.copy(found, i * dtype.bytes, from * dtype.bytes, (from + 1) * dtype.bytes)
    for (let d = shape.length - 1; d >= 0; d--) {
      index[d]! += 1
      from += strides[d]!
      if (index[d]! < shape[d]!) break
      from -= strides[d]! * shape[d]!
      index[d] = 0
    }
  }
  return found
}

function dtypeOfStorage(storage: string, dtype: PyValue | undefined): Dtype {
  const known = STORAGES[storage]
  if (known !== undefined && known !== 'untyped') return dtypeOf(known)
  const name = dtype instanceof PyGlobal ? dtype.name.slice('torch.'.length) : ''
  if (known === undefined || !isDtypeName(name)) throw refused('a storage has no type')
  return dtypeOf(name)
}

function countsOf(value: PyValue | undefined): number[] {
  const items = value instanceof PyCall && value.name === 'torch.Size' ? value.args[0] : value
  if (!(items instanceof PyList) || !items.items.every(isCount)) throw refused('a tensor has no shape')
  return items.items
}

function keyText(key: PyValue): string {
  if (typeof key === 'string') return key
  if (typeof key === 'number' || typeof key === 'bigint' || typeof key === 'boolean') return String(key)
  throw refused('a dictionary has a key that is neither text nor a number')
}

function scalarOf(value: null | boolean | number | bigint | string | Buffer): number | string {
  if (typeof value === 'number') return value
  if (Buffer.isBuffer(value)) return `bytes ${value.toString('hex')}`
  return typeof value === 'string' ? JSON.stringify(value) : String(value)
}

function plainText(value: PyCall | PyGlobal | PyPersistent): string {
  if (value instanceof PyGlobal) return value.name
  if (value instanceof PyPersistent) throw refused('a storage is there without a tensor')
  return `${value.name}(${value.args.map(argText).join(', ')})`
}

function argText(value: PyValue): string {
  if (value instanceof PyList) {
    if (value.items.some(item => typeof item === 'object' && item !== null)) throw refused('a value is not a plain one')
    return `(${value.items.map(String).join(', ')})`
  }
  if (typeof value === 'object' && value !== null) throw refused('a value is not a plain one')
  return String(value)
}
