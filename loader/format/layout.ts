/**
 * An answer before a byte of it was read: which bytes it will have, where each comes from, and so its length
 * and every offset. Made from the package index alone; filled by `loader/batch`.
 */
import { BLOCK_BYTES, paddingBytes, TRAILER_BYTES, tarHeader } from './tar.js'

export type Segment =
  | { readonly kind: 'bytes'; readonly at: number; readonly length: number; readonly bytes: Uint8Array }
  | { readonly kind: 'zeros'; readonly at: number; readonly length: number }
  | {
      readonly kind: 'object'
      readonly at: number
      readonly length: number
      /** The caller's number of the object. */
      readonly object: number
      /** First byte of the object that is wanted. */
      readonly start: number
    }

export class Layout {
  readonly #segments: Segment[] = []
  #bytes = 0

  get bytes(): number {
    return this.#bytes
  }

  literal(bytes: Uint8Array): void {
    this.#push({ kind: 'bytes', at: this.#bytes, length: bytes.length, bytes })
  }

  zeros(length: number): void {
    this.#push({ kind: 'zeros', at: this.#bytes, length })
  }

  object(object: number, start: number, length: number): void {
    this.#push({ kind: 'object', at: this.#bytes, length, object, start })
  }

  /** A tar member whose content is here. */
  member(name: string, content: Uint8Array): void {
    this.literal(tarHeader(name, content.length))
    this.literal(content)
    this.zeros(paddingBytes(content.length))
  }

  /** A tar member whose content is an object's, or a part of it. */
  objectMember(name: string, object: number, start: number, length: number): void {
    this.literal(tarHeader(name, length))
    this.object(object, start, length)
    this.zeros(paddingBytes(length))
  }

  end(): void {
    this.zeros(TRAILER_BYTES)
  }

  /** Those that have bytes in the range from ≤ offset < to, in order. */
  *within(from: number, to: number): Generator<Segment> {
    let [low, high] = [0, this.#segments.length]
    while (low < high) {
      const middle = (low + high) >>> 1
      const { at, length } = this.#segments[middle]!
      if (at + length <= from) low = middle + 1
      else high = middle
    }
    for (; low < this.#segments.length && this.#segments[low]!.at < to; low++) yield this.#segments[low]!
  }

  /** The objects that the range needs, each once, in order. */
  objectsWithin(from: number, to: number): number[] {
    const objects = new Set<number>()
    for (const segment of this.within(from, to)) if (segment.kind === 'object') objects.add(segment.object)
    return [...objects]
  }

  /**
   * Puts a member with a message in the place of an object's that cannot be had, with the same number of blocks:
   * nothing behind it moves. `name` and `text` are those of the object's place in this answer.
   */
  replace(object: number, messageOf: (name: string) => { readonly name: string; readonly text: string }): void {
    for (const [i, segment] of this.#segments.entries()) {
      if (segment.kind !== 'object' || segment.object !== object) continue
      const header = this.#segments[i - 1]!
      const padding = this.#segments[i + 1]
      if (header.kind !== 'bytes') continue
      const nameEnd = header.bytes.indexOf(0)
      const oldName = Buffer.from(header.bytes.subarray(0, Math.min(nameEnd < 0 ? 100 : nameEnd, 100))).toString('utf8')
      const { name, text } = messageOf(oldName)
      const isPadded = padding?.kind === 'zeros' && padding.at === segment.at + segment.length
      const room = segment.length + (isPadded ? padding.length : 0)
      const content = Buffer.alloc(room, 0x20)
      content.write(text, 'utf8')
      this.#segments[i - 1] = { ...header, bytes: tarHeader(name, room) }
      this.#segments[i] = {
        kind: 'bytes',
        at: segment.at,
        length: segment.length,
        bytes: content.subarray(0, segment.length),
      }
      if (isPadded)
        this.#segments[i + 1] = {
          kind: 'bytes',
          at: padding.at,
          length: padding.length,
          bytes: content.subarray(segment.length),
        }
    }
  }

  #push(segment: Segment): void {
    if (segment.length === 0) return
    this.#segments.push(segment)
    this.#bytes += segment.length
  }
}

/** A message has to fit where an object of one byte was. */
export const MESSAGE_BYTES_MAX = BLOCK_BYTES
