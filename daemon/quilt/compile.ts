/**
 * Compiles a manifest into a package index, and finds out on the way whether it is what its name says.
 *
 * One pass over the file: each row is scanned, its canonical form goes into the top hash, its facts
 * into the index. That needs the rows in tree order, as quilt3 and quilt-rs write them. A manifest in
 * another order is legal (the order is not hashed): its keys are sorted on disk first, and the rows
 * read again in that order. Memory is bounded both ways, whatever the number of rows.
 *
 * Nothing of the manifest is trusted before the top hash has come out right.
 */
import { createHash, randomBytes } from 'node:crypto'
import { closeSync, openSync, readSync, rmSync } from 'node:fs'
import { crc32 } from 'node:zlib'
import {
  BobbinError,
  compareTreeOrder,
  KEY_BYTES_MAX,
  keyProblem,
  localError,
  parsePhysicalKey,
  type Registry,
  type TopHash,
  throwIfAborted,
} from '../model/index.js'
import { canonicalJson } from './canonical-json.js'
import { HEADER_SPANS, type HeaderSpanName } from './index-layout.js'
import { type CheckedSpan, type DirectoryMeta, IndexWriter, type Quarantined } from './index-writer.js'
import { findMember, JsonSyntaxError, type Span } from './json-bytes.js'
import { KeySorter } from './key-sorter.js'
import { readManifestRows, refuseRow, visitRow } from './manifest-reader.js'
import { CanonicalBuffer, ManifestRow, RowError } from './manifest-row.js'

export interface CompileOptions {
  readonly manifestPath: string
  /** Where the index is written; must not exist. Scratch files lie beside it and are removed. */
  readonly indexPath: string
  /** What the manifest must hash to. */
  readonly topHash: TopHash
  readonly registry: Registry
  /** Leave hostile rows out and list them, instead of refusing the package. */
  readonly quarantine?: boolean
  readonly onBytes?: ((bytes: number) => void) | undefined
  readonly signal?: AbortSignal | undefined
  /** Rows of directory metadata that are kept in memory; only tests set it. */
  readonly directoryBytesMax?: number
}

export interface Compiled {
  readonly manifestSha256: string
  readonly quarantined: readonly Quarantined[]
}

const DIRECTORY_BYTES_MAX = 32 * 1024 * 1024
/** More than anybody reads; a manifest of nothing but hostile rows must not fill the memory. */
const QUARANTINED_MAX = 10_000

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
  const compilation = new Compilation(options, spillPath, false)
  try {
    const row = new ManifestRow()
    const bytesMax = options.directoryBytesMax ?? DIRECTORY_BYTES_MAX
    const directories: DirectoryMeta[] = []
    let directoryBytes = 0
    let hasFiles = false
    const file = await readManifestRows(
      options.manifestPath,
      (bytes, from, to, number, offset) => {
        if (number === 1) return compilation.header(bytes, from, to, offset)
        row.scan(bytes, from, to)
        if (row.isDirectory) {
          const meta = directoryMeta(row, number, bytes, from, offset)
          if (meta === undefined) return
          directoryBytes += meta.key.length + 100
          if (hasFiles || directoryBytes > bytesMax) throw new OutOfOrder()
          directories.push(meta)
          return
        }
        if (!hasFiles) {
          hasFiles = true
          directories.sort((a, b) => compareTreeOrder(a.key, b.key))
          compilation.writer.setDirectoryMetas(directories.values())
        }
        compilation.file(row, number, bytes, from, offset)
      },
      options,
    )
    return compilation.finish(file)
  } finally {
    compilation.close()
  }
}

