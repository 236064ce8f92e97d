/**
 * Canonical JSON as quilt3 hashes it: Python's `json` with sorted keys, separators `,` and `:` and
 * ASCII-only output, made from the source text so that number tokens are not lost.
 *
 * Source: format.md section 3; vectors `canonical_json`.
 */
import { ByteBuffer } from './byte-buffer.js'
import { DEPTH_MAX, decodeString, JsonScanner, JsonSyntaxError } from './json-bytes.js'

/** Python refuses to convert longer integers. */
const INTEGER_DIGITS_MAX = 4300

/**
 * How often the bytes of a text may be moved to put them in order. An object out of order moves all that lies in it, so
 * 1,000 of them, one in the other, would move 8 MB for seconds; honest metadata has a few levels.
 */
const MOVES_MAX = 120

/** The text, and how much may still be moved to put it in order. Bytes. */
class CanonicalScanner extends JsonScanner {
  movableBytes = 0
}

interface CanonicalOptions {
  /** Left out of the outermost object (the header's obsolete `top_hash`). */
  readonly without?: string
}

/** The canonical form of the one JSON value in [from, to); pure ASCII. Throws JsonSyntaxError. */
export function canonicalJson(bytes: Buffer, from: number, to: number, options?: CanonicalOptions): string {
  const out = new ByteBuffer()
  appendCanonicalJson(out, bytes, from, to, options)
  return Buffer.from(out.written).toString('latin1')
}

/**
 * Appends the canonical form as bytes: a value of millions of small parts would take fifty times its size as strings.
 * After a JsonSyntaxError, `out` has a part of it.
 */
export function appendCanonicalJson(
  out: ByteBuffer,
  bytes: Buffer,
  from: number,
  to: number,
  options?: CanonicalOptions,
): void {
  const scanner = new CanonicalScanner()
  scanner.start(bytes, from, to)
  scanner.movableBytes = MOVES_MAX * (to - from)
  appendValue(out, scanner, 0, options?.without)
  scanner.expectEnd()
}

function appendValue(out: ByteBuffer, scanner: CanonicalScanner, depth: number, without?: string): void {
  switch (scanner.peek()) {
    case 0x22:
      appendString(out, scanner)
      return
    case 0x7b:
      appendObject(out, scanner, depth, without)
      return
    case 0x5b:
      appendArray(out, scanner, depth)
      return
    default: {
      const from = scanner.at
      scanner.skipValue(depth)
      out.ascii(canonicalToken(scanner.bytes.toString('latin1', from, scanner.at), from))
    }
  }
}

function appendObject(out: ByteBuffer, scanner: CanonicalScanner, depth: number, without?: string): void {
  if (depth > DEPTH_MAX) scanner.fail(`nested deeper than ${DEPTH_MAX}`)
  scanner.at++
  out.ascii('{')
  if (scanner.peek() === 0x7d) {
    scanner.at++
    out.ascii('}')
    return
  }
  // Keys mostly come sorted; members are put in order afterwards where they do not.
  const keys: string[] = []
  const starts: number[] = []
  let isSorted = true
  do {
    scanner.skipSpace()
    const from = scanner.at
    scanner.skipString()
    const keyEnd = scanner.at
    const isPlain = scanner.wasPlain
    const key = isPlain
      ? scanner.bytes.toString('latin1', from + 1, keyEnd - 1)
      : decodeString(scanner.bytes, from + 1, keyEnd - 1)
    scanner.expect(0x3a, '":"')
    const start = out.length
    if (isPlain) out.bytes(scanner.bytes, from, keyEnd)
    else out.ascii(quote(key))
    out.ascii(':')
    appendValue(out, scanner, depth + 1)
    out.ascii(',')
    if (key === without) {
      out.truncate(start)
      continue
    }
    if (keys.length > 0 && compareCodePoints(keys.at(-1)!, key) >= 0) isSorted = false
    keys.push(key)
    starts.push(start)
  } while (!scanner.isLast(0x7d))
  if (!isSorted) {
    scanner.movableBytes -= out.length - starts[0]!
    if (scanner.movableBytes < 0) scanner.fail('too many objects that are out of order lie in each other')
    putInOrder(out, keys, starts)
  }
  if (keys.length > 0) out.truncate(out.length - 1)
  out.ascii('}')
}

/**
 * Members begin at `starts` and end with a comma. Sorted by code point; the last of repeated keys wins, as in Python's
 * dict.
 */
