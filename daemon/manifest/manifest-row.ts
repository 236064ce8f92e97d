/**
 * One row of a manifest, as places in its bytes: nothing is copied or decoded until it is asked for.
 *
 * `ManifestRow` is filled again for each row (a million of them would otherwise be a million objects).
 * Rules: format.md sections 2.3 and 3; the loader's strictness is quilt3's, less its accidents.
 */

import type { ByteBuffer } from '../json/byte-buffer.js'
import { appendCanonicalJson, canonicalJson, quote } from '../json/canonical-json.js'
import { decodeString, findMember, JsonScanner, type Span } from '../json/json-bytes.js'
import { parsePythonJson } from '../json/python-json.js'
import { HASH_TYPES, type HashType, keyBytes } from '../model/index.js'
import { PART, RowTemplate } from './row-template.js'

const SIZE_MAX = Number.MAX_SAFE_INTEGER
/**
 * A key of over 4,095 bytes is left out with `--quarantine` (model/logical-key.ts). One of over this many, as it is
 * written, is not even sorted or listed: it would take more memory than all others.
 */
const WRITTEN_KEY_BYTES_MAX = 65_536

/** A row that cannot be read or hashed, so that the package has no top hash. What can be hashed and not shown is a problem (`takeProblem`). */
export class RowError extends Error {
  override readonly name = 'RowError'
}

const malformed = (message: string): never => {
  throw new RowError(message)
}

/** Names of the members that matter, as bytes. */
const NAMES = ['logical_key', 'physical_keys', 'size', 'hash', 'meta'].map(name => Buffer.from(name))
const [LOGICAL_KEY, PHYSICAL_KEYS, SIZE, HASH, META] = [0, 1, 2, 3, 4] as const
const ABSENT = -1
const NO_PREFIX = new Uint8Array(0)
/** How the canonical form of a row begins, by its hash type. */
const HASH_OPENINGS = Object.fromEntries(
  HASH_TYPES.map(type => [type, Buffer.from(`{"hash":{"type":"${type}","value":`)]),
) as Record<HashType, Buffer>

export class ManifestRow {
  readonly #scanner = new JsonScanner()
  #bytes: Buffer = Buffer.alloc(0)
  /** Value places of the five members, [from, to) each; from is ABSENT without the member. */
  readonly #from = new Int32Array(5)
  readonly #to = new Int32Array(5)
  #isKeyPlain = true
  #arePhysicalKeysPlain = true
  /** The row's own [from, to). */
  #rowFrom = 0
  #rowTo = 0
  #template: RowTemplate | undefined
  /** The row has the template's shape: its parts are at #parts, and its hash type is the last one's. */
  #isTemplated = false
  readonly #parts = { from: new Int32Array(5), to: new Int32Array(5) }

  /** No (or an empty) list of physical keys: metadata of a directory. */
  isDirectory = false
  hashType: HashType = 'SHA256'
  /** Bytes of the object; checked to be a whole number. Files only. */
  size = 0