async function compileSorted(options: CompileOptions, scratch: string): Promise<Compiled> {
  const compilation = new Compilation(options, `${scratch}.spill`, true)
  const files = new KeySorter(`${scratch}.files`)
  const directories = new KeySorter(`${scratch}.directories`)
  const fd = openSync(options.manifestPath, 'r')
  try {
    const row = new ManifestRow()
    const file = await readManifestRows(
      options.manifestPath,
      (bytes, from, to, number, offset) => {
        if (number === 1) return compilation.header(bytes, from, to, offset)
        row.scan(bytes, from, to)
        const key = Buffer.from(row.isDirectory ? directoryKey(row, number) : row.key)
        ;(row.isDirectory ? directories : files).add(key, key.length, number, offset, to - from)
      },
      // The second look at the rows takes about as long, so this one counts for half.
      { ...options, onBytes: options.onBytes && (bytes => options.onBytes!(bytes / 2)) },
    )
    const readRow = rowReader(fd)
    // A reader of its own: directories are looked up while a file's row is still in use.
    const readDirectoryRow = rowReader(fd)
    compilation.writer.setDirectoryMetas(
      (function* (): Generator<DirectoryMeta> {
        const directoryRow = new ManifestRow()
        for (const sorted of directories.sorted()) {
          const bytes = readDirectoryRow(sorted.offset, sorted.bytes)
          directoryRow.scan(bytes, 0, bytes.length)
          const meta = directoryMeta(directoryRow, sorted.row, bytes, 0, sorted.offset)
          if (meta !== undefined) yield meta
        }
      })(),
    )
    let done = 0
    for (const sorted of files.sorted()) {
      const bytes = readRow(sorted.offset, sorted.bytes)
      visitRow(
        (bytes, from, to, number, offset) => {
          row.scan(bytes, from, to)
          compilation.file(row, number, bytes, from, offset)
        },
        bytes,
        0,
        bytes.length,
        sorted.row,
        sorted.offset,
      )
      done += sorted.bytes
      if (sorted.row % 4096 === 0) {
        throwIfAborted(options.signal)
        options.onBytes?.((file.bytes + done) / 2)
        await new Promise(resolve => setImmediate(resolve))
      }
    }
    return compilation.finish(file)
  } finally {
    closeSync(fd)
    files.close()
    directories.close()
    compilation.close()
  }
}

/** Reads rows anywhere in the manifest; the bytes are good until the next call. */
function rowReader(fd: number): (offset: number, bytes: number) => Buffer {
  let buffer = Buffer.allocUnsafe(64 * 1024)
  return (offset, bytes) => {
    if (bytes > buffer.length) buffer = Buffer.allocUnsafe(bytes * 2)
    const read = readSync(fd, buffer, 0, bytes, offset)
    if (read !== bytes) throw new BobbinError('LOCAL_IO', 'the cached manifest was cut short while it was read')
    return buffer.subarray(0, bytes)
  }
}

/** The directory a metadata row is about, without the final slash. */
function directoryKey(row: ManifestRow, number: number): string {
  const key = row.key
  // quilt3 would apply such a row to the directory above, or to the whole package, changing its top hash.
  if (!key.endsWith('/')) refuseRow(number, 'a row without physical keys, whose key does not end in "/"', key)
  return key.slice(0, -1)
}

function directoryMeta(
  row: ManifestRow,
  number: number,
  bytes: Buffer,
  from: number,
  offset: number,
): DirectoryMeta | undefined {
  const key = directoryKey(row, number)
  const meta = checkedSpan(row.userMeta, bytes, from, offset)
  return meta && { key: Buffer.from(key), meta }
}

function checkedSpan(span: Span | undefined, bytes: Buffer, from: number, offset: number): CheckedSpan | undefined {
  if (span === undefined) return undefined
  return {
    offset: offset + span.from - from,
    bytes: span.to - span.from,
    crc: crc32(bytes.subarray(span.from, span.to)),
  }
}

/** What both ways share: files arrive in tree order. */
class Compilation {
  readonly writer: IndexWriter
  readonly #topHash = createHash('sha256')
  readonly #canonical = new CanonicalBuffer(bytes => this.#topHash.update(bytes))
  #spans: Partial<Record<HeaderSpanName, CheckedSpan>> = {}
  readonly #quarantined: Quarantined[] = []
  readonly #digest = new Uint8Array(32)
  /** The key before this one in tree order, sound or not. */
  #last = Buffer.alloc(KEY_BYTES_MAX + 1)
  #lastBytes = -1
  #lastRow = 0
  /** The last key is a file of the index. */
  #isLastAdded = false
  /** A file whose key is a prefix of what follows; -1: none. It is no file any more, everything below it is left out. */
  #blockedBytes = -1
  #key = Buffer.alloc(KEY_BYTES_MAX + 1)

