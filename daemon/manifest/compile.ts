/**
 * Compiles a manifest into a package index, and finds out on the way whether it is what its name says.
 *
 * One pass over the file: pieces of it are scanned (scan-rows.ts, in workers), and taken in order here:
 * the rows' canonical text goes into the top hash, their nodes into the index. That needs the rows in
 * tree order, as quilt3 and quilt-rs write them. A manifest in another order is legal (the order is not
 * hashed): its keys are sorted on disk first, and its rows are read again in that order. Memory is
 * bounded both ways, whatever the number of rows.
 *
 * Nothing of the manifest is trusted before the top hash has come out right.
 */
import { randomBytes } from 'node:crypto'
import { rmSync } from 'node:fs'
import { stat } from 'node:fs/promises'
import type { DirectoryMeta, IndexWriter } from '../index/index-writer.js'
import { KeySorter, type SortedRow } from '../index/key-sorter.js'
import { compareTreeOrder, keyBytes, type Registry, throwIfAborted } from '../model/index.js'
import { Compilation, type CompilationOptions, type Compiled, OutOfOrder, refuseRow } from './compilation.js'
import { type ManifestPiece, ManifestReader, PIECE_BYTES } from './manifest-reader.js'
import { ManifestRow } from './manifest-row.js'
import { startScanPool } from './scan-pool.js'
import { directoryKey, RowScanner, rowMessage, type ScannedPiece } from './scan-rows.js'

export interface CompileOptions extends CompilationOptions {
  readonly manifestPath: string
  /** The manifest as it arrives; it is written to `manifestPath`, which must not exist, on the way. Without it, the file is there. */
  readonly arriving?: AsyncIterable<Uint8Array> | undefined
  /** The manifest's size where it is known. */
  readonly manifestBytes?: number | undefined
  readonly onBytes?: ((bytes: number) => void) | undefined
  /** Waited for before the files that are written, all of them, take more than so many bytes. */
  readonly beforeBytes?: ((bytes: number) => Promise<void>) | undefined
  readonly signal?: AbortSignal | undefined
  /** Bytes of directory metadata's keys that are kept in memory; only tests set it. */
  readonly directoryBytesMax?: number
}

/**
 * Room is asked for so far ahead of what is written: an honest piece of a manifest makes less of index, scratch file and
 * manifest. One that is made to be large makes up to 5 MiB, and is over its room until the next piece.
 */
const ROOM_AHEAD_BYTES = 1024 * 1024
/** The same for a manifest whose end is near: per byte of what is left. */
const ROOM_PER_BYTE = 4
/** Directories that are still open have their nodes last. */
const ROOM_BYTES_MIN = 128 * 1024
/** So much more is asked for each time, so that a large package asks some twenty times. */
const ROOM_MORE_PART = 1 / 8

const DIRECTORY_BYTES_MAX = 32 * 1024 * 1024
/** Sorted rows are gathered to pieces of about this many bytes. */
const GATHERED_BYTES = 256 * 1024

/** Throws PACKAGE_REFUSED, MANIFEST_CORRUPT, STORE_FULL, LOCAL_IO, INTERRUPTED; leaves no file behind then. */
export async function compileManifest(options: CompileOptions): Promise<Compiled> {
  const scratch = `${options.indexPath}.${randomBytes(4).toString('hex')}`
  try {
    try {
      return await compileInOrder(options, `${scratch}.spill`)
    } catch (error) {
      if (!(error instanceof OutOfOrder)) throw error
      rmSync(options.indexPath, { force: true })
      rmSync(`${scratch}.spill`, { force: true })
      return await compileSorted(options, scratch)
    }
  } catch (error) {
    rmSync(options.indexPath, { force: true })
    throw error
  } finally {
    for (const suffix of ['spill', 'files', 'directories']) rmSync(`${scratch}.${suffix}`, { force: true })
  }
}

/** Asks for room before it is taken. */
class RoomAhead {
  #asked = 0

  constructor(
    private readonly options: CompileOptions,
    private readonly manifestBytes: number,
  ) {}

