/**
 * The part of compiling that looks at single rows, so that it can run anywhere: a piece of a manifest
 * goes in, half-made nodes of the index and the canonical text of the rows come out. What needs more
 * than one row (tree order over pieces, duplicates, the tree itself) is compile.ts's.
 */
import { isUtf8 } from 'node:buffer'
import { crc32 } from 'node:zlib'
import { KIND_FILE, NODE, NODE_WORDS } from '../index/index-layout.js'
import type { CheckedSpan } from '../index/index-writer.js'
import { ByteBuffer } from '../json/byte-buffer.js'
import { JsonSyntaxError, type Span } from '../json/json-bytes.js'
import {
  BobbinError,
  COMPONENTS_MAX,
  compareTreeBytes,
  HASH_TYPES,
  KEY_BYTES_MAX,
  keyBytes,
  keyProblem,
  parsePhysicalKey,
  type Registry,
} from '../model/index.js'
import { ManifestRow, RowError } from './manifest-row.js'

/** How a file's key stands to the one before it in the piece. */
export const ORDER_FIRST = 0
export const ORDER_ASCENDING = 1
export const ORDER_EQUAL = 2
export const ORDER_DESCENDING = 3

/** Words a file in `places`: where its key begins in `text`, the key's bytes (its physical key follows), its order, its line. */
export const PLACE_WORDS = 4
export const PLACE = { key: 0, keyBytes: 1, order: 2, line: 3 } as const

export interface ScannedDirectory {
  readonly line: number
  /** UTF-8, without the final slash. */
  readonly key: Uint8Array
  readonly meta: CheckedSpan
}

/** Lines count from 0 within the piece. */
export interface ScannedPiece {
  readonly lines: number
  readonly files: number
  /** NODE_WORDS a file; parent, name and the physical key's offset are still missing. */
  readonly nodes: Uint32Array
  readonly places: Uint32Array
  readonly text: Uint8Array
  /** The canonical form of the files' rows, one behind the other. */
  readonly canonical: Uint8Array
  readonly directories: readonly ScannedDirectory[]
  /** A directory's row stands behind a file's. */
  readonly isDirectoryAfterFile: boolean
  /** Files that cannot be shown, by position in `nodes`. */
  readonly problems: ReadonlyMap<number, string>
  /** A row that cannot even be hashed; what was scanned before it counts. */
  readonly malformed: { readonly line: number; readonly message: string } | undefined
}

/** Memory for the results of one scan. What does not fit goes elsewhere, so any size is right. */
export interface ScanMemory {
  readonly nodes: ArrayBufferLike
  readonly places: ArrayBufferLike
  readonly text: ArrayBufferLike
  readonly canonical: ArrayBufferLike
}

/** Enough for the rows of quilt3 in a piece of so many bytes; `Memory` is ArrayBuffer or SharedArrayBuffer. */
export function scanMemory(pieceBytes: number, Memory: new (bytes: number) => ArrayBufferLike): ScanMemory {
  const rows = Math.max(64, Math.ceil(pieceBytes / 128))
  return {
    nodes: new Memory(rows * NODE_WORDS * 4),
    places: new Memory(rows * PLACE_WORDS * 4),
    text: new Memory(Math.max(pieceBytes, 4096)),
    canonical: new Memory(Math.max(pieceBytes, 4096)),
  }
}

export class RowScanner {
  readonly #row = new ManifestRow()
  readonly #canonical = new ByteBuffer()
  readonly #text = new ByteBuffer()
  readonly #digest = new Uint8Array(32)
  /** How the last physical key that was parsed began: those that begin so, too, need no full parse. */
  #usualPrefix = Buffer.from('s3:///')
  #nodes: Uint32Array = new Uint32Array(0)
  #places: Uint32Array = new Uint32Array(0)

  constructor(private readonly registryKind: Registry['kind']) {}