  /** Reads the row in [from, to) of `bytes`. Throws JsonSyntaxError, or RowError when the row cannot be hashed. */
  scan(bytes: Buffer, from: number, to: number): void {
    const scanner = this.#scanner
    this.#bytes = bytes
    this.#rowFrom = from
    this.#rowTo = to
    this.#isTemplated = this.#template?.match(bytes, from, to, scanner, this.#parts) ?? false
    if (this.#isTemplated) {
      this.#takeParts()
      return
    }
    this.#from.fill(ABSENT)
    scanner.start(bytes, from, to)
    if (scanner.peek() === -1) malformed('the row is empty')
    if (scanner.peek() !== 0x7b) malformed('the row is not a JSON object')
    scanner.at++
    if (scanner.peek() === 0x7d) malformed('the row has no logical_key')
    do {
      scanner.skipSpace()
      const nameFrom = scanner.at + 1
      scanner.skipString()
      const member = this.#memberOf(nameFrom, scanner.at - 1)
      scanner.expect(0x3a, '":"')
      scanner.skipSpace()
      const valueFrom = scanner.at
      scanner.skipValue()
      if (member === ABSENT) continue
      this.#from[member] = valueFrom
      this.#to[member] = scanner.at
      // Of a list of one string, wasPlain is about that string.
      if (member === LOGICAL_KEY) this.#isKeyPlain = bytes[valueFrom] === 0x22 && scanner.wasPlain
      else if (member === PHYSICAL_KEYS) this.#arePhysicalKeysPlain = scanner.wasPlain
    } while (!scanner.isLast(0x7d))
    scanner.expectEnd()

    if (this.#byteAt(LOGICAL_KEY) !== 0x22) malformed('logical_key is not a string')
    if (this.#to[LOGICAL_KEY]! - this.#from[LOGICAL_KEY]! > WRITTEN_KEY_BYTES_MAX)
      malformed(`logical_key is over ${WRITTEN_KEY_BYTES_MAX} bytes`)
    const physicalKeys = this.#byteAt(PHYSICAL_KEYS)
    this.isDirectory = physicalKeys === ABSENT || physicalKeys === 0x6e || this.#isEmptyArray(PHYSICAL_KEYS)
    if (this.isDirectory) return
    if (physicalKeys !== 0x5b) malformed('physical_keys is not a list')
  }

  /** The members' places from those of a templated row's parts. */
  #takeParts(): void {
    const { from, to } = this.#parts
    this.isDirectory = false
    this.#isKeyPlain = true
    this.#arePhysicalKeysPlain = true
    this.#from[LOGICAL_KEY] = from[PART.key]! - 1
    this.#to[LOGICAL_KEY] = to[PART.key]! + 1
    this.#from[PHYSICAL_KEYS] = from[PART.physicalKey]! - 2
    this.#to[PHYSICAL_KEYS] = to[PART.physicalKey]! + 2
    this.#from[SIZE] = from[PART.size]!
    this.#to[SIZE] = to[PART.size]!
    this.#from[META] = from[PART.meta]!
    this.#to[META] = to[PART.meta]!
  }

  /** A row whose parts are all plain becomes the template of the next ones. */
  #learn(valueFrom: number, valueTo: number): void {
    const bytes = this.#bytes
    const { from, to } = this.#parts
    const digit = bytes[this.#from[SIZE]!]!
    const isPlain =
      this.#isKeyPlain &&
      this.plainPhysicalKey(NO_PREFIX) !== undefined &&
      this.#from[META] !== ABSENT &&
      digit >= 0x30 &&
      digit <= 0x39 &&
      !Number.isNaN(this.size)
    this.#template = undefined
    if (!isPlain) return
    from[PART.key] = this.#from[LOGICAL_KEY]! + 1
    to[PART.key] = this.#to[LOGICAL_KEY]! - 1
    from[PART.physicalKey] = this.#from[PHYSICAL_KEYS]! + 2
    to[PART.physicalKey] = this.#to[PHYSICAL_KEYS]! - 2
    from[PART.size] = this.#from[SIZE]!
    to[PART.size] = this.#to[SIZE]!
    from[PART.hashValue] = valueFrom + 1
    to[PART.hashValue] = valueTo - 1
    from[PART.meta] = this.#from[META]!
    to[PART.meta] = this.#to[META]!
    this.#template = new RowTemplate(bytes, this.#rowFrom, this.#rowTo, this.#parts)
  }

  #memberOf(nameFrom: number, nameTo: number): number {
    const bytes = this.#bytes
    const length = nameTo - nameFrom
    for (let member = 0; member < 5; member++) {
      const name = NAMES[member]!
      if (name.length !== length) continue
      let i = 0
      while (i < length && bytes[nameFrom + i] === name[i]) i++
      if (i === length) return member
    }
    return ABSENT
  }

