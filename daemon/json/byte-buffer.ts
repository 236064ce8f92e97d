/** Up to here a loop beats a call into native code. */
const LOOP_BYTES_MAX = 256

/** Grows by what is appended: the canonical text of many rows, since a hash update per row would cost more than the hash. */
export class ByteBuffer {
  #buffer: Buffer = Buffer.alloc(0)
  #length = 0

  /** Starts over, in this memory for as long as it suffices. */
  begin(memory: ArrayBufferLike): void {
    this.#buffer = Buffer.from(memory)
    this.#length = 0
  }

  bytes(source: Uint8Array, from: number, to: number): void {
    const buffer = this.#roomFor(to - from)
    let at = this.#length
    if (to - from > LOOP_BYTES_MAX) {
      buffer.set(source.subarray(from, to), at)
      this.#length += to - from
      return
    }
    for (let i = from; i < to; i++) buffer[at++] = source[i]!
    this.#length = at
  }

  ascii(text: string): void {
    const buffer = this.#roomFor(text.length)
    if (text.length > 40) {
      this.#length += buffer.write(text, this.#length, 'latin1')
      return
    }
    let at = this.#length
    for (let i = 0; i < text.length; i++) buffer[at++] = text.charCodeAt(i)
    this.#length = at
  }

  /** Takes back what was appended behind the first `length` bytes. */
  truncate(length: number): void {
    this.#length = length
  }

  #roomFor(length: number): Buffer {
    if (this.#length + length > this.#buffer.length) {
      const larger = Buffer.from(new ArrayBuffer(Math.max(this.#buffer.length * 2, this.#length + length)))
      this.#buffer.copy(larger, 0, 0, this.#length)
      this.#buffer = larger
    }
    return this.#buffer
  }

  get length(): number {
    return this.#length
  }

  /** What was appended; good until `begin`, and as far as nothing more is appended. */
  get written(): Uint8Array {
    return this.#buffer.subarray(0, this.#length)
  }

  /** The memory itself: cheaper to look into than `written`, and only the first `length` bytes mean something. */
  get memory(): Uint8Array {
    return this.#buffer
  }
}