  constructor(
    private readonly options: CompileOptions,
    spillPath: string,
    /** The caller has sorted the rows, so their order is not in question (keys longer than #key cannot be compared here). */
    private readonly isSorted: boolean,
  ) {
    try {
      this.writer = new IndexWriter(options.indexPath, spillPath)
    } catch (error) {
      throw localError(`write ${options.indexPath}`, error)
    }
  }

  header(bytes: Buffer, from: number, to: number, offset: number): void {
    let first = from
    while (first < to && (bytes[first] === 0x20 || bytes[first] === 0x09)) first++
    if (bytes[first] !== 0x7b) {
      if (first === to) throw new JsonSyntaxError('the header is empty', first)
      throw bytes[first] === 0xef
        ? new JsonSyntaxError('', first)
        : new RowError('the header is not a JSON object', true)
    }
    this.#canonical.ascii(canonicalJson(bytes, from, to, { without: 'top_hash' }))
    for (const name of HEADER_SPANS) {
      const span = findMember(bytes, from, to, name === 'userMeta' ? 'user_meta' : name)
      const checked = span && bytes[span.from] !== 0x6e ? checkedSpan(span, bytes, from, offset) : undefined
      if (checked) this.#spans = { ...this.#spans, [name]: checked }
    }
  }

  /** The next file in tree order. Throws OutOfOrder when it is not. */
  file(row: ManifestRow, number: number, bytes: Buffer, from: number, offset: number): void {
    const key = this.#key
    let keyBytes = row.copyKey(key)
    // A key too long for the buffer is too long for a filesystem; only its place in the order matters.
    const isOversized = keyBytes < 0
    if (isOversized) keyBytes = Buffer.from(row.key).copy(key, 0, 0, key.length)
    const order = this.#lastBytes < 0 ? 1 : this.#compareWithLast(key, keyBytes)
    if (!this.isSorted && (order < 0 || (isOversized && order === 0))) throw new OutOfOrder()

    row.appendCanonical(this.#canonical, this.#digest)
    const plainPhysicalKey = row.plainPhysicalKey(this.#usualPrefix)
    const problem =
      row.takeProblem() ??
      keyProblemOf(row, key, keyBytes) ??
      (plainPhysicalKey === undefined ? this.#physicalKeyProblem(row) : undefined)
    const isDuplicate = order === 0 && !isOversized
    if (isDuplicate) this.#refuse(number, row.key, `the key stands in row ${this.#lastRow} already`)
    else if (problem !== undefined) this.#refuse(number, row.key, problem)

    if (isDuplicate) this.#takeBack(row.key, `the key stands in row ${number} again`)
    const isBelowFile = this.#isBelowBlockedFile(key, keyBytes, number, row)
    const isAdded = !isDuplicate && problem === undefined && !isBelowFile
    if (isAdded) {
      this.writer.addFile(key, keyBytes, {
        size: row.size,
        hashType: row.hashType,
        digest: this.#digestOf(row),
        physicalKey: plainPhysicalKey ? { bytes, ...plainPhysicalKey } : wholeText(row.physicalKey),
        meta: checkedSpan(row.userMeta, bytes, from, offset),
        row: number,
      })
    }
    this.#key = this.#last
    this.#last = key
    this.#lastBytes = keyBytes
    this.#lastRow = number
    this.#isLastAdded = isAdded
  }

  #digestOf(row: ManifestRow): Uint8Array {
    if (row.hashType === 'CRC64NVME') this.#digest.fill(0, 8)
    return this.#digest
  }

  /** Tree order, as compareTreeOrder, without making views. */
  #compareWithLast(key: Buffer, keyBytes: number): number {
    const last = this.#last
    const length = Math.min(keyBytes, this.#lastBytes)
    for (let i = 0; i < length; i++) {
      const x = key[i]!
      const y = last[i]!
      if (x === y) continue
      if (x === 0x2f) return -1
      if (y === 0x2f) return 1
      return x - y
    }
    return keyBytes - this.#lastBytes
  }

  /** `a` as a file and `a/b` cannot both be: neither `a` nor anything below it is mounted. */
  #isBelowBlockedFile(key: Buffer, keyBytes: number, number: number, row: ManifestRow): boolean {
    const isBelow = (fileBytes: number) =>
      fileBytes >= 0 &&
      keyBytes > fileBytes &&
      key[fileBytes] === 0x2f &&
      this.#last.compare(key, 0, fileBytes, 0, fileBytes) === 0
    // Whatever lies below the blocked file shares its bytes, and so does the last key.
    if (this.#blockedBytes >= 0 && !isBelow(this.#blockedBytes)) this.#blockedBytes = -1
    if (this.#blockedBytes < 0 && this.#isLastAdded && isBelow(this.#lastBytes)) {
      this.#blockedBytes = this.#lastBytes
      const file = this.#last.toString('utf8', 0, this.#lastBytes)
      this.#refuse(number, row.key, `row ${this.#lastRow} has ${JSON.stringify(file)} as a file`)
      this.#takeBack(file, `row ${number} has it as a directory`)
      return true
    }
    if (this.#blockedBytes < 0) return false
    this.#refuse(number, row.key, 'it lies below a file')
    return true
  }

  #takeBack(key: string, reason: string): void {
    if (!this.#isLastAdded) return
    this.writer.removeLastFile()
    this.#isLastAdded = false
    this.#refuse(this.#lastRow, key, reason)
  }

  /** How the last physical key that was parsed began: those that begin so, too, need no full parse. */
  #usualPrefix = Buffer.from('s3:///')

  #physicalKeyProblem(row: ManifestRow): string | undefined {
    let text: string
    try {
      text = row.physicalKey
    } catch (error) {
      if (error instanceof RowError) return error.message
      throw error
    }
    try {
      const physicalKey = parsePhysicalKey(text)
      if (physicalKey.kind === 'file') {
        if (this.options.registry.kind === 's3') {
          return `a file:// physical key in an S3 registry would read this machine's own files: ${JSON.stringify(text.slice(0, 200))}`
        }
        return undefined
      }
      if (physicalKey.key === '') return `a physical key without a path: ${JSON.stringify(text.slice(0, 200))}`
      this.#usualPrefix = Buffer.from(`s3://${physicalKey.bucket}/`)
      return undefined
    } catch (error) {
      if (error instanceof BobbinError) return error.message
      throw error
    }
  }

  #refuse(row: number, key: string, reason: string): void {
    if (!this.options.quarantine) refuseRow(row, `${reason} (--quarantine leaves such rows out)`, key)
    this.#quarantined.push({ row, key, reason })
    if (this.#quarantined.length > QUARANTINED_MAX)
      refuseRow(row, `over ${QUARANTINED_MAX} rows would have to be left out`)
  }

  finish(file: { sha256: string; bytes: number }): Compiled {
    this.#canonical.flush()
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

function wholeText(text: string): { bytes: Buffer; from: number; to: number } {
  const bytes = Buffer.from(text)
  return { bytes, from: 0, to: bytes.length }
}

/** Why the key cannot be shown; plain keys are checked as bytes, without making a string of each. */
function keyProblemOf(row: ManifestRow, key: Buffer, keyBytes: number): string | undefined {
  if (!row.isKeyPlain || keyBytes > KEY_BYTES_MAX) return keyProblem(row.key)
  let start = 0
  for (let i = 0; i <= keyBytes; i++) {
    if (i < keyBytes && key[i] !== 0x2f) continue
    const length = i - start
    // Empty, longer than a name may be, or starting with a dot and perhaps nothing else: the full check says which.
    if (length === 0 || length > 255 || (length <= 2 && key[start] === 0x2e)) {
      const problem = keyProblem(row.key)
      if (problem !== undefined) return problem
    }
    start = i + 1
  }
  return undefined
}
