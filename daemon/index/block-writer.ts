import { writeSync } from 'node:fs'
import { crc32 } from 'node:zlib'
import { localError } from '../model/index.js'
import { BLOCK_BYTES, HEADER_BYTES } from './index-layout.js'

export function writeAll(fd: number, bytes: Uint8Array, position: number): void {
  try {
    for (let done = 0; done < bytes.length; ) done += writeSync(fd, bytes, done, bytes.length - done, position + done)
  } catch (error) {
    throw localError('write the package index', error)
  }
}

/** The body of the index: appended to, cut into blocks, each with its CRC-32. */
export class BlockWriter {
  readonly #block = Buffer.alloc(BLOCK_BYTES)
  #filled = 0
  #checksums = Buffer.alloc(4096)
  #blocks = 0

  constructor(private readonly fd: number) {}

  get bytes(): number {
    return this.#blocks * BLOCK_BYTES + this.#filled
  }

  append(piece: Buffer, start = 0, end = piece.length): void {
    for (let from = start; from < end; ) {
      const length = Math.min(end - from, BLOCK_BYTES - this.#filled)
      piece.copy(this.#block, this.#filled, from, from + length)
      this.#filled += length
      from += length
      if (this.#filled === BLOCK_BYTES) this.#endBlock()
    }
  }

  #endBlock(): void {
    const block = this.#block.subarray(0, this.#filled)
    writeAll(this.fd, block, HEADER_BYTES + this.#blocks * BLOCK_BYTES)
    if (4 * this.#blocks === this.#checksums.length) {
      this.#checksums = Buffer.concat([this.#checksums], this.#checksums.length * 2)
    }
    this.#checksums.writeUInt32LE(crc32(block), 4 * this.#blocks)
    this.#blocks++
    this.#filled = 0
  }

  end(): { bytes: number; checksums: Buffer } {
    const bytes = this.bytes
    if (this.#filled > 0) this.#endBlock()
    const checksums = this.#checksums.subarray(0, 4 * this.#blocks)
    writeAll(this.fd, checksums, HEADER_BYTES + bytes)
    return { bytes, checksums }
  }
}