  #byteAt(member: number): number {
    const from = this.#from[member]!
    return from === ABSENT ? ABSENT : this.#bytes[from]!
  }

  #isEmptyArray(member: number): boolean {
    if (this.#byteAt(member) !== 0x5b) return false
    for (let i = this.#from[member]! + 1; i < this.#to[member]! - 1; i++) {
      const c = this.#bytes[i]!
      if (c !== 0x20 && c !== 0x09 && c !== 0x0d) return false
    }
    return true
  }

  /** Appends the logical key's bytes (`keyBytes`) and returns their number. */
  appendKey(out: ByteBuffer): number {
    const from = this.#from[LOGICAL_KEY]! + 1
    const to = this.#to[LOGICAL_KEY]! - 1
    if (this.#isKeyPlain) {
      out.bytes(this.#bytes, from, to)
      return to - from
    }
    const key = keyBytes(this.key)
    out.bytes(key, 0, key.length)
    return key.length
  }

  get isKeyPlain(): boolean {
    return this.#isKeyPlain
  }

  get key(): string {
    return decodeString(this.#bytes, this.#from[LOGICAL_KEY]! + 1, this.#to[LOGICAL_KEY]! - 1)
  }

  /** The first physical key, still as a string of the manifest's spelling. */
  get physicalKey(): string {
    const { from, to } = this.#firstPhysicalKey()
    return decodeString(this.#bytes, from, to)
  }

  #firstPhysicalKey(): Span {
    const scanner = this.#scanner
    scanner.start(this.#bytes, this.#from[PHYSICAL_KEYS]! + 1, this.#to[PHYSICAL_KEYS]!)
    if (scanner.peek() !== 0x22) malformed('physical_keys[0] is not a string')
    const from = scanner.at + 1
    scanner.skipString()
    return { from, to: scanner.at - 1 }
  }

  /**
   * Where the physical key lies when it is sound at first sight, so that no string need be made of it:
   * one string, without escapes, that starts with `prefix` and has no more of a query than a version.
   */
  plainPhysicalKey(prefix: Uint8Array): Span | undefined {
    if (!this.#arePhysicalKeysPlain) return undefined
    const bytes = this.#bytes
    const from = this.#from[PHYSICAL_KEYS]! + 2
    const to = this.#to[PHYSICAL_KEYS]! - 2
    if (bytes[from - 1] !== 0x22 || bytes[to] !== 0x22 || to - from <= prefix.length) return undefined
    for (let i = 0; i < prefix.length; i++) if (bytes[from + i] !== prefix[i]) return undefined
    for (let i = from + prefix.length; i < to; i++) {
      const c = bytes[i]!
      if (c === 0x22 || c === 0x23) return undefined
      if (c !== 0x3f) continue
      if (!isAscii(bytes, i, '?versionId=') || i + 11 === to) return undefined
      for (i += 11; i < to; i++) {
        const d = bytes[i]!
        if (d === 0x22 || d === 0x23 || d === 0x26 || d === 0x3f) return undefined
      }
    }
    return { from, to }
  }

  /** Where `meta` lies; of a file, it counts as `{}` when it is absent or falsy. */
  get meta(): Span | undefined {
    return this.#byteAt(META) === ABSENT ? undefined : { from: this.#from[META]!, to: this.#to[META]! }
  }

  /**
   * Where the user's metadata lies: `meta.user_meta` of a file, all of `meta` of a directory, whatever it is; `undefined`
   * without any, or with `{}`.
   */
  get userMeta(): Span | undefined {
    const span = this.meta
    if (span === undefined || (this.#byteAt(META) === 0x7b && span.to - span.from === 2)) return undefined
    return this.isDirectory ? span : findMember(this.#bytes, span.from, span.to, 'user_meta')
  }

  /**
   * Appends the row's canonical form, which the top hash covers, and fills `size`, `hashType` and
   * `digest` (32 bytes; the first 8 for CRC64NVME). Throws RowError.
   */
  appendCanonical(out: ByteBuffer, digest: Uint8Array): void {
    this.#appendHash(out, digest)
    out.ascii(',"logical_key":')
    if (this.#isKeyPlain) out.bytes(this.#bytes, this.#from[LOGICAL_KEY]!, this.#to[LOGICAL_KEY]!)
    else out.ascii(quote(this.key))
    out.ascii(',"meta":')
    const isMetaEmpty = !this.#hasMeta()
    if (isMetaEmpty) out.ascii('{}')
    else appendCanonicalJson(out, this.#bytes, this.#from[META]!, this.#to[META]!)
    out.ascii(',"size":')
    this.#appendSize(out)
    out.ascii('}')
    if (this.#learnable !== undefined) this.#learn(this.#learnable.from, this.#learnable.to)
    this.#learnable = undefined
  }

  /** Where the hash's value lies, quotes included, in a row that was scanned in full and is simple. */
  #learnable: Span | undefined

  /** Null, absent and otherwise falsy metadata all count as `{}`. */
  #hasMeta(): boolean {
    const first = this.#byteAt(META)
    if (first === ABSENT || first === 0x6e) return false
    const from = this.#from[META]!
    const to = this.#to[META]!
    if (to - from === 2) return false
    if (first === 0x7b) return true
    const canonical = canonicalJson(this.#bytes, from, to)
    if (['[]', '""', 'false', '0', '0.0', '-0.0'].includes(canonical)) return false
    return malformed('meta is not an object')
  }

  #appendSize(out: ByteBuffer): void {
    const from = this.#from[SIZE]!
    const to = this.#to[SIZE]!
    if (from === ABSENT || this.#bytes[from] === 0x6e) malformed('the entry has no size')
    let size = 0
    for (let i = from; i < to; i++) {
      const digit = this.#bytes[i]! - 0x30
      if (digit < 0 || digit > 9) {
        size = Number.NaN
        break
      }
      size = size * 10 + digit
    }
    this.size = size
    // A size like 1.0 or -1 is hashed as it stands, but nothing can be that long.
    if (Number.isNaN(size)) appendCanonicalJson(out, this.#bytes, from, to)
    else out.bytes(this.#bytes, from, to)
  }

  #appendHash(out: ByteBuffer, digest: Uint8Array): void {
    const bytes = this.#bytes
    if (this.#isTemplated) {
      const valueFrom = this.#parts.from[PART.hashValue]!
      const valueTo = this.#parts.to[PART.hashValue]!
      out.bytes(HASH_OPENINGS[this.hashType], 0, HASH_OPENINGS[this.hashType].length)
      out.bytes(bytes, valueFrom - 1, valueTo + 1)
      out.ascii('}')
      if (!decodeDigest(this.hashType, bytes, valueFrom, valueTo, digest)) {
        this.#hashProblem = `not a ${this.hashType} value: ${JSON.stringify(bytes.toString('latin1', valueFrom, Math.min(valueTo, valueFrom + 60)))}`
      }
      return
    }
    // Until a simple row has been learned, the hash type of the last one means nothing.
    this.#template = undefined
    const from = this.#from[HASH]!
    const to = this.#to[HASH]!
    if (from === ABSENT || bytes[from] !== 0x7b) malformed('the entry has no hash')
    const scanner = this.#scanner
    scanner.start(bytes, from, to)
    scanner.at++
    let typeFrom = ABSENT
    let typeTo = ABSENT
    let valueFrom = ABSENT
    let valueTo = ABSENT
    let isSimple = true
    if (scanner.peek() === 0x7d) malformed('the hash has no type')
    do {
      scanner.skipSpace()
      const nameFrom = scanner.at + 1
      scanner.skipString()
      const nameLength = scanner.at - 1 - nameFrom
      scanner.expect(0x3a, '":"')
      const isString = scanner.peek() === 0x22
      const memberFrom = scanner.at
      scanner.skipValue()
      isSimple &&= isString && scanner.wasPlain
      if (nameLength === 4 && isAscii(bytes, nameFrom, 'type') && typeFrom === ABSENT) {
        typeFrom = memberFrom
        typeTo = scanner.at
      } else if (nameLength === 5 && isAscii(bytes, nameFrom, 'value') && valueFrom === ABSENT) {
        valueFrom = memberFrom
        valueTo = scanner.at
      } else isSimple = false
    } while (!scanner.isLast(0x7d))
    if (isSimple && typeFrom !== ABSENT && valueFrom !== ABSENT) {
      const type = simpleType(bytes, typeFrom + 1, typeTo - 1)
      if (type !== undefined && decodeDigest(type, bytes, valueFrom + 1, valueTo - 1, digest)) {
        this.hashType = type
        out.ascii('{"hash":{"type":')
        out.bytes(bytes, typeFrom, typeTo)
        out.ascii(',"value":')
        out.bytes(bytes, valueFrom, valueTo)
        out.ascii('}')
        this.#learnable = { from: valueFrom, to: valueTo }
        return
      }
    }
    this.#appendUnusualHash(out, digest, from, to)
  }

  #appendUnusualHash(out: ByteBuffer, digest: Uint8Array, from: number, to: number): void {
    const canonical = canonicalJson(this.#bytes, from, to)
    out.ascii(`{"hash":${canonical}`)
    const { type, value } = parsePythonJson(canonical) as { type?: unknown; value?: unknown }
    if (typeof type !== 'string' || typeof value !== 'string') {
      this.#hashProblem = 'the hash has no type or value'
      return
    }
    const known = HASH_TYPES.find(candidate => candidate === type)
    if (known === undefined) {
      this.#hashProblem = `unknown hash type ${JSON.stringify(type.slice(0, 60))} (this Bobbin knows ${HASH_TYPES.join(', ')})`
      return
    }
    const text = Buffer.from(value)
    if (!decodeDigest(known, text, 0, text.length, digest)) {
      this.#hashProblem = `not a ${known} value: ${JSON.stringify(value.slice(0, 60))}`
      return
    }
    this.hashType = known
  }

  /** Set by `appendCanonical`: the hash can be hashed, but nothing can be verified against it. */
  #hashProblem: string | undefined

  /** After `appendCanonical`: why this entry, though hashed, cannot be shown; `undefined` when it can. */
  takeProblem(): string | undefined {
    const problem = this.#hashProblem
    this.#hashProblem = undefined
    if (problem !== undefined) return problem
    if (!(this.size >= 0 && this.size <= SIZE_MAX)) return 'the size is not a whole number of bytes'
    return undefined
  }
}

function simpleType(bytes: Buffer, from: number, to: number): HashType | undefined {
  for (const type of HASH_TYPES) if (type.length === to - from && isAscii(bytes, from, type)) return type
  return undefined
}

function isAscii(bytes: Buffer, from: number, text: string): boolean {
  for (let i = 0; i < text.length; i++) if (bytes[from + i] !== text.charCodeAt(i)) return false
  return true
}

const HEX_VALUES = digitTable('0123456789abcdef')
for (let i = 10; i < 16; i++) HEX_VALUES[0x41 + i - 10] = i
const BASE64_VALUES = digitTable('ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/')

function digitTable(digits: string): Int8Array {
  const table = new Int8Array(256).fill(-1)
  for (let i = 0; i < digits.length; i++) table[digits.charCodeAt(i)] = i
  return table
}

/** Decodes a manifest's hash value into `digest`; false when it is not one of its type. */
function decodeDigest(type: HashType, bytes: Buffer, from: number, to: number, digest: Uint8Array): boolean {
  if (type === 'SHA256') {
    if (to - from !== 64) return false
    for (let i = 0; i < 32; i++) {
      const high = HEX_VALUES[bytes[from + 2 * i]!]!
      const low = HEX_VALUES[bytes[from + 2 * i + 1]!]!
      if (high < 0 || low < 0) return false
      digest[i] = high * 16 + low
    }
    return true
  }
  const length = type === 'CRC64NVME' ? 8 : 32
  if (to - from !== Math.ceil(length / 3) * 4) return false
  let bits = 0
  let value = 0
  let written = 0
  for (let i = from; written < length; i++) {
    const digit = BASE64_VALUES[bytes[i]!]!
    if (digit < 0) return false
    value = ((value << 6) | digit) & 0xffff
    bits += 6
    if (bits >= 8) {
      bits -= 8
      digest[written++] = (value >> bits) & 0xff
    }
  }
  // 8 and 32 bytes both leave one `=` and bits that must be zero.
  return bytes[to - 1] === 0x3d && (value & ((1 << bits) - 1)) === 0
}
