/**
 * Canonical JSON as quilt3 hashes it: Python's `json` with sorted keys, separators `,` and `:` and
 * ASCII-only output, made from the source text so that number tokens are not lost.
 *
 * Source: format.md section 3; vectors `canonical_json`.
 */
import { DEPTH_MAX, decodeString, JsonScanner, JsonSyntaxError } from './json-bytes.js'

/** Python refuses to convert longer integers. */
const INTEGER_DIGITS_MAX = 4300

/**
 * The canonical form of the one JSON value in [from, to); pure ASCII. `without` leaves one key out
 * of the outermost object (the header's obsolete `top_hash`). Throws JsonSyntaxError.
 */
export function canonicalJson(
  bytes: Buffer,
  from: number,
  to: number,
  options?: { readonly without?: string },
): string {
  const scanner = new JsonScanner()
  scanner.start(bytes, from, to)
  const text = canonicalValue(scanner, 0, options?.without)
  scanner.expectEnd()
  return text
}

function canonicalValue(scanner: JsonScanner, depth: number, without?: string): string {
  switch (scanner.peek()) {
    case 0x22:
      return canonicalString(scanner)
    case 0x7b:
      return canonicalObject(scanner, depth, without)
    case 0x5b:
      return canonicalArray(scanner, depth)
    default: {
      const from = scanner.at
      scanner.skipValue(depth)
      return canonicalToken(scanner.bytes.toString('latin1', from, scanner.at), from)
    }
  }
}

function canonicalObject(scanner: JsonScanner, depth: number, without?: string): string {
  if (depth > DEPTH_MAX) scanner.fail(`nested deeper than ${DEPTH_MAX}`)
  scanner.at++
  if (scanner.peek() === 0x7d) {
    scanner.at++
    return '{}'
  }
  // Written out at once while the keys come sorted, as they mostly do; put in order at the end otherwise.
  const members: { readonly key: string; readonly text: string }[] = []
  let isSorted = true
  do {
    scanner.skipSpace()
    const from = scanner.at
    scanner.skipString()
    const isPlain = scanner.wasPlain
    const key = isPlain
      ? scanner.bytes.toString('latin1', from + 1, scanner.at - 1)
      : decodeString(scanner.bytes, from + 1, scanner.at - 1)
    scanner.expect(0x3a, '":"')
    const text = `${isPlain ? `"${key}"` : quote(key)}:${canonicalValue(scanner, depth + 1)}`
    if (key === without) continue
    if (members.length > 0 && compareCodePoints(members.at(-1)!.key, key) >= 0) isSorted = false
    members.push({ key, text })
  } while (!scanner.isLast(0x7d))
  return `{${(isSorted ? members : inOrder(members)).map(member => member.text).join(',')}}`
}

/** Sorted by code point; the last of repeated keys wins, as in Python's dict. */
function inOrder(members: readonly { readonly key: string; readonly text: string }[]) {
  const lastOfKey = new Map(members.map(member => [member.key, member]))
  return [...lastOfKey.values()].sort((a, b) => compareCodePoints(a.key, b.key))
}

function canonicalArray(scanner: JsonScanner, depth: number): string {
  if (depth > DEPTH_MAX) scanner.fail(`nested deeper than ${DEPTH_MAX}`)
  scanner.at++
  if (scanner.peek() === 0x5d) {
    scanner.at++
    return '[]'
  }
  const elements: string[] = []
  do elements.push(canonicalValue(scanner, depth + 1))
  while (!scanner.isLast(0x5d))
  return `[${elements.join(',')}]`
}

function canonicalString(scanner: JsonScanner): string {
  const from = scanner.at
  scanner.skipString()
  if (scanner.wasPlain) return scanner.bytes.toString('latin1', from, scanner.at)
  return quote(decodeString(scanner.bytes, from + 1, scanner.at - 1))
}

/** By Unicode code point. JavaScript's own order is by UTF-16 unit: wrong for U+E000..U+FFFF against astral characters. */
export function compareCodePoints(a: string, b: string): number {
  const length = Math.min(a.length, b.length)
  for (let i = 0; i < length; i++) {
    const x = a.charCodeAt(i)
    const y = b.charCodeAt(i)
    if (x === y) continue
    const isXSurrogate = x >= 0xd800 && x <= 0xdfff
    const isYSurrogate = y >= 0xd800 && y <= 0xdfff
    if (isXSurrogate === isYSurrogate) return x - y
    return (isXSurrogate ? a.codePointAt(i)! : x) - (isYSurrogate ? b.codePointAt(i)! : y)
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
