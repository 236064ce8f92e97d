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
import { isUtf8 } from 'node:buffer'
import { createHash, randomBytes } from 'node:crypto'
import { rmSync } from 'node:fs'
import { stat } from 'node:fs/promises'
import {
  BobbinError,
  compareTreeOrder,
  localError,
  type Registry,
  type TopHash,
  throwIfAborted,
} from '../model/index.js'
import { canonicalJson } from './canonical-json.js'
import { HEADER_SPANS, type HeaderSpanName, NODE_WORDS } from './index-layout.js'
import { type CheckedSpan, type DirectoryMeta, IndexWriter, type Quarantined } from './index-writer.js'
import { findMember } from './json-bytes.js'
import { KeySorter, type SortedRow } from './key-sorter.js'
import { type ManifestPiece, ManifestReader, PIECE_BYTES } from './manifest-reader.js'
import { ManifestRow, RowError } from './manifest-row.js'
import { startScanPool } from './scan-pool.js'
import {
  checkedSpan,
  directoryKey,
  ORDER_ASCENDING,
  ORDER_DESCENDING,
  ORDER_EQUAL,
  ORDER_FIRST,
  PLACE,
  PLACE_WORDS,
  RowScanner,
  rowMessage,
  type ScannedPiece,
} from './scan-rows.js'

export interface CompileOptions {
  readonly manifestPath: string
  /** The manifest as it arrives; it is written to `manifestPath`, which must not exist, on the way. Without it, the file is there. */
  readonly arriving?: AsyncIterable<Uint8Array> | undefined
  /** The manifest's size where it is known. */
  readonly manifestBytes?: number | undefined
  /** Where the index is written; must not exist. Scratch files lie beside it and are removed. */
  readonly indexPath: string
  /** What the manifest must hash to. */
  readonly topHash: TopHash
  readonly registry: Registry
  /** Leave hostile rows out and list them, instead of refusing the package. */
  readonly quarantine?: boolean
  readonly onBytes?: ((bytes: number) => void) | undefined
  readonly signal?: AbortSignal | undefined
  /** Bytes of directory metadata's keys that are kept in memory; only tests set it. */
  readonly directoryBytesMax?: number
}

export interface Compiled {
  readonly manifestSha256: string
  readonly quarantined: readonly Quarantined[]
}

const DIRECTORY_BYTES_MAX = 32 * 1024 * 1024
/** More than anybody reads; a manifest of nothing but hostile rows must not fill the memory. */
const QUARANTINED_MAX = 10_000
/** Sorted rows are gathered to pieces of about this many bytes. */
const GATHERED_BYTES = 256 * 1024

/** Thrown inside when the rows are not in tree order; never leaves this file. */
class OutOfOrder extends Error {}

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