  /** `bytes`: what is written, when `read` bytes of the manifest are. */
  async need(bytes: number, read: number): Promise<void> {
    const { beforeBytes } = this.options
    if (beforeBytes === undefined) return
    const left = Math.max(0, this.manifestBytes - read)
    const ahead = Math.min(ROOM_AHEAD_BYTES, left * ROOM_PER_BYTE + ROOM_BYTES_MIN)
    if (bytes + ahead <= this.#asked) return
    this.#asked = Math.ceil(bytes * (left > 0 ? 1 + ROOM_MORE_PART : 1) + ahead)
    await beforeBytes(this.#asked)
  }
}

async function compileInOrder(options: CompileOptions, spillPath: string): Promise<Compiled> {
  const { manifestPath, arriving, signal } = options
  const manifestBytes = options.manifestBytes ?? (arriving ? Number.POSITIVE_INFINITY : (await stat(manifestPath)).size)
  const reader = arriving
    ? await ManifestReader.receive(manifestPath, arriving)
    : await ManifestReader.open(manifestPath)
  const compilation = new Compilation(options, spillPath)
  const room = new RoomAhead(options, manifestBytes)
  const pool = await startScanPool(options.registry.kind, manifestBytes)
  try {
    const directories = new DirectoryRows(options.directoryBytesMax ?? DIRECTORY_BYTES_MAX)
    const underWay: { piece: ManifestPiece; scanning: Promise<ScannedPiece> }[] = []
    const takeNext = async () => {
      const { piece, scanning } = underWay.shift()!
      const scanned = await scanning
      const first = compilation.rows + 1
      directories.take(scanned)
      if (scanned.files > 0) directories.handOver(compilation.writer)
      compilation.take(scanned, line => first + line)
      compilation.rows += scanned.lines
      options.onBytes?.(piece.offset + piece.bytes.length)
      pool.release(piece)
    }
    await room.need(0, 0)
    const pieces = reader.pieces(pool.memoryFor, signal)
    for await (const piece of withoutHeader(pieces, compilation)) {
      const read = piece.offset + piece.bytes.length
      await room.need(compilation.diskBytes + (arriving ? read : 0), read)
      const scanning = pool.scan(piece)
      // Looked at in its turn; until then a failure is not an unhandled one.
      scanning.catch(() => {})
      underWay.push({ piece, scanning })
      // The reader fills one more.
      while (underWay.length >= pool.width) await takeNext()
    }
    while (underWay.length > 0) await takeNext()
    const file = reader.finish()
    await room.need(compilation.diskBytes + (arriving ? file.bytes : 0), file.bytes)
    return compilation.finish(file)
  } catch (error) {
    if (error instanceof OutOfOrder && arriving)
      await reader.drain(bytes => room.need(compilation.diskBytes + bytes, bytes), signal)
    throw error
  } finally {
    await pool.close()
    await reader.close()
    compilation.close()
  }
}

/** The manifest's pieces, the header taken off the first one and given to the compilation. */
async function* withoutHeader(
  pieces: AsyncIterable<ManifestPiece>,
  compilation: Compilation,
): AsyncGenerator<ManifestPiece> {
  let hasHeader = false
  for await (const piece of pieces) {
    if (hasHeader) {
      yield piece
      continue
    }
    hasHeader = true
    const newline = piece.bytes.indexOf(0x0a)
    const headerEnd = newline < 0 ? piece.bytes.length : newline
    compilation.header(piece.bytes.subarray(0, headerEnd))
    const rest = piece.bytes.subarray(headerEnd + 1)
    if (rest.length > 0) yield { bytes: rest, offset: piece.offset + headerEnd + 1 }
  }
}

/** Directory metadata, which quilt3 writes before all files; kept in memory until the first file. */
class DirectoryRows {
  readonly #metas: DirectoryMeta[] = []
  #bytes = 0
  #isHandedOver = false

  constructor(private readonly bytesMax: number) {}

  take(piece: ScannedPiece): void {
    if (piece.directories.length === 0) return
    this.#bytes += piece.directories.reduce((sum, { key }) => sum + key.length + 100, 0)
    if (this.#isHandedOver || piece.isDirectoryAfterFile || this.#bytes > this.bytesMax) throw new OutOfOrder()
    for (const { key, meta } of piece.directories) this.#metas.push({ key: Buffer.from(key), meta })
  }

  handOver(writer: IndexWriter): void {
    if (this.#isHandedOver) return
    this.#isHandedOver = true
    writer.setDirectoryMetas(this.#metas.sort((a, b) => compareTreeOrder(a.key, b.key)).values())
  }
}

async function compileSorted(options: CompileOptions, scratch: string): Promise<Compiled> {
  const { signal } = options
  const reader = await ManifestReader.open(options.manifestPath)
  const compilation = new Compilation(options, `${scratch}.spill`)
  const manifestBytes = (await stat(options.manifestPath)).size
  const room = new RoomAhead(options, manifestBytes)
  const ownBytes = options.arriving ? manifestBytes : 0
  const files = new KeySorter(`${scratch}.files`)
  const directories = new KeySorter(`${scratch}.directories`)
  try {
    await room.need(ownBytes, 0)
    // The second look at the rows takes about as long as the first, so each counts for half.
    const memory = new ArrayBuffer(PIECE_BYTES)
    const pieces = reader.pieces(bytes => (bytes <= PIECE_BYTES ? memory : new ArrayBuffer(bytes)), signal)
    for await (const piece of withoutHeader(pieces, compilation)) {
      sortPiece(piece, compilation, files, directories)
      options.onBytes?.((piece.offset + piece.bytes.length) / 2)
      await room.need(ownBytes + files.bytes + directories.bytes, piece.offset + piece.bytes.length)
    }
    const file = reader.finish()
    compilation.writer.setDirectoryMetas(sortedDirectories(reader, directories, options.registry.kind))
    const scanner = new RowScanner(options.registry.kind)
    let done = 0
    for (const { bytes, rows } of gather(reader, files.sorted())) {
      throwIfAborted(signal)
      compilation.take(
        scanner.scan(bytes, (line, from) => rows[line]!.offset + from),
        line => rows[line]!.row,
      )
      done += bytes.length
      options.onBytes?.((file.bytes + done) / 2)
      await room.need(ownBytes + files.bytes + directories.bytes + compilation.diskBytes, done)
      await new Promise(resolve => setImmediate(resolve))
    }
    await room.need(ownBytes + files.bytes + directories.bytes + compilation.diskBytes, file.bytes)
    return compilation.finish(file)
  } finally {
    await reader.close()
    files.close()
    directories.close()
    compilation.close()
  }
}

function sortPiece(
  { bytes, offset }: ManifestPiece,
  compilation: Compilation,
  files: KeySorter,
  directories: KeySorter,
): void {
  const row = new ManifestRow()
  for (let from = 0; from < bytes.length; ) {
    const newline = bytes.indexOf(0x0a, from)
    const to = newline < 0 ? bytes.length : newline
    const number = ++compilation.rows
    try {
      row.scan(bytes, from, to)
      const key = keyBytes(row.isDirectory ? directoryKey(row) : row.key)
      ;(row.isDirectory ? directories : files).add(key, key.length, number, offset + from, to - from)
    } catch (error) {
      refuseRow(number, rowMessage(error, from))
    }
    from = to + 1
  }
}

function* sortedDirectories(
  reader: ManifestReader,
  sorter: KeySorter,
  registryKind: Registry['kind'],
): Generator<DirectoryMeta> {
  const scanner = new RowScanner(registryKind)
  for (const { bytes, rows } of gather(reader, sorter.sorted())) {
    const { directories } = scanner.scan(bytes, (line, from) => rows[line]!.offset + from)
    for (const { key, meta } of directories) yield { key: Buffer.from(key), meta }
  }
}

/** Reads rows, wherever they lie, into pieces as a manifest in tree order would have them. */
function* gather(reader: ManifestReader, sorted: Iterable<SortedRow>): Generator<{ bytes: Buffer; rows: Origin[] }> {
  let pieces: Buffer[] = []
  let rows: Origin[] = []
  let filled = 0
  for (const { offset, bytes, row } of sorted) {
    rows.push({ row, offset: offset - filled })
    pieces.push(reader.read(offset, bytes), NEWLINE)
    filled += bytes + 1
    if (filled < GATHERED_BYTES) continue
    yield { bytes: Buffer.concat(pieces), rows }
    pieces = []
    rows = []
    filled = 0
  }
  if (filled > 0) yield { bytes: Buffer.concat(pieces), rows }
}

const NEWLINE = Buffer.from('\n')

interface Origin {
  readonly row: number
  /** What an offset in the manifest has over one in the gathered piece. */
  readonly offset: number
}
