/** Any row of a cached manifest, by its number, as the manifest has it. */
import { closeSync, openSync, readSync } from 'node:fs'
import { ByteBuffer } from '../json/byte-buffer.js'
import { type MemberChanges, withMembers } from '../json/json-members.js'
import { BobbinError, localError } from '../model/index.js'
import { ManifestReader, PIECE_BYTES } from './manifest-reader.js'
import { ManifestRow } from './manifest-row.js'

/** Rows are mostly read one behind the other, so that many come with one read. */
const WINDOW_BYTES = 256 * 1024
const EMPTY_OBJECT = Buffer.from('{}')

export interface RawRow {
  /** Without its newline. */
  readonly bytes: Buffer
  /** The row's canonical form, which the top hash covers; good until the next row is read. */
  readonly canonical: Uint8Array
}

export class ManifestRows {
  readonly #memory = new ArrayBuffer(4096)
  readonly #canonical = new ByteBuffer()
  readonly #digest = new Uint8Array(32)
  readonly #row = new ManifestRow()
  #window = Buffer.alloc(0)
  #windowAt = 0

  private constructor(
    private readonly fd: number,
    /** Where each row starts, and where the last one ends: 8 bytes a row. */
    private readonly starts: readonly number[],
  ) {}

  /** Reads the file once. Throws INDEX_DAMAGED when it is not the one that `sha256` (hex) was made of. */
  static async open(path: string, sha256: string, signal?: AbortSignal): Promise<ManifestRows> {
    const reader = await ManifestReader.open(path)
    const memory = new ArrayBuffer(PIECE_BYTES)
    const starts = [0]
    try {
      for await (const { bytes, offset } of reader.pieces(
        size => (size <= PIECE_BYTES ? memory : new ArrayBuffer(size)),
        signal,
      )) {
        for (let at = bytes.indexOf(0x0a); at >= 0; at = bytes.indexOf(0x0a, at + 1)) starts.push(offset + at + 1)
      }
      const found = reader.finish()
      if (found.sha256 !== sha256) throw new BobbinError('INDEX_DAMAGED', `the cached manifest ${path} is damaged`)
      if (starts.at(-1) !== found.bytes) starts.push(found.bytes + 1)
    } finally {
      await reader.close()
    }
    try {
      return new ManifestRows(openSync(path, 'r'), starts)
    } catch (error) {
      throw localError(`read ${path}`, error)
    }
  }

  /** Without its newline. */
  header(): Buffer {
    return this.#bytes(1)
  }

  /** A file's row, with other members where `changes` has some; the header is row 1. */
  read(row: number, changes?: MemberChanges): RawRow {
    const found = this.#bytes(row)
    const bytes = changes === undefined ? found : withMembers(found, changes)
    this.#canonical.begin(this.#memory)
    this.#row.scan(bytes, 0, bytes.length)
    this.#row.appendCanonical(this.#canonical, this.#digest)
    return { bytes, canonical: this.#canonical.written }
  }

  /** The `meta` of a file's row as quilt3 reads it: `{}` when it is absent, null or empty. JSON text. */
  meta(row: number): Buffer {
    const bytes = this.#bytes(row)
    this.#row.scan(bytes, 0, bytes.length)
    const span = this.#row.meta
    return span !== undefined && bytes[span.from] === 0x7b ? bytes.subarray(span.from, span.to) : EMPTY_OBJECT
  }

  #bytes(row: number): Buffer {
    const [start, end] = [this.starts[row - 1], this.starts[row]]
    if (start === undefined || end === undefined)
      throw new BobbinError('INDEX_DAMAGED', `the manifest has no row ${row}`)
    const from = start - this.#windowAt
    const length = end - 1 - start
    if (from >= 0 && from + length <= this.#window.length) return this.#window.subarray(from, from + length)
    const fileBytes = this.starts.at(-1)! - start
    // New memory each time: rows of the last window may still be in use.
    const window = Buffer.allocUnsafe(Math.min(fileBytes, Math.max(length, WINDOW_BYTES)))
    let done = 0
    while (done < window.length) {
      const read = readSync(this.fd, window, done, window.length - done, start + done)
      if (read === 0) break
      done += read
    }
    if (done < length) throw new BobbinError('INDEX_DAMAGED', 'the cached manifest was cut while it was read')
    this.#window = window.subarray(0, done)
    this.#windowAt = start
    return window.subarray(0, length)
  }

  close(): void {
    closeSync(this.fd)
  }
}