  /** `offsetOf` tells where a line of the piece lies in the manifest file. The result lies in `memory`. */
  scan(
    bytes: Buffer,
    offsetOf: (line: number, from: number) => number,
    memory: ScanMemory = scanMemory(bytes.length, ArrayBuffer),
  ): ScannedPiece {
    this.#nodes = new Uint32Array(memory.nodes)
    this.#places = new Uint32Array(memory.places)
    this.#text.begin(memory.text)
    this.#canonical.begin(memory.canonical)
    const directories: ScannedDirectory[] = []
    const problems = new Map<number, string>()
    const isSoundUtf8 = isUtf8(bytes)
    let isDirectoryAfterFile = false
    let malformed: ScannedPiece['malformed']
    let files = 0
    let line = 0
    for (let from = 0; from < bytes.length; line++) {
      const newline = bytes.indexOf(0x0a, from)
      const to = newline < 0 ? bytes.length : newline
      try {
        if (!isSoundUtf8 && !isUtf8(bytes.subarray(from, to))) throw new RowError('the row is not valid UTF-8')
        this.#row.scan(bytes, from, to)
        const offset = offsetOf(line, from)
        if (this.#row.isDirectory) {
          isDirectoryAfterFile ||= files > 0
          const meta = checkedSpan(this.#row.userMeta, bytes, offset - from)
          const key = directoryKey(this.#row)
          if (meta !== undefined) directories.push({ line, key: keyBytes(key), meta })
        } else {
          const problem = this.#addFile(files, line, bytes, offset - from)
          if (problem !== undefined) problems.set(files, problem)
          files++
        }
      } catch (error) {
        malformed = { line, message: rowMessage(error, from) }
        break
      }
      from = to + 1
    }
    return {
      lines: line,
      files,
      nodes: this.#nodes.subarray(0, files * NODE_WORDS),
      places: this.#places.subarray(0, files * PLACE_WORDS),
      text: this.#text.written,
      canonical: this.#canonical.written,
      directories,
      isDirectoryAfterFile,
      problems,
      malformed,
    }
  }

  /** Returns why the file cannot be shown. */
  #addFile(file: number, line: number, bytes: Buffer, shift: number): string | undefined {
    const row = this.#row
    if ((file + 1) * NODE_WORDS > this.#nodes.length) this.#makeRoom()
    // Memory that is used again holds the last piece's nodes.
    this.#nodes.fill(0, file * NODE_WORDS, (file + 1) * NODE_WORDS)
    row.appendCanonical(this.#canonical, this.#digest)

    const places = this.#places
    const place = file * PLACE_WORDS
    const keyFrom = this.#text.length
    const keyBytes = row.appendKey(this.#text)
    places[place + PLACE.key] = keyFrom
    places[place + PLACE.keyBytes] = keyBytes
    places[place + PLACE.line] = line
    places[place + PLACE.order] = file === 0 ? ORDER_FIRST : this.#orderToLast(place)

    const hashProblem = row.takeProblem()
    const plain = row.plainPhysicalKey(this.#usualPrefix)
    const problem =
      hashProblem ?? this.#keyProblem(keyFrom, keyBytes) ?? (plain ? undefined : this.#physicalKeyProblem())
    if (problem !== undefined) return problem
    const physicalFrom = this.#text.length
    if (plain) this.#text.bytes(bytes, plain.from, plain.to)
    else {
      const physicalKey = Buffer.from(row.physicalKey)
      this.#text.bytes(physicalKey, 0, physicalKey.length)
    }

    const nodes = this.#nodes
    const node = file * NODE_WORDS
    nodes[node + NODE.kinds] = KIND_FILE | (HASH_TYPES.indexOf(row.hashType) << 8)
    nodes[node + NODE.size] = row.size % 2 ** 32
    nodes[node + NODE.size + 1] = row.size / 2 ** 32
    nodes[node + NODE.keyBytes] = this.#text.length - physicalFrom
    const meta = checkedSpan(row.userMeta, bytes, shift)
    if (meta !== undefined) {
      nodes[node + NODE.metaOffset] = meta.offset % 2 ** 32
      nodes[node + NODE.metaOffset + 1] = meta.offset / 2 ** 32
      nodes[node + NODE.metaBytes] = meta.bytes
      nodes[node + NODE.metaCrc] = meta.crc
    }
    const digest = this.#digest
    const digestBytes = row.hashType === 'CRC64NVME' ? 8 : 32
    for (let i = 0; i < digestBytes; i += 4) {
      const word = digest[i]! | (digest[i + 1]! << 8) | (digest[i + 2]! << 16) | (digest[i + 3]! << 24)
      nodes[node + NODE.digest + i / 4] = word
    }
    return undefined
  }

  #makeRoom(): void {
    const nodes = new Uint32Array(this.#nodes.length * 2)
    nodes.set(this.#nodes)
    this.#nodes = nodes
    const places = new Uint32Array(this.#places.length * 2)
    places.set(this.#places)
    this.#places = places
  }

  #orderToLast(place: number): number {
    const text = this.#text.memory
    const before = place - PLACE_WORDS
    const keyOf = (at: number) => {
      const from = this.#places[at + PLACE.key]!
      return { from, to: from + this.#places[at + PLACE.keyBytes]! }
    }
    const last = keyOf(before)
    const key = keyOf(place)
    const order = compareRanges(text, key, last)
    return order > 0 ? ORDER_ASCENDING : order === 0 ? ORDER_EQUAL : ORDER_DESCENDING
  }

  /** Why the key cannot be shown; plain keys are checked as bytes, without making a string of each. */
  #keyProblem(from: number, keyBytes: number): string | undefined {
    const row = this.#row
    if (!row.isKeyPlain || keyBytes > KEY_BYTES_MAX) return keyProblem(row.key)
    const text = this.#text.memory
    const to = from + keyBytes
    let components = 0
    for (let start = from, i = from; i <= to; i++) {
      if (i < to && text[i] !== 0x2f) continue
      if (++components > COMPONENTS_MAX) return keyProblem(row.key)
      const length = i - start
      // Empty, longer than a name may be, or starting with a dot and perhaps nothing else: the full check says which.
      if (length === 0 || length > 255 || (length <= 2 && text[start] === 0x2e)) {
        const problem = keyProblem(row.key)
        if (problem !== undefined) return problem
      }
      start = i + 1
    }
    return undefined
  }

  #physicalKeyProblem(): string | undefined {
    try {
      const text = this.#row.physicalKey
      const physicalKey = parsePhysicalKey(text)
      if (physicalKey.kind === 'file') {
        return this.registryKind === 'file'
          ? undefined
          : `a file:// physical key in an S3 registry would read this machine's own files: ${JSON.stringify(text.slice(0, 200))}`
      }
      if (physicalKey.key === '') return `a physical key without a path: ${JSON.stringify(text.slice(0, 200))}`
      this.#usualPrefix = Buffer.from(`s3://${physicalKey.bucket}/`)
      return undefined
    } catch (error) {
      if (error instanceof BobbinError || error instanceof RowError) return error.message
      throw error
    }
  }
}

/** Tree order (model/logical-key.ts) of two stretches of one buffer, without making views. */
function compareRanges(bytes: Uint8Array, a: Span, b: Span): number {
  const length = Math.min(a.to - a.from, b.to - b.from)
  for (let i = 0; i < length; i++) {
    const x = bytes[a.from + i]!
    const y = bytes[b.from + i]!
    if (x !== y) return compareTreeBytes(x, y)
  }
  return a.to - a.from - (b.to - b.from)
}

/** The directory a metadata row is about, without the final slash. */
export function directoryKey(row: ManifestRow): string {
  const { key } = row
  // quilt3 would apply such a row to the directory above, or to the whole package, changing its top hash.
  if (!key.endsWith('/'))
    throw new RowError(`the key ${JSON.stringify(key.slice(0, 200))} has no physical keys, but does not end in "/"`)
  return key.slice(0, -1)
}

/** `shift` is what an offset in the file has over one in `bytes`. */
export function checkedSpan(span: Span | undefined, bytes: Buffer, shift: number): CheckedSpan | undefined {
  if (span === undefined) return undefined
  return { offset: span.from + shift, bytes: span.to - span.from, crc: crc32(bytes.subarray(span.from, span.to)) }
}

/** What is wrong with a row that could not be read; rethrows what is no fault of the row. */
export function rowMessage(error: unknown, from: number): string {
  if (error instanceof JsonSyntaxError)
    return `not valid JSON: ${error.message} at byte ${error.at - from + 1} of the row`
  if (error instanceof RowError) return error.message
  throw error
}
