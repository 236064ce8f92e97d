/**
 * Reads a manifest file row by row with bounded memory, hashing its bytes on the way.
 *
 * Rows end with the byte 0x0A and nothing else: U+2028 and its like appear raw inside strings.
 */
import { isUtf8 } from 'node:buffer'
import { createHash } from 'node:crypto'
import { open } from 'node:fs/promises'
import { BobbinError, localError, throwIfAborted } from '../model/index.js'
import { JsonSyntaxError } from './json-bytes.js'
import { RowError } from './manifest-row.js'

/** Read at once: large enough that the reads cost nothing beside the parsing. */
const PIECE_BYTES = 1024 * 1024
/** quilt3 writes at most 1,000,000 bytes by default; a setting of its user may raise that. */
const ROW_BYTES_MAX = 64 * 1024 * 1024

/** Called for each row, the header first. `bytes` is good only during the call. */
export type RowVisitor = (bytes: Buffer, from: number, to: number, row: number, fileOffset: number) => void

export interface ReadOptions {
  readonly onBytes?: ((bytes: number) => void) | undefined
  readonly signal?: AbortSignal | undefined
}

/** Returns the SHA-256 (hex) and the number of the file's bytes. Throws PACKAGE_REFUSED with the row's number. */
export async function readManifestRows(
  path: string,
  visit: RowVisitor,
  options: ReadOptions = {},
): Promise<{ sha256: string; bytes: number; rows: number }> {
  const file = await open(path).catch(error => Promise.reject(localError(`read ${path}`, error)))
  const sha256 = createHash('sha256')
  let buffer = Buffer.allocUnsafeSlow(PIECE_BYTES * 2)
  let filled = 0
  /** Offset in the file of buffer[0]. */
  let base = 0
  let row = 0
  try {
    for (;;) {
      throwIfAborted(options.signal)
      if (filled === buffer.length) {
        if (buffer.length >= ROW_BYTES_MAX) refuseRow(row + 1, `the row is over ${ROW_BYTES_MAX} bytes`)
        const larger = Buffer.allocUnsafeSlow(buffer.length * 2)
        buffer.copy(larger, 0, 0, filled)
        buffer = larger
      }
      const length = Math.min(PIECE_BYTES, buffer.length - filled)
      const { bytesRead } = await file.read(buffer, filled, length, base + filled)
      sha256.update(buffer.subarray(filled, filled + bytesRead))
      filled += bytesRead
      const isEnd = bytesRead === 0
      const rowsEnd = isEnd ? filled : buffer.lastIndexOf(0x0a, filled - 1) + 1
      const isSoundUtf8 = isUtf8(buffer.subarray(0, rowsEnd))
      let from = 0
      while (from < rowsEnd) {
        const newline = buffer.indexOf(0x0a, from)
        const to = newline < 0 || newline >= rowsEnd ? rowsEnd : newline
        row++
        if (!isSoundUtf8 && !isUtf8(buffer.subarray(from, to))) refuseRow(row, 'the row is not valid UTF-8')
        visitRow(visit, buffer, from, to, row, base + from)
        from = to + 1
      }
      options.onBytes?.(base + rowsEnd)
      if (isEnd) break
      buffer.copy(buffer, 0, rowsEnd, filled)
      base += rowsEnd
      filled -= rowsEnd
    }
  } finally {
    await file.close()
  }
  if (row === 0) throw new BobbinError('PACKAGE_REFUSED', 'the manifest is empty')
  return { sha256: sha256.digest('hex'), bytes: base + filled, rows: row }
}

/** Runs the visitor and gives what it throws the row's number. */
export function visitRow(
  visit: RowVisitor,
  bytes: Buffer,
  from: number,
  to: number,
  row: number,
  offset: number,
): void {
  try {
    visit(bytes, from, to, row, offset)
  } catch (error) {
    if (error instanceof JsonSyntaxError) {
      if (row === 1 && bytes[from] === 0xef) refuseRow(row, 'the manifest starts with a byte order mark')
      refuseRow(row, `not valid JSON: ${error.message} at byte ${error.at - from + 1} of the row`)
    }
    if (error instanceof RowError) refuseRow(row, error.message)
    throw error
  }
}

/** The header is row 1, as in an editor. */
export function refuseRow(row: number, reason: string, key?: string): never {
  const named = key === undefined ? '' : `, key ${JSON.stringify(key.length > 200 ? `${key.slice(0, 200)}…` : key)}`
  throw new BobbinError('PACKAGE_REFUSED', `row ${row} of the manifest${named}: ${reason}`)
}
