/**
 * What compiling a manifest decides between rows, as pieces of it arrive in tree order: duplicates,
 * files that are also directories, what is refused or left out, and whether the whole hashes to its name.
 */
import { isUtf8 } from 'node:buffer'
import { createHash } from 'node:crypto'
import { HEADER_SPANS, type HeaderSpanName, NODE_WORDS } from '../index/index-layout.js'
import { type CheckedSpan, IndexWriter, type Quarantined } from '../index/index-writer.js'
import { canonicalJson } from '../json/canonical-json.js'
import { findMember } from '../json/json-bytes.js'
import { BobbinError, compareTreeOrder, keyText, localError, type Registry, type TopHash } from '../model/index.js'
import { RowError } from './manifest-row.js'
import {
  checkedSpan,
  ORDER_ASCENDING,
  ORDER_DESCENDING,
  ORDER_EQUAL,
  ORDER_FIRST,
  PLACE,
  PLACE_WORDS,
  rowMessage,
  type ScannedPiece,
} from './scan-rows.js'

export interface CompilationOptions {
  /** Where the index is written; must not exist. Scratch files lie beside it and are removed. */
  readonly indexPath: string
  /** What the manifest must hash to. */
  readonly topHash: TopHash
  readonly registry: Registry
  /** Leave hostile rows out and list them, instead of refusing the package. */
  readonly quarantine?: boolean
}

export interface Compiled {
  readonly manifestSha256: string
  readonly quarantined: readonly Quarantined[]
}

/** More than anybody reads; a manifest of nothing but hostile rows must not fill the memory. */
const QUARANTINED_MAX = 10_000
/** Of the keys of these rows. */
const QUARANTINED_KEY_BYTES_MAX = 16 * 1024 * 1024

/** The rows are not in tree order: they have to be sorted first. */
export class OutOfOrder extends Error {}

export class Compilation {
  readonly writer: IndexWriter
  /** Rows seen so far; the header is row 1, as in an editor. */
  rows = 1
  readonly #topHash = createHash('sha256')
  #spans: Partial<Record<HeaderSpanName, CheckedSpan>> = {}
  readonly #quarantined: Quarantined[] = []
  /** Bytes. */
  #quarantinedKeyBytes = 0
  /** The key before this one in tree order, sound or not. */
  #last: KeyPlace | undefined
  #lastRow = 0
  /** The last key is a file of the index. */
  #isLastAdded = false
  /** A file whose key is a prefix of what follows: it is no file any more, and everything below it is left out. */
  #blocked: Buffer | undefined

  constructor(
    private readonly options: CompilationOptions,
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
      if (bytes[0] === 0xef) throw new RowError('the manifest starts with a byte order mark')
      if (!isUtf8(bytes)) throw new RowError('the row is not valid UTF-8')
      if (bytes.length === 0) throw new RowError('the row is empty')
      const canonical = canonicalJson(bytes, 0, bytes.length, { without: 'top_hash' })
      if (!canonical.startsWith('{')) throw new RowError('the header is not a JSON object')
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
    if (this.writer.hasTooManyDirectories(key.text, key.from, key.to)) {
      this.#refuse(row, key, 'with it, the package has more directories than its rows can account for')
      return false
    }
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
    this.#refuse(row, key, `row ${this.#lastRow} has ${JSON.stringify(keyText(file))} as a file`)
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
    const key = keyText(text.subarray(from, to))
    if (!this.options.quarantine) refuseRow(row, `${reason} (--quarantine leaves such rows out)`, key)
    this.#quarantined.push({ row, key, reason })
    if (this.#quarantined.length > QUARANTINED_MAX)
      refuseRow(row, `over ${QUARANTINED_MAX} rows would have to be left out`)
    this.#quarantinedKeyBytes += to - from
    if (this.#quarantinedKeyBytes > QUARANTINED_KEY_BYTES_MAX)
      refuseRow(row, `keys of over ${QUARANTINED_KEY_BYTES_MAX} bytes would have to be left out`)
  }

  /** What the index and its scratch file take, when it is finished now. */
  get diskBytes(): number {
    // A line has row and reason beside its key, whose escapes may take six bytes each.
    return this.writer.diskBytes + this.#quarantined.length * 400 + this.#quarantinedKeyBytes * 6
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

export function refuseRow(row: number, reason: string, key?: string): never {
  const named = key === undefined ? '' : `, key ${JSON.stringify(key.length > 200 ? `${key.slice(0, 200)}…` : key)}`
  throw new BobbinError('PACKAGE_REFUSED', `row ${row} of the manifest${named}: ${reason}`)
}
