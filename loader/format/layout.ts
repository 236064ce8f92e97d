/**
 * An answer before a byte of it was read: which bytes it will have, where each comes from, and so its length
 * and every offset. Made from the package index alone; filled by `loader/batch`.
 *
 * What is known already (headers, metadata, padding) is written into slabs as it comes, and what stands together is one
 * segment: two segments a sample of one file, and hardly an allocation.
 */
import { BLOCK_BYTES, paddingBytes, TRAILER_BYTES, writeTarHeader } from './tar.js'

export type Segment =
  | { readonly kind: 'bytes'; readonly at: number; readonly length: number; readonly bytes: Buffer }
  | {
      readonly kind: 'object'
      readonly at: number
      readonly length: number
      /** The caller's number of the object; they ascend. */
      readonly object: number
      /** First byte of the object that is wanted. */
      readonly start: number
    }

const SLAB_BYTES = 65_536

export class Layout {
  readonly #segments: Segment[] = []
  #bytes = 0
  #slab = Buffer.allocUnsafe(SLAB_BYTES)
  /** Of the slab: what belongs to the segment that is being written. */
  #begin = 0
  #end = 0

  /** Of the whole, once it has ended. */
  get bytes(): number {
    return this.#bytes
  }

  /** So far. */
  get written(): number {
    return this.#bytes + this.#end - this.#begin
  }

  /** A tar member whose content is here. */
  member(name: string, content: Uint8Array): void {
    const padding = paddingBytes(content.length)
    const at = this.#room(BLOCK_BYTES + content.length + padding)
    writeTarHeader(this.#slab, at, name, content.length)
    this.#slab.set(content, at + BLOCK_BYTES)
    this.#slab.fill(0, this.#end - padding, this.#end)
  }

  /** A tar member whose content is an object's, or a part of it. */
  objectMember(name: string, object: number, start: number, length: number): void {
    const at = this.#room(BLOCK_BYTES)
    writeTarHeader(this.#slab, at, name, length)
    this.object(object, start, length)
    this.#zeros(paddingBytes(length))
  }

  /** An object's bytes, bare. Numbers ascend. */
  object(object: number, start: number, length: number): void {
    this.#flush()
    if (length === 0) return
    this.#segments.push({ kind: 'object', at: this.#bytes, length, object, start })
    this.#bytes += length
  }

  /** Nothing comes behind it. */
  end({ isTar }: { readonly isTar: boolean }): void {
    if (isTar) this.#zeros(TRAILER_BYTES)
    this.#flush()
  }

  /** Those that have bytes in the range from ≤ offset < to, in order. */
  *within(from: number, to: number): Generator<Segment> {
    for (let i = this.#find(from); i < this.#segments.length && this.#segments[i]!.at < to; i++)
      yield this.#segments[i]!
  }

  /** The objects that the range needs: first ≤ number ≤ last. */
  objectsWithin(from: number, to: number): { readonly first: number; readonly last: number } | undefined {
    let first: number | undefined
    let last = 0
    for (const segment of this.within(from, to)) {
      if (segment.kind !== 'object') continue
      first ??= segment.object
      last = segment.object
    }
    return first === undefined ? undefined : { first, last }
  }

  /**
   * Puts a member with a message in the place of an object's that cannot be had, with the same number of blocks:
   * nothing behind it moves. `messageOf` is told the member's name. One of 0 bytes stays: it is had without its object.
   */
  replace(object: number, messageOf: (name: string) => { readonly name: string; readonly text: string }): void {
    const i = this.#segments.findIndex(segment => segment.kind === 'object' && segment.object === object)
    const [header, segment] = [this.#segments[i - 1], this.#segments[i]]
    if (segment?.kind !== 'object' || header?.kind !== 'bytes') return
    const headerAt = header.length - BLOCK_BYTES
    const nameEnd = header.bytes.indexOf(0, headerAt)
    const { name, text } = messageOf(header.bytes.toString('utf8', headerAt, Math.min(nameEnd, headerAt + 100)))
    const padding = paddingBytes(segment.length)
    const content = Buffer.alloc(segment.length + padding, 0x20)
    content.write(text, 'utf8')
    writeTarHeader(header.bytes, headerAt, name, content.length)
    this.#segments[i] = {
      kind: 'bytes',
      at: segment.at,
      length: segment.length,
      bytes: content.subarray(0, segment.length),
    }
    const next = this.#segments[i + 1]
    if (next?.kind === 'bytes') content.copy(next.bytes, 0, segment.length)
  }

  #zeros(length: number): void {
    const at = this.#room(length)
    this.#slab.fill(0, at, at + length)
  }

  /** Where in the slab so many bytes of the current segment go. */
  #room(length: number): number {
    if (this.#end + length > this.#slab.length) {
      this.#flush()
      this.#slab = Buffer.allocUnsafe(Math.max(SLAB_BYTES, length))
      this.#begin = 0
      this.#end = 0
    }
    const at = this.#end
    this.#end += length
    return at
  }

  #flush(): void {
    const length = this.#end - this.#begin
    if (length === 0) return
    this.#segments.push({ kind: 'bytes', at: this.#bytes, length, bytes: this.#slab.subarray(this.#begin, this.#end) })
    this.#bytes += length
    this.#begin = this.#end
  }

  /** The segment that has the byte at this offset. */
  #find(offset: number): number {
    let [low, high] = [0, this.#segments.length]
    while (low < high) {
      const middle = (low + high) >>> 1
      const { at, length } = this.#segments[middle]!
      if (at + length <= offset) low = middle + 1
      else high = middle
    }
    return low
  }
}

/** A message has to fit where an object of one byte was. */
export const MESSAGE_BYTES_MAX = BLOCK_BYTES
