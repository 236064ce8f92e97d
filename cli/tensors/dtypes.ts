/** Types of elements: how long they are, and how far two of them are apart. */

interface DtypeFacts {
  /** Of one element. */
  readonly bytes: number
  /** Complex numbers have two parts of so many bytes. */
  readonly partBytes: number
  /** Little-endian. `undefined`: bytes that are equal or are not. */
  readonly part: ((view: DataView, at: number) => number | bigint) | undefined
}

const whole = (bytes: number, part: DtypeFacts['part']): DtypeFacts => ({ bytes, partBytes: bytes, part })
const float32 = (view: DataView, at: number) => view.getFloat32(at, true)
const float64 = (view: DataView, at: number) => view.getFloat64(at, true)

const DTYPES = {
  bool: whole(1, (view, at) => view.getUint8(at)),
  uint8: whole(1, (view, at) => view.getUint8(at)),
  int8: whole(1, (view, at) => view.getInt8(at)),
  uint16: whole(2, (view, at) => view.getUint16(at, true)),
  int16: whole(2, (view, at) => view.getInt16(at, true)),
  uint32: whole(4, (view, at) => view.getUint32(at, true)),
  int32: whole(4, (view, at) => view.getInt32(at, true)),
  uint64: whole(8, (view, at) => view.getBigUint64(at, true)),
  int64: whole(8, (view, at) => view.getBigInt64(at, true)),
  float16: whole(2, (view, at) => halfFloat(view.getUint16(at, true))),
  bfloat16: whole(2, (view, at) => brainFloat(view.getUint16(at, true))),
  float32: whole(4, float32),
  float64: whole(8, float64),
  complex64: { bytes: 8, partBytes: 4, part: float32 },
  complex128: { bytes: 16, partBytes: 8, part: float64 },
  float8_e4m3fn: whole(1, undefined),
  float8_e5m2: whole(1, undefined),
} as const satisfies Record<string, DtypeFacts>

export type NumberDtype = keyof typeof DTYPES

export interface Dtype {
  /** As people call it: `float32`, `bytes12`. */
  readonly name: string
  readonly bytes: number
  readonly facts: DtypeFacts
  readonly isBigEndian: boolean
}

export function isDtypeName(name: string): name is NumberDtype {
  return Object.hasOwn(DTYPES, name)
}

export function dtypeOf(name: NumberDtype, isBigEndian = false): Dtype {
  const facts: DtypeFacts = DTYPES[name]
  return { name, bytes: facts.bytes, facts, isBigEndian: isBigEndian && facts.partBytes > 1 }
}

/** Text of a fixed length, and other things that are no numbers. */
export function opaqueDtype(name: string, bytes: number): Dtype {
  return { name, bytes, facts: whole(bytes, undefined), isBigEndian: false }
}

/**
 * The largest absolute difference of two pieces of whole elements; Infinity where there is none: against NaN or an infinity, and
 * for what is no number. NaN equals NaN.
 */
export function largestDifference(a: Buffer, b: Buffer, { facts, isBigEndian }: Dtype): number {
  if (a.equals(b)) return 0
  const { part, partBytes } = facts
  if (part === undefined) return Number.POSITIVE_INFINITY
  const [first, second] = [a, b].map(bytes => viewOf(bytes, isBigEndian ? partBytes : 1))
  let largest = 0
  for (let at = 0; at < a.length; at += partBytes) {
    const difference = differenceOf(part(first!, at), part(second!, at))
    if (difference > largest) largest = difference
  }
  return largest
}

export function differenceOf(x: number | bigint, y: number | bigint): number {
  if (x === y || (Number.isNaN(x) && Number.isNaN(y))) return 0
  if (typeof x === 'bigint' && typeof y === 'bigint') return Number(x > y ? x - y : y - x)
  const difference = Math.abs(Number(x) - Number(y))
  return Number.isNaN(difference) ? Number.POSITIVE_INFINITY : difference
}

function viewOf(bytes: Buffer, swapBytes: number): DataView {
  const own = swapBytes === 1 ? bytes : Buffer.from(bytes)
  for (let at = 0; swapBytes > 1 && at < own.length; at += swapBytes) own.subarray(at, at + swapBytes).reverse()
  return new DataView(own.buffer, own.byteOffset, own.byteLength)
}

/** IEEE 754 binary16: 1 bit sign, 5 exponent, 10 fraction. */
function halfFloat(bits: number): number {
  const [sign, exponent, fraction] = [bits & 0x8000 ? -1 : 1, (bits >> 10) & 0x1f, bits & 0x3ff]
  if (exponent === 0x1f) return fraction === 0 ? sign * Number.POSITIVE_INFINITY : Number.NaN
  if (exponent === 0) return sign * fraction * 2 ** -24
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15)
}

const scratch = new DataView(new ArrayBuffer(4))

/** The upper half of a binary32. */
function brainFloat(bits: number): number {
  scratch.setUint32(0, bits << 16)
  return scratch.getFloat32(0)
}
