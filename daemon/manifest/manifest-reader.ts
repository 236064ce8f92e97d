/**
 * Reads a manifest file in pieces of whole rows with bounded memory, hashing its bytes on the way.
 *
 * Rows end with the byte 0x0A and nothing else: U+2028 and its like appear raw inside strings.
 */
import { createHash } from 'node:crypto'
import { readSync } from 'node:fs'
import { type FileHandle, open } from 'node:fs/promises'
import { BobbinError, localError, throwIfAborted } from '../model/index.js'

/** Large enough that a piece's journey to a worker costs nothing beside its parsing. */
export const PIECE_BYTES = 256 * 1024
/**
 * quilt3 writes at most 1,000,000 bytes by default; a setting of its user may raise that. Each piece that is under way
 * may be as long, and takes four times its bytes to scan.
 */
const ROW_BYTES_MAX = 8 * 1024 * 1024

export interface ManifestPiece {
  /** Whole rows, each with its newline but perhaps the last of the file; in the memory that was asked for. */
  readonly bytes: Buffer
  /** Of bytes[0] in the file. */
  readonly offset: number
}

export class ManifestReader {
  readonly #sha256 = createHash('sha256')
  #filled = 0
  #rest = Buffer.alloc(0)

  /** `more` puts the file's next bytes at `into[at…]` and says how many; 0 at the end. */
  private constructor(
    private readonly file: FileHandle,
    private readonly path: string,
    private readonly more: (into: Buffer, at: number, position: number) => Promise<number>,
  ) {}

  /** Reads a file that is there. */
  static async open(path: string): Promise<ManifestReader> {
    const file = await open(path).catch(error => Promise.reject(localError(`read ${path}`, error)))
    return new ManifestReader(file, path, async (into, at, position) => {
      try {
        return (await file.read(into, at, into.length - at, position)).bytesRead
      } catch (error) {
        throw localError(`read ${path}`, error)
      }
    })
  }

  /** Reads a manifest as it arrives, and writes it to a new file on the way. */
  static async receive(path: string, arriving: AsyncIterable<Uint8Array>): Promise<ManifestReader> {
    const file = await open(path, 'wx+', 0o640).catch(error => Promise.reject(localError(`write ${path}`, error)))
    const chunks = arriving[Symbol.asyncIterator]()
    let chunk: Uint8Array = new Uint8Array(0)
    return new ManifestReader(file, path, async (into, at, position) => {
      let end = at
      while (end < into.length) {
        if (chunk.length === 0) {
          const next = await chunks.next()
          if (next.done) break
          chunk = next.value
        }
        const length = Math.min(chunk.length, into.length - end)
        into.set(chunk.subarray(0, length), end)
        chunk = chunk.subarray(length)
        end += length
      }
      await file.write(into, at, end - at, position).catch(error => Promise.reject(localError(`write ${path}`, error)))
      return end - at
    })
  }

  /**
   * The file from its start, once, each piece in memory from `memoryFor`, which is asked for at least
   * so many bytes. Throws PACKAGE_REFUSED for an empty file or an endless row.
   */
  async *pieces(memoryFor: (bytes: number) => ArrayBufferLike, signal?: AbortSignal): AsyncGenerator<ManifestPiece> {
    for (;;) {
      throwIfAborted(signal)
      const room = this.#rest.length < PIECE_BYTES / 2 ? PIECE_BYTES : this.#rest.length + PIECE_BYTES
      const buffer = Buffer.from(memoryFor(room)).subarray(0, room)
      this.#rest.copy(buffer)
      const offset = this.#filled - this.#rest.length
      const length = await this.#take(buffer, this.#rest.length)
      const end = this.#rest.length + length
      if (length === 0) {
        if (this.#filled === 0) throw new BobbinError('PACKAGE_REFUSED', 'the manifest is empty')
        if (end > 0) yield { bytes: buffer.subarray(0, end), offset }
        return
      }
      const rowsEnd = buffer.lastIndexOf(0x0a, end - 1) + 1
      // Copied, since the memory will be used again.
      this.#rest = Buffer.from(buffer.subarray(rowsEnd, end))
      if (this.#rest.length > ROW_BYTES_MAX) {
        throw new BobbinError(
          'PACKAGE_REFUSED',
          `the manifest has a row of over ${ROW_BYTES_MAX} bytes, behind byte ${offset}`,
        )
      }
      if (rowsEnd > 0) yield { bytes: buffer.subarray(0, rowsEnd), offset }
    }
  }

  async #take(into: Buffer, at: number): Promise<number> {
    const length = await this.more(into, at, this.#filled)
    this.#sha256.update(into.subarray(at, at + length))
    this.#filled += length
    return length
  }

  /** Lets the rest pass, so that the file is whole. `before` is told how long the file may be after the next piece. */
  async drain(before: (bytes: number) => Promise<void>, signal?: AbortSignal): Promise<void> {
    const buffer = Buffer.allocUnsafe(PIECE_BYTES)
    do {
      throwIfAborted(signal)
      await before(this.#filled + PIECE_BYTES)
    } while ((await this.#take(buffer, 0)) > 0)
  }

  /** After the last piece: the SHA-256 (hex) and the number of the file's bytes. */
  finish(): { sha256: string; bytes: number } {
    return { sha256: this.#sha256.digest('hex'), bytes: this.#filled }
  }

  /** Any stretch of the file. */
  read(offset: number, bytes: number): Buffer {
    const buffer = Buffer.allocUnsafe(bytes)
    if (readSync(this.file.fd, buffer, 0, bytes, offset) !== bytes)
      throw new BobbinError('LOCAL_IO', `${this.path} was cut short while it was read`)
    return buffer
  }

  async close(): Promise<void> {
    await this.file.close()
  }
}