function putInOrder(out: ByteBuffer, keys: readonly string[], starts: readonly number[]): void {
  const first = starts[0]!
  const text = Buffer.from(out.written.subarray(first))
  out.truncate(first)
  const lastOfKey = new Map(keys.map((key, i) => [key, i]))
  for (const i of [...lastOfKey.values()].sort((a, b) => compareCodePoints(keys[a]!, keys[b]!)))
    out.bytes(text, starts[i]! - first, (starts[i + 1] ?? first + text.length) - first)
}

function appendArray(out: ByteBuffer, scanner: CanonicalScanner, depth: number): void {
  if (depth > DEPTH_MAX) scanner.fail(`nested deeper than ${DEPTH_MAX}`)
  scanner.at++
  out.ascii('[')
  if (scanner.peek() === 0x5d) {
    scanner.at++
    out.ascii(']')
    return
  }
  do {
    appendValue(out, scanner, depth + 1)
    out.ascii(',')
  } while (!scanner.isLast(0x5d))
  out.truncate(out.length - 1)
  out.ascii(']')
}

function appendString(out: ByteBuffer, scanner: CanonicalScanner): void {
  const from = scanner.at
  scanner.skipString()
  if (scanner.wasPlain) out.bytes(scanner.bytes, from, scanner.at)
  else out.ascii(quote(decodeString(scanner.bytes, from + 1, scanner.at - 1)))
}

/**
 * By Unicode code point, a lone surrogate being one. JavaScript's own order is by UTF-16 unit: wrong for U+E000..U+FFFF
 * against astral characters.
 */
export function compareCodePoints(a: string, b: string): number {
  const length = Math.min(a.length, b.length)
  for (let i = 0; i < length; i++) {
    if (a.charCodeAt(i) === b.charCodeAt(i)) continue
    // A high surrogate just before is half of a character in one of the two, or in both.
    const isBehindHigh = i > 0 && (a.charCodeAt(i - 1) & 0xfc00) === 0xd800
    const order = isBehindHigh ? a.codePointAt(i - 1)! - b.codePointAt(i - 1)! : 0
    return order || a.codePointAt(i)! - b.codePointAt(i)!
  }
  return a.length - b.length
}

const SHORT_ESCAPES: Readonly<Record<string, string>> = {
  '"': '\\"',
  '\\': '\\\\',
  '\b': '\\b',
  '\f': '\\f',
  '\n': '\\n',
  '\r': '\\r',
  '\t': '\\t',
}

/** A canonical string literal: everything outside 0x20..0x7E is escaped, 0x7F too; `/` is not. */
export function quote(text: string): string {
  return `"${text.replace(/["\\]|[^\x20-\x7e]/g, escapeUnit)}"`
}

// The pattern has no `u` flag, so an astral character arrives as its two surrogates, one by one.
function escapeUnit(unit: string): string {
  return SHORT_ESCAPES[unit] ?? `\\u${unit.charCodeAt(0).toString(16).padStart(4, '0')}`
}

function canonicalToken(token: string, at: number): string {
  if (token === 'true' || token === 'false' || token === 'null') return token
  if (token.endsWith('NaN') || token.endsWith('Infinity')) return token
  if (/[.eE]/.test(token)) return formatFloat(Number(token))
  if (token.length > INTEGER_DIGITS_MAX) throw new JsonSyntaxError('an integer of over 4300 digits', at)
  return token === '-0' ? '0' : token
}

/** A double as Python's `repr` lays it out: shortest digits that round-trip, always with `.0` or an exponent. */
export function formatFloat(value: number): string {
  if (value === Infinity) return 'Infinity'
  if (value === -Infinity) return '-Infinity'
  const sign = value < 0 || Object.is(value, -0) ? '-' : ''
  const [mantissa, exponentText] = Math.abs(value).toExponential().split('e') as [string, string]
  const digits = mantissa.replace('.', '')
  const exponent = Number(exponentText)
  if (exponent >= 16 || exponent < -4) {
    const fraction = digits.length > 1 ? `.${digits.slice(1)}` : ''
    return `${sign}${digits[0]}${fraction}e${exponent < 0 ? '-' : '+'}${String(Math.abs(exponent)).padStart(2, '0')}`
  }
  if (exponent < 0) return `${sign}0.${'0'.repeat(-exponent - 1)}${digits}`
  const whole = digits.slice(0, exponent + 1).padEnd(exponent + 1, '0')
  return `${sign}${whole}.${digits.slice(exponent + 1) || '0'}`
}
