/**
 * Walks JSON text as bytes, so that a value's place in a manifest is known and its number tokens
 * are kept as they were written (`JSON.parse` loses both).
 *
 * Accepts what Python's `json.loads` accepts: RFC 8259 plus `NaN`, `Infinity` and `-Infinity`.
 * The bytes must be valid UTF-8; whoever reads the file checks that.
 */

/** Python gives up at about this depth, too. */
export const DEPTH_MAX = 1000

export class JsonSyntaxError extends Error {
  override readonly name = 'JsonSyntaxError'
  constructor(
    message: string,
    /** Byte offset in the scanned array. */
    readonly at: number,
  ) {
    super(message)
  }
}

const QUOTE = 0x22
const BACKSLASH = 0x5c

/** A position in JSON text, and the moves over it. Not re-entrant; `start` may be called again and again. */
export class JsonScanner {
  bytes: Buffer = Buffer.alloc(0)
  at = 0
  end = 0
  /** After `skipString`: was every byte of it printable ASCII without a backslash, so that it is its own canonical form? */
  wasPlain = true

  start(bytes: Buffer, from: number, to: number): void {
    this.bytes = bytes
    this.at = from
    this.end = to
  }

  fail(message: string): never {
    throw new JsonSyntaxError(message, this.at)
  }

  skipSpace(): void {
    const { bytes, end } = this
    while (this.at < end) {
      const c = bytes[this.at]!
      if (c !== 0x20 && c !== 0x09 && c !== 0x0a && c !== 0x0d) return
      this.at++
    }
  }

  /** The next byte that is not white space, or -1 at the end; does not consume it. */
  peek(): number {
    const c = this.at < this.end ? this.bytes[this.at]! : -1
    if (c > 0x20) return c
    this.skipSpace()
    return this.at < this.end ? this.bytes[this.at]! : -1
  }

  expect(byte: number, what: string): void {
    if (this.peek() !== byte) this.fail(`expected ${what}`)
    this.at++
  }

  /** Nothing but white space may follow. */
  expectEnd(): void {
    if (this.peek() !== -1) this.fail('unexpected text after the value')
  }

  /** At an opening quote: moves behind the closing one. The content lies in [at before + 1, at after - 1). */
  skipString(): void {
    const { bytes, end } = this
    if (bytes[this.at] !== QUOTE && this.peek() !== QUOTE) this.fail('expected a string')
    let i = this.at + 1
    let isPlain = true
    while (i < end) {
      const c = bytes[i]!
      if (c === QUOTE) {
        this.at = i + 1
        this.wasPlain = isPlain
        return
      }
      if (c === BACKSLASH) {
        isPlain = false
        i += this.#escapeBytes(i)
        continue
      }
      if (c < 0x20) {
        this.at = i
        this.fail('a control character in a string')
      }
      if (c > 0x7e) isPlain = false
      i++
    }
    this.at = end
    this.fail('a string without its closing quote')
  }

  #escapeBytes(i: number): number {
    const c = i + 1 < this.end ? this.bytes[i + 1]! : -1
    // "\/bfnrt
    if (c === 0x22 || c === 0x5c || c === 0x2f || c === 0x62 || c === 0x66 || c === 0x6e || c === 0x72 || c === 0x74) {
      return 2
    }
    if (c === 0x75 && i + 6 <= this.end && this.bytes.subarray(i + 2, i + 6).every(isHexDigit)) return 6
    this.at = i
    return this.fail('not an escape sequence')
  }

  /** Moves behind the next value, checking its syntax. */
  skipValue(depth = 0): void {
    if (depth > DEPTH_MAX) this.fail(`nested deeper than ${DEPTH_MAX}`)
    const c = this.peek()
    switch (c) {
      case QUOTE:
        this.skipString()
        return
      case 0x7b: {
        this.at++
        if (this.peek() === 0x7d) {
          this.at++
          return
        }
        for (;;) {
          this.skipString()
          this.expect(0x3a, '":"')
          this.skipValue(depth + 1)
          if (this.isLast(0x7d)) return
        }
      }
      case 0x5b: {
        this.at++
        if (this.peek() === 0x5d) {
          this.at++
          return
        }
        for (;;) {
          this.skipValue(depth + 1)
          if (this.isLast(0x5d)) return
        }
      }
      case -1:
        this.fail('unexpected end')
        return
      default:
        this.#skipToken()
    }
  }

  /** After a member or an element: consumes the closing byte (true) or a comma (false). */
  isLast(closing: number): boolean {
    const c = this.peek()
    this.at++
    if (c === closing) return true
    if (c === 0x2c) return false
    this.at--
    return this.fail(c === -1 ? 'unexpected end' : 'expected "," or the closing bracket')
  }

  /** Numbers, and the words that stand alone. */
  #skipToken(): void {
    const from = this.at
    const { bytes, end } = this
    let i = from
    while (i < end && isTokenByte(bytes[i]!)) i++
    const length = i - from
    const first = bytes[from]!
    // The usual token: a plain run of digits.
    if (first >= 0x31 && first <= 0x39) {
      let j = from + 1
      while (j < i && bytes[j]! >= 0x30 && bytes[j]! <= 0x39) j++
      if (j === i) {
        this.at = i
        return
      }
    }
    const token = length > 0 && length < 10_000 ? bytes.toString('latin1', from, i) : ''
    if (!TOKEN.test(token)) this.fail('not a JSON value')
    this.at = i
  }
}

const TOKEN = /^(?:true|false|null|NaN|-?Infinity|-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)$/

function isTokenByte(c: number): boolean {
  return (
    (c >= 0x30 && c <= 0x39) ||
    (c >= 0x61 && c <= 0x7a) ||
    (c >= 0x41 && c <= 0x5a) ||
    c === 0x2d ||
    c === 0x2b ||
    c === 0x2e
  )
}

function isHexDigit(c: number): boolean {
  return (c >= 0x30 && c <= 0x39) || (c >= 0x61 && c <= 0x66) || (c >= 0x41 && c <= 0x46)
}

/** The string whose content (without its quotes) lies in [from, to). Lone surrogates are kept. */
export function decodeString(bytes: Buffer, from: number, to: number): string {
  const text = bytes.toString('utf8', from, to)
  return text.includes('\\') ? (JSON.parse(`"${text}"`) as string) : text
}

/** Where a value lies: [from, to), without surrounding white space. */
export interface Span {
  readonly from: number
  readonly to: number
}

/** The value of the last member called `name` of the object in [from, to), as `json.loads` would pick it. */
export function findMember(bytes: Buffer, from: number, to: number, name: string): Span | undefined {
  const scanner = new JsonScanner()
  scanner.start(bytes, from, to)
  if (scanner.peek() !== 0x7b) return undefined
  scanner.at++
  let found: Span | undefined
  if (scanner.peek() === 0x7d) return undefined
  do {
    scanner.skipSpace()
    const nameFrom = scanner.at + 1
    scanner.skipString()
    const isIt = decodeString(bytes, nameFrom, scanner.at - 1) === name
    scanner.expect(0x3a, '":"')
    scanner.skipSpace()
    const valueFrom = scanner.at
    scanner.skipValue()
    if (isIt) found = { from: valueFrom, to: scanner.at }
  } while (!scanner.isLast(0x7d))
  return found
}