async function compileInOrder(options: CompileOptions, spillPath: string): Promise<Compiled> {
  const { manifestPath, arriving, signal } = options
  const manifestBytes = options.manifestBytes ?? (arriving ? Number.POSITIVE_INFINITY : (await stat(manifestPath)).size)
  const reader = arriving
    ? await ManifestReader.receive(manifestPath, arriving)
    : await ManifestReader.open(manifestPath)
  const compilation = new Compilation(options, spillPath)
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
    const pieces = reader.pieces(pool.memoryFor, signal)
    for await (const piece of withoutHeader(pieces, compilation)) {
      const scanning = pool.scan(piece)
      // Looked at in its turn; until then a failure is not an unhandled one.
      scanning.catch(() => {})
      underWay.push({ piece, scanning })
      // The reader fills one more.
      while (underWay.length >= pool.width) await takeNext()
    }
    while (underWay.length > 0) await takeNext()
    return compilation.finish(reader.finish())
  } catch (error) {
    if (error instanceof OutOfOrder && arriving) await reader.drain(signal)
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
  const files = new KeySorter(`${scratch}.files`)
  const directories = new KeySorter(`${scratch}.directories`)
  try {
    // The second look at the rows takes about as long as the first, so each counts for half.
    const memory = new ArrayBuffer(PIECE_BYTES)
    const pieces = reader.pieces(bytes => (bytes <= PIECE_BYTES ? memory : new ArrayBuffer(bytes)), signal)
    for await (const piece of withoutHeader(pieces, compilation)) {
      sortPiece(piece, compilation, files, directories)
      options.onBytes?.((piece.offset + piece.bytes.length) / 2)
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
      await new Promise(resolve => setImmediate(resolve))
    }
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
      const key = Buffer.from(row.isDirectory ? directoryKey(row) : row.key)
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

/** What both ways share: pieces arrive in tree order. */
class Compilation {
  readonly writer: IndexWriter
  /** Rows seen so far; the header is row 1, as in an editor. */
  rows = 1
  readonly #topHash = createHash('sha256')
  #spans: Partial<Record<HeaderSpanName, CheckedSpan>> = {}
  readonly #quarantined: Quarantined[] = []
  /** The key before this one in tree order, sound or not. */
  #last: KeyPlace | undefined
  #lastRow = 0
  /** The last key is a file of the index. */
  #isLastAdded = false
  /** A file whose key is a prefix of what follows: it is no file any more, and everything below it is left out. */
  #blocked: Buffer | undefined

  constructor(
    private readonly options: CompileOptions,
    spillPath: string,
  ) {
    try {
      this.writer = new IndexWriter(options.indexPath, spillPath)
    } catch (error) {
      throw localError(`write ${options.indexPath}`, error)
    }
  }

  header(bytes: Buffer): void {
    try {
      if (bytes[0] === 0xef) throw new RowError('the manifest starts with a byte order mark', true)
      if (!isUtf8(bytes)) throw new RowError('the row is not valid UTF-8', true)
      if (bytes.length === 0) throw new RowError('the row is empty', true)
      const canonical = canonicalJson(bytes, 0, bytes.length, { without: 'top_hash' })
      if (!canonical.startsWith('{')) throw new RowError('the header is not a JSON object', true)
      this.#topHash.update(canonical)
    } catch (error) {
      refuseRow(1, rowMessage(error, 0))
    }
    for (const name of HEADER_SPANS) {
      const span = findMember(bytes, 0, bytes.length, name === 'userMeta' ? 'user_meta' : name)
      const checked = span && bytes[span.from] !== 0x6e ? checkedSpan(span, bytes, 0) : undefined
      if (checked) this.#spans = { ...this.#spans, [name]: checked }
    }
  }

  /** The next piece. Throws OutOfOrder when its files do not follow those before it, in tree order. */
  take(piece: ScannedPiece, rowOf: (line: number) => number): void {
    this.#topHash.update(piece.canonical)
    const text = Buffer.from(piece.text.buffer, piece.text.byteOffset, piece.text.length)
    const { places } = piece
    for (let file = 0; file < piece.files; file++) {
      const place = file * PLACE_WORDS
      const from = places[place + PLACE.key]!
      const key: KeyPlace = { text, from, to: from + places[place + PLACE.keyBytes]! }
      const order = places[place + PLACE.order] === ORDER_FIRST ? orderOf(key, this.#last) : places[place + PLACE.order]
      if (order === ORDER_DESCENDING) throw new OutOfOrder()
      const row = rowOf(places[place + PLACE.line]!)
      this.#isLastAdded = this.#takeFile(piece, file, key, order === ORDER_EQUAL, row)
      this.#last = key
      this.#lastRow = row
    }
    // The piece's memory is used again.
    if (this.#last?.text === text) this.#last = ownPlace(this.#last)
    if (piece.malformed) refuseRow(rowOf(piece.malformed.line), piece.malformed.message)
  }

  /** Returns whether the file went into the index. */
  #takeFile(piece: ScannedPiece, file: number, key: KeyPlace, isDuplicate: boolean, row: number): boolean {
    const problem = piece.problems.size === 0 ? undefined : piece.problems.get(file)
    if (problem !== undefined && !isDuplicate) {
      this.#refuse(row, key, problem)
      return false
    }
    if (isDuplicate) {
      this.#refuse(row, key, `the key stands in row ${this.#lastRow} already`)
      this.#takeBack(`the key stands in row ${row} again`)
      return false
    }
    if (this.#isBelowFile(key, row)) return false
    this.writer.addFile({
      words: piece.nodes,
      at: file * NODE_WORDS,
      text: key.text,
      keyFrom: key.from,
      keyTo: key.to,
      row,
    })
    return true
  }

  /** `a` as a file and `a/b` cannot both be: neither `a` nor anything below it is mounted. */
  #isBelowFile(key: KeyPlace, row: number): boolean {
    if (this.#blocked !== undefined && !isBelow(key, this.#blocked)) this.#blocked = undefined
    if (this.#blocked !== undefined) {
      this.#refuse(row, key, 'it lies below a file')
      return true
    }
    if (!this.#isLastAdded || this.#last === undefined) return false
    const { text, from, to } = this.#last
    // Tree order puts what lies below a file right behind it.
    if (key.to - key.from <= to - from || key.text[key.from + to - from] !== 0x2f) return false
    const file = text.subarray(from, to)
    if (!isBelow(key, file)) return false
    this.#refuse(row, key, `row ${this.#lastRow} has ${JSON.stringify(file.toString())} as a file`)
    this.#takeBack(`row ${row} has it as a directory`)
    this.#blocked = Buffer.from(file)
    return true
  }

  #takeBack(reason: string): void {
    if (!this.#isLastAdded || this.#last === undefined) return
    this.writer.removeLastFile()
    this.#refuse(this.#lastRow, this.#last, reason)
  }

  #refuse(row: number, { text, from, to }: KeyPlace, reason: string): void {
    const key = text.toString('utf8', from, to)
    if (!this.options.quarantine) refuseRow(row, `${reason} (--quarantine leaves such rows out)`, key)
    this.#quarantined.push({ row, key, reason })
    if (this.#quarantined.length > QUARANTINED_MAX)
      refuseRow(row, `over ${QUARANTINED_MAX} rows would have to be left out`)
  }

  finish(file: { sha256: string; bytes: number }): Compiled {
    const found = this.#topHash.digest('hex')
    const { topHash } = this.options
    if (found !== topHash) {
      throw new BobbinError(
        'MANIFEST_CORRUPT',
        `the manifest of ${topHash} hashes to ${found}: it was changed or cut, and nothing of it is used`,
      )
    }
    const quarantined = this.#quarantined.sort((a, b) => a.row - b.row)
    this.writer.finish({
      topHash,
      manifestSha256: file.sha256,
      manifestBytes: file.bytes,
      spans: this.#spans,
      quarantined,
    })
    return { manifestSha256: file.sha256, quarantined }
  }

  close(): void {
    this.writer.close()
  }
}

/** A key at [from, to) of a piece's text. */
interface KeyPlace {
  readonly text: Buffer
  readonly from: number
  readonly to: number
}

function ownPlace({ text, from, to }: KeyPlace): KeyPlace {
  return { text: Buffer.from(text.subarray(from, to)), from: 0, to: to - from }
}

function orderOf(key: KeyPlace, last: KeyPlace | undefined): number {
  if (last === undefined) return ORDER_FIRST
  const order = compareTreeOrder(key.text.subarray(key.from, key.to), last.text.subarray(last.from, last.to))
  return order > 0 ? ORDER_ASCENDING : order === 0 ? ORDER_EQUAL : ORDER_DESCENDING
}

function isBelow({ text, from, to }: KeyPlace, file: Buffer): boolean {
  return (
    to - from > file.length &&
    text[from + file.length] === 0x2f &&
    text.compare(file, 0, file.length, from, from + file.length) === 0
  )
}

function refuseRow(row: number, reason: string, key?: string): never {
  const named = key === undefined ? '' : `, key ${JSON.stringify(key.length > 200 ? `${key.slice(0, 200)}…` : key)}`
  throw new BobbinError('PACKAGE_REFUSED', `row ${row} of the manifest${named}: ${reason}`)
}
