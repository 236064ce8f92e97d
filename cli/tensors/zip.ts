/**
 * The members of a zip file (PKWARE APPNOTE, with zip64), as NumPy and torch write them: stored or deflated. Members that overlap,
 * which is how a small file becomes a large one, are refused, and so is a member that unpacks to more than it says.
 */
import { Readable } from 'node:stream'
import { createInflateRaw } from 'node:zlib'
import type { BoundedFile } from './bounded-file.js'
import { refused } from './tensor-file.js'

export interface ZipMember {
  readonly name: string
  readonly isDeflated: boolean
  readonly at: number
  /** As it lies there. */
  readonly packedBytes: number
  readonly bytes: number
}

const MEMBERS_MAX = 1_000_000
const DIRECTORY_BYTES_MAX = 64 * 2 ** 20
const END_BYTES = 22
const COMMENT_BYTES_MAX = 0xffff
/** A 32-bit field with this value stands for one of 64 bits in the extra field. */
const IN_EXTRA = 0xffffffff
const SIGNATURES = { member: 0x04034b50, row: 0x02014b50, end: 0x06054b50, end64: 0x06064b50, locator64: 0x07064b50 }

export function readZip(file: BoundedFile): ReadonlyMap<string, ZipMember> {
  const { count, at: directoryAt, bytes } = endOf(file)
  if (count > MEMBERS_MAX || bytes > DIRECTORY_BYTES_MAX) throw refused(`it says that it has ${count} members`)
  const directory = file.read(directoryAt, bytes)
  const members = new Map<string, ZipMember>()
  const ranges: (readonly [begin: number, end: number])[] = []
  let at = 0
  for (let i = 0; i < count; i++) {
    const { row, next } = rowAt(directory, at)
    at = next
    const { name, method, flags, packedBytes, bytes, headerAt } = row
    if ((flags & 1) !== 0) throw refused('a member is encrypted')
    if (method !== 0 && method !== 8) throw refused(`a member is packed by method ${method}, which is not known`)
    if (members.has(name)) throw refused('two members have one name')
    const header = file.read(headerAt, 30)
    if (header.readUInt32LE(0) !== SIGNATURES.member) throw refused('a member is not where it should be')
    const dataAt = headerAt + 30 + header.readUInt16LE(26) + header.readUInt16LE(28)
    if (dataAt + packedBytes > directoryAt) throw refused('a member is longer than its file')
    if (method === 0 && packedBytes !== bytes) throw refused('a member has two lengths')
    ranges.push([headerAt, dataAt + packedBytes])
    members.set(name, { name, isDeflated: method === 8, at: dataAt, packedBytes, bytes })
  }
  let free = 0
  for (const [begin, end] of ranges.sort((a, b) => a[0] - b[0])) {
    if (begin < free) throw refused('its members overlap')
    free = end
  }
  return members
}

/** The whole member, and not a byte more than it says. */
export async function* memberBytes(file: BoundedFile, member: ZipMember): AsyncGenerator<Buffer> {
  if (!member.isDeflated) {
    yield* file.bytes(member.at, member.bytes)
    return
  }
  const inflate = createInflateRaw()
  const packed = Readable.from(file.bytes(member.at, member.packedBytes))
  packed.once('error', error => inflate.destroy(error))
  let bytes = 0
  try {
    for await (const piece of packed.pipe(inflate) as AsyncIterable<Buffer>) {
      bytes += piece.length
      if (bytes > member.bytes) throw refused('a member unpacks to more than it says')
      yield piece
    }
  } catch (error) {
    if (error instanceof Error && 'errno' in error && 'code' in error) throw refused('a member cannot be unpacked')
    throw error
  } finally {
    packed.destroy()
    inflate.destroy()
  }
  if (bytes !== member.bytes) throw refused('a member unpacks to less than it says')
}

function endOf(file: BoundedFile): { readonly count: number; readonly at: number; readonly bytes: number } {
  const tailAt = Math.max(0, file.size - END_BYTES - COMMENT_BYTES_MAX)
  const tail = file.read(tailAt, file.size - tailAt)
  let found = -1
  for (let at = tail.length - END_BYTES; at >= 0 && found < 0; at--) {
    const isEnd = tail.readUInt32LE(at) === SIGNATURES.end
    if (isEnd && at + END_BYTES + tail.readUInt16LE(at + 20) === tail.length) found = at
  }
  if (found < 0) throw refused('it is not a whole zip file')
  const locatorAt = tailAt + found - 20
  if (locatorAt >= 0) {
    const locator = file.read(locatorAt, 20)
    if (locator.readUInt32LE(0) === SIGNATURES.locator64) {
      const end = file.read(numberAt(locator, 8), 56)
      if (end.readUInt32LE(0) !== SIGNATURES.end64) throw refused('its end is not one of a zip file')
      return { count: numberAt(end, 32), bytes: numberAt(end, 40), at: numberAt(end, 48) }
    }
  }
  return {
    count: tail.readUInt16LE(found + 10),
    bytes: tail.readUInt32LE(found + 12),
    at: tail.readUInt32LE(found + 16),
  }
}

function rowAt(directory: Buffer, at: number) {
  if (at + 46 > directory.length || directory.readUInt32LE(at) !== SIGNATURES.row)
    throw refused('its directory is cut short')
  const [nameBytes, extraBytes, commentBytes] = [28, 30, 32].map(field => directory.readUInt16LE(at + field)) as [
    number,
    number,
    number,
  ]
  const next = at + 46 + nameBytes + extraBytes + commentBytes
  if (next > directory.length) throw refused('its directory is cut short')
  const nameAt = at + 46
  const extra = directory.subarray(nameAt + nameBytes, nameAt + nameBytes + extraBytes)
  const wide = wideFields(extra)
  const field = (offset: number) => {
    const value = directory.readUInt32LE(at + offset)
    return value === IN_EXTRA ? wide() : value
  }
  // In this order they stand in the extra field, each only where it does not fit.
  const [bytes, packedBytes, headerAt] = [field(24), field(20), field(42)]
  const row = {
    name: directory.toString('utf8', nameAt, nameAt + nameBytes),
    flags: directory.readUInt16LE(at + 8),
    method: directory.readUInt16LE(at + 10),
    bytes,
    packedBytes,
    headerAt,
  }
  return { row, next }
}

/** Gives the 64-bit fields of the extra field 1, one after the other. */
function wideFields(extra: Buffer): () => number {
  let wide: Buffer = Buffer.alloc(0)
  for (let at = 0; at + 4 <= extra.length; at += 4 + extra.readUInt16LE(at + 2))
    if (extra.readUInt16LE(at) === 1) wide = extra.subarray(at + 4, at + 4 + extra.readUInt16LE(at + 2))
  let at = 0
  return () => {
    if (at + 8 > wide.length) throw refused('its directory lacks a length')
    const value = numberAt(wide, at)
    at += 8
    return value
  }
}

function numberAt(bytes: Buffer, at: number): number {
  const value = Number(bytes.readBigUInt64LE(at))
  if (!Number.isSafeInteger(value)) throw refused('it says that it is longer than any file')
  return value
}
