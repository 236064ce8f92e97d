/** Streams of bytes that keep their ends in memory and the rest in one scratch file. */
import { closeSync, openSync, readSync } from 'node:fs'
import { BobbinError } from '../model/index.js'
import { writeAll } from './block-writer.js'

export class ScratchFile {
  readonly fd: number
  #end = 0
  /** What all streams of this file keep in memory. */
  memoryBytes = 0
  constructor(path: string) {
    this.fd = openSync(path, 'wx+', 0o600)
  }
  /** Returns where the piece went. */
  append(piece: Uint8Array): number {
    const at = this.#end
    writeAll(this.fd, piece, at)
    this.#end += piece.length
    return at
  }
  /** What was written to it. */
  get bytes(): number {
    return this.#end
  }
  close(): void {
    closeSync(this.fd)
  }
}

const SPILL_BYTES_MIN = 96 * 32
/** What one depth keeps in memory of its nodes, and of its names; a whole number of nodes. */
const SPILL_BYTES_MAX = 96 * 4096
/** What all streams of a file may keep together; beyond it they spill in small pieces. A tree of usual depth takes 10 MiB. */
const MEMORY_BYTES_MAX = 32 * 1024 * 1024

/** A growing stream of bytes that keeps its end in memory and the rest in the scratch file. */
export class SpillStream {
  #buffer = Buffer.from(new ArrayBuffer(SPILL_BYTES_MIN))
  words = new Uint32Array(this.#buffer.buffer)
  #filled = 0
  readonly #spilled: { at: number; length: number }[] = []
  #spilledBytes = 0

  constructor(private readonly scratch: ScratchFile) {
    scratch.memoryBytes += SPILL_BYTES_MIN
  }

  get bytes(): number {
    return this.#spilledBytes + this.#filled
  }

  /** Room for `length` bytes; returns their offset in `words.buffer`, good until the next call. */
  reserve(length: number): number {
    if (this.#filled + length > this.#buffer.length) this.#makeRoom()
    const at = this.#filled
    this.#filled += length
    return at
  }

  append(source: Buffer, from: number, to: number): void {
    const at = this.reserve(to - from)
    const buffer = this.#buffer
    for (let i = from; i < to; i++) buffer[at + i - from] = source[i]!
  }

  dropLast(length: number): void {
    this.#filled -= length
  }

  #makeRoom(): void {
    const bytes = Math.min(this.#buffer.length * 4, SPILL_BYTES_MAX)
    const more = bytes - this.#buffer.length
    if (more > 0 && this.scratch.memoryBytes + more <= MEMORY_BYTES_MAX) {
      this.scratch.memoryBytes += more
      const larger = Buffer.from(new ArrayBuffer(bytes))
      this.#buffer.copy(larger, 0, 0, this.#filled)
      this.#buffer = larger
      this.words = new Uint32Array(larger.buffer)
      return
    }
    this.#spilled.push({ at: this.scratch.append(this.#buffer.subarray(0, this.#filled)), length: this.#filled })
    this.#spilledBytes += this.#filled
    this.#filled = 0
  }

  /** Gives every byte in order, in pieces that the callback may change. */
  drain(take: (piece: Buffer) => void): void {
    const piece = Buffer.from(new ArrayBuffer(SPILL_BYTES_MAX))
    for (const { at, length } of this.#spilled) {
      for (let done = 0; done < length; ) {
        const read = readSync(this.scratch.fd, piece, done, length - done, at + done)
        if (read === 0) throw new BobbinError('LOCAL_IO', 'the scratch file of the package index was cut short')
        done += read
      }
      take(piece.subarray(0, length))
    }
    take(this.#buffer.subarray(0, this.#filled))
  }
}
