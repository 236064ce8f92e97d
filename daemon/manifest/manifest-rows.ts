/** Any row of a cached manifest, by its number, as the manifest has it. */
import { closeSync, openSync, readSync } from 'node:fs'
import { ByteBuffer } from '../json/byte-buffer.js'
import { type MemberChanges, withMembers } from '../json/json-members.js'
import { BobbinError, localError } from '../model/index.js'
import { ManifestReader, PIECE_BYTES } from './manifest-reader.js'
import { ManifestRow } from './manifest-row.js'

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

  #bytes(row: number): Buffer {
    const [start, end] = [this.starts[row - 1], this.starts[row]]
    if (start === undefined || end === undefined)
      throw new BobbinError('INDEX_DAMAGED', `the manifest has no row ${row}`)
    const bytes = Buffer.allocUnsafe(end - 1 - start)
    for (let done = 0; done < bytes.length; ) {
      const read = readSync(this.fd, bytes, done, bytes.length - done, start + done)
      if (read === 0) throw new BobbinError('INDEX_DAMAGED', 'the cached manifest was cut while it was read')
      done += read
    }
    return bytes
  }

  close(): void {
    closeSync(this.fd)
  }
}
