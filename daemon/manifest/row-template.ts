/**
 * The shape of a row, learned from one that was scanned in full: the bytes between its variable parts.
 * The rows of a manifest are written by one program, so the next one nearly always has the same shape,
 * and then it is enough to compare those bytes and to find the ends of the parts (measured: about
 * twice as fast as scanning). A row that fits is sound JSON because the learned one was.
 */
import type { JsonScanner } from '../json/json-bytes.js'

/** The parts that differ from row to row: contents of three strings, a number, a value. */
export const PARTS = ['key', 'physicalKey', 'size', 'hashValue', 'meta'] as const
export type Part = (typeof PARTS)[number]
export const PART = { key: 0, physicalKey: 1, size: 2, hashValue: 3, meta: 4 } as const satisfies Record<Part, number>

/** Places of the parts, [from, to) each, by PART. */
export interface PartPlaces {
  readonly from: Int32Array
  readonly to: Int32Array
}

export class RowTemplate {
  readonly #order: readonly number[]
  /** #literals[i] stands before the part #order[i]; the last one ends the row. */
  readonly #literals: readonly Uint8Array[]

  /** From the row in [from, to) of `bytes`, whose parts are at `places`. */
  constructor(bytes: Uint8Array, from: number, to: number, places: PartPlaces) {
    this.#order = [0, 1, 2, 3, 4].sort((a, b) => places.from[a]! - places.from[b]!)
    let at = from
    const literals = this.#order.map(part => {
      const literal = bytes.slice(at, places.from[part]!)
      at = places.to[part]!
      return literal
    })
    this.#literals = [...literals, bytes.slice(at, to)]
  }

  /** Fills `places` if the row in [from, to) has this shape. */
  match(bytes: Buffer, from: number, to: number, scanner: JsonScanner, places: PartPlaces): boolean {
    const order = this.#order
    const literals = this.#literals
    let at = from
    for (let i = 0; i < 5; i++) {
      at = skipLiteral(bytes, at, to, literals[i]!)
      if (at < 0) return false
      const part = order[i]!
      const start = at
      switch (part) {
        case PART.size:
          while (at < to && bytes[at]! >= 0x30 && bytes[at]! <= 0x39) at++
          // No digits, or a zero before others, which JSON does not have.
          if (at === start || (bytes[start] === 0x30 && at > start + 1)) return false
          break
        case PART.meta:
          if (bytes[at] === 0x7b && bytes[at + 1] === 0x7d) at += 2
          else {
            scanner.start(bytes, at, to)
            scanner.skipValue()
            at = scanner.at
          }
          break
        default:
          for (;;) {
            if (at === to) return false
            const c = bytes[at]!
            if (c === 0x22) break
            if (c < 0x20 || c > 0x7e || c === 0x5c) return false
            at++
          }
      }
      places.from[part] = start
      places.to[part] = at
    }
    return skipLiteral(bytes, at, to, literals[5]!) === to
  }
}

/** Where the literal ends, or -1 when it does not stand there. */
function skipLiteral(bytes: Uint8Array, at: number, to: number, literal: Uint8Array): number {
  const length = literal.length
  if (at + length > to) return -1
  for (let i = 0; i < length; i++) if (bytes[at + i] !== literal[i]) return -1
  return at + length
}
