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
const PIECE_BYTES = 256 * 1024
/** quilt3 writes at most 1,000,000 bytes by default; a setting of its user may raise that. */
const ROW_BYTES_MAX = 64 * 1024 * 1024

export interface ManifestPiece {
  /** Whole rows, each with its newline but perhaps the last of the file; in an ArrayBuffer of its own. */
  readonly bytes: Buffer
  /** Of bytes[0] in the file. */
  readonly offset: number
}

export class ManifestReader {
  readonly #sha256 = createHash('sha256')
  #filled = 0
  #rest = Buffer.alloc(0)

  private constructor(
    private readonly file: FileHandle,
    private readonly path: string,
  ) {}

  static async open(path: string): Promise<ManifestReader> {
    return new ManifestReader(await open(path).catch(error => Promise.reject(localError(`read ${path}`, error))), path)
  }

  /** The file from its start, once. Throws PACKAGE_REFUSED for an empty file or an endless row. */
  async *pieces(signal?: AbortSignal): AsyncGenerator<ManifestPiece> {
    for (;;) {
      throwIfAborted(signal)
      const buffer = Buffer.from(new ArrayBuffer(this.#rest.length + PIECE_BYTES))
      this.#rest.copy(buffer)
      const { bytesRead } = await this.file
        .read(buffer, this.#rest.length, PIECE_BYTES, this.#filled)
        .catch(error => Promise.reject(localError(`read ${this.path}`, error)))
      const end = this.#rest.length + bytesRead
      const offset = this.#filled - this.#rest.length
      this.#sha256.update(buffer.subarray(this.#rest.length, end))
      this.#filled += bytesRead
      if (bytesRead === 0) {
        if (this.#filled === 0) throw new BobbinError('PACKAGE_REFUSED', 'the manifest is empty')
        if (end > 0) yield { bytes: buffer.subarray(0, end), offset }
        return
      }
      const rowsEnd = buffer.lastIndexOf(0x0a, end - 1) + 1
      // Copied, since the piece may be handed to a worker for good.
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
