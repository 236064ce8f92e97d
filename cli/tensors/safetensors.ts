/**
 * safetensors (huggingface/safetensors, README "Format"): the header's length as 8 bytes, the header as JSON, then the bytes of all
 * tensors, without a hole and without an overlap.
 */
import type { BoundedFile } from './bounded-file.js'
import { dtypeOf, type NumberDtype } from './dtypes.js'
import { elementsOf, isCount, refused, type Tensor, type TensorFile } from './tensor-file.js'

/** The library's own bound. */
const HEADER_BYTES_MAX = 100_000_000
const DTYPES: Readonly<Record<string, NumberDtype>> = {
  BOOL: 'bool',
  U8: 'uint8',
  I8: 'int8',
  U16: 'uint16',
  I16: 'int16',
  U32: 'uint32',
  I32: 'int32',
  U64: 'uint64',
  I64: 'int64',
  F16: 'float16',
  BF16: 'bfloat16',
  F32: 'float32',
  F64: 'float64',
  C64: 'complex64',
  F8_E4M3: 'float8_e4m3fn',
  F8_E5M2: 'float8_e5m2',
}

export function readSafetensors(file: BoundedFile): TensorFile {
  const headerBytes = Number(file.read(0, 8).readBigUInt64LE())
  if (headerBytes > HEADER_BYTES_MAX) throw refused(`its header has ${headerBytes} bytes, at most ${HEADER_BYTES_MAX}`)
  const dataAt = 8 + headerBytes
  const header = parseObject(file.read(8, headerBytes))
  const tensors = new Map<string, Tensor>()
  const values = new Map<string, string>()
  const ranges: (readonly [begin: number, end: number])[] = []
  for (const [name, row] of Object.entries(header)) {
    if (name === '__metadata__') {
      for (const [key, value] of Object.entries(row ?? {})) values.set(`__metadata__/${key}`, JSON.stringify(value))
      continue
    }
    const { dtype: dtypeName, shape, data_offsets: offsets } = (row ?? {}) as Record<string, unknown>
    const known = typeof dtypeName === 'string' && Object.hasOwn(DTYPES, dtypeName) ? DTYPES[dtypeName] : undefined
    if (known === undefined) throw refused(`a tensor has the type ${JSON.stringify(dtypeName)}, which is not known`)
    if (!Array.isArray(shape) || !Array.isArray(offsets) || offsets.length !== 2 || !offsets.every(isCount))
      throw refused('its header is not one of safetensors')
    const [begin, end] = offsets as [number, number]
    const dtype = dtypeOf(known)
    const length = elementsOf(shape) * dtype.bytes
    if (end - begin !== length) throw refused('a tensor has more or fewer bytes than its shape')
    ranges.push([begin, end])
    tensors.set(name, {
      dtype,
      shape: shape as number[],
      layout: 'C',
      bytes: () => file.bytes(dataAt + begin, length),
      gathered: () => undefined,
    })
  }
  let at = 0
  for (const [begin, end] of ranges.sort((a, b) => a[0] - b[0] || a[1] - b[1])) {
    if (begin !== at) throw refused('its tensors overlap, or leave a hole')
    at = end
  }
  if (dataAt + at !== file.size) throw refused('it has more or fewer bytes than its tensors')
  return { format: 'safetensors', tensors, values }
}

function parseObject(bytes: Buffer): object {
  try {
    const found: unknown = JSON.parse(new TextDecoder('utf8', { fatal: true }).decode(bytes))
    if (typeof found === 'object' && found !== null && !Array.isArray(found)) return found
  } catch {
    // It is no header, as anything else.
  }
  throw refused('its header is not JSON')
}
