/**
 * Headers of tar members: ustar (POSIX.1-1988), mode 0444, owner 0, time 0. Sizes that eleven octal digits
 * cannot hold (8 GiB and more) are in base 256, as GNU tar has it and Python's tarfile reads it.
 */
import { BobbinError } from '../../daemon/model/index.js'

export const BLOCK_BYTES = 512
/** Two empty blocks end an archive. */
export const TRAILER_BYTES = 2 * BLOCK_BYTES

const NAME_BYTES_MAX = 100
const OCTAL_SIZE_MAX = 0o777_7777_7777
const SIZE_AT = 124
const SIZE_BYTES = 12
const CHECKSUM_AT = 148
const DIGIT_0 = 0x30

/** A header without name, size and checksum. */
const BASE = baseHeader()
const BASE_SUM = BASE.reduce((sum, byte) => sum + byte, 0)

function baseHeader(): Buffer {
  const header = Buffer.alloc(BLOCK_BYTES)
  header.write('0000444\0', 100, 'latin1')
  header.write('0000000\0', 108, 'latin1')
  header.write('0000000\0', 116, 'latin1')
  header.write('00000000000\0', 136, 'latin1')
  // The checksum counts as spaces while it is computed.
  header.write('        ', CHECKSUM_AT, 'latin1')
  header.write('0', 156, 'latin1')
  header.write('ustar\x0000', 257, 'latin1')
  return header
}

/** Writes one at an offset. Throws INVALID_ARGUMENT when the name has more than 100 bytes of UTF-8. */
export function writeTarHeader(into: Buffer, at: number, name: string, size: number): void {
  BASE.copy(into, at)
  const nameBytes = into.write(name, at, NAME_BYTES_MAX, 'utf8')
  if (nameBytes < name.length || (nameBytes === NAME_BYTES_MAX && Buffer.byteLength(name) > nameBytes))
    throw new BobbinError('INVALID_ARGUMENT', `too long for a member of a tar: ${JSON.stringify(name)}`)
  if (size <= OCTAL_SIZE_MAX) writeOctal(into, at + SIZE_AT, SIZE_BYTES - 1, size)
  else {
    into[at + SIZE_AT] = 0x80
    into.writeBigUInt64BE(BigInt(size), at + SIZE_AT + SIZE_BYTES - 8)
  }
  let sum = BASE_SUM
  for (let i = at; i < at + nameBytes; i++) sum += into[i]!
  for (let i = at + SIZE_AT; i < at + SIZE_AT + SIZE_BYTES; i++) sum += into[i]!
  writeOctal(into, at + CHECKSUM_AT, 6, sum)
  into[at + CHECKSUM_AT + 6] = 0
}

function writeOctal(into: Buffer, at: number, digits: number, value: number): void {
  // Not by shifting: a size may have 33 bits.
  for (let i = digits - 1, rest = value; i >= 0; i--) {
    const next = Math.floor(rest / 8)
    into[at + i] = DIGIT_0 + rest - next * 8
    rest = next
  }
}

/** Zeros behind a content of so many bytes. */
export function paddingBytes(size: number): number {
  return (BLOCK_BYTES - (size % BLOCK_BYTES)) % BLOCK_BYTES
}
