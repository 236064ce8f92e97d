/**
 * Sorts any number of rows by tree order in bounded memory: sorted runs spill into a scratch file and
 * are merged. Needed only for manifests whose rows are not in tree order; quilt3 and quilt-rs write
 * theirs sorted.
 */
import { closeSync, openSync, readSync, writeSync } from 'node:fs'
import { BobbinError, compareTreeOrder, localError } from '../model/index.js'

export interface SortedRow {
  /** UTF-8; a directory's has no final slash. Good until the next row is taken. */
  readonly key: Buffer
  readonly row: number
  readonly offset: number
  readonly bytes: number
}

/** What one run holds in memory before it spills. */
const RUN_BYTES = 32 * 1024 * 1024
const RUN_ROWS = 1024 * 1024
/** u32 key bytes, u32 row, u64 offset, u32 bytes. */
const RECORD_BYTES = 20
/** Read-ahead of each run during the merge. */
const MERGE_BYTES = 256 * 1024

export class KeySorter {
  readonly #records = Buffer.allocUnsafeSlow(RUN_BYTES)
  #filled = 0
  #starts: number[] = []
  readonly #fd: number
  readonly #runs: { at: number; bytes: number }[] = []
  #end = 0

  constructor(
    scratchPath: string,
    private readonly runBytes = RUN_BYTES,
  ) {
    this.#fd = openSync(scratchPath, 'wx+', 0o600)
  }

  add(key: Uint8Array, keyBytes: number, row: number, offset: number, bytes: number): void {
    if (this.#filled + RECORD_BYTES + keyBytes > this.runBytes || this.#starts.length === RUN_ROWS) this.#spill()
    const records = this.#records
    const at = this.#filled
    records.writeUInt32LE(keyBytes, at)
    records.writeUInt32LE(row, at + 4)
    records.writeUInt32LE(offset % 2 ** 32, at + 8)
    records.writeUInt32LE(Math.floor(offset / 2 ** 32), at + 12)
    records.writeUInt32LE(bytes, at + 16)
    records.set(keyBytes === key.length ? key : key.subarray(0, keyBytes), at + RECORD_BYTES)
    this.#starts.push(at)
    this.#filled += RECORD_BYTES + keyBytes
  }

  /** What the scratch file takes when all that was added is in it. */
  get bytes(): number {
    return this.#end + this.#filled
  }

  #keyAt(at: number): Buffer {
    return this.#records.subarray(at + RECORD_BYTES, at + RECORD_BYTES + this.#records.readUInt32LE(at))
  }

  #sortRun(): void {
    // Equal keys stay in the order of their rows: starts grow with the rows.
    this.#starts.sort((a, b) => compareTreeOrder(this.#keyAt(a), this.#keyAt(b)) || a - b)
  }

  #spill(): void {
    this.#sortRun()
    const at = this.#end
    const piece = Buffer.allocUnsafe(1024 * 1024)
    let filled = 0
    const write = () => {
      try {
        for (let done = 0; done < filled; ) done += writeSync(this.#fd, piece, done, filled - done, this.#end + done)
      } catch (error) {
        throw localError('write the scratch file of the sort', error)
      }
      this.#end += filled
      filled = 0
    }
    for (const start of this.#starts) {
      const length = RECORD_BYTES + this.#records.readUInt32LE(start)
      if (filled + length > piece.length) write()
      this.#records.copy(piece, filled, start, start + length)
      filled += length
    }
    write()
    this.#runs.push({ at, bytes: this.#end - at })
    this.#starts = []
    this.#filled = 0
  }

  /** Every row, by tree order, equal keys by row number. After the last `add`; one at a time, as often as one likes. */
  *sorted(): Generator<SortedRow> {
    if (this.#runs.length === 0) {
      this.#sortRun()
      for (const at of this.#starts) yield readRecord(this.#records, at)
      return
    }
    if (this.#starts.length > 0) this.#spill()
    // Few runs (one for every 32 MiB of keys), so the smallest head is found by looking at each.
    const heads = this.#runs.map(run => new RunReader(this.#fd, run.at, run.bytes)).filter(run => run.next())
    while (heads.length > 0) {
      let smallest = 0
      for (let i = 1; i < heads.length; i++) {
        if (compareTreeOrder(heads[i]!.head.key, heads[smallest]!.head.key) < 0) smallest = i
      }
      yield heads[smallest]!.head
      if (!heads[smallest]!.next()) heads.splice(smallest, 1)
    }
  }

  close(): void {
    closeSync(this.#fd)
  }
}

function readRecord(bytes: Buffer, at: number): SortedRow {
  return {
    key: bytes.subarray(at + RECORD_BYTES, at + RECORD_BYTES + bytes.readUInt32LE(at)),
    row: bytes.readUInt32LE(at + 4),
    offset: bytes.readUInt32LE(at + 8) + bytes.readUInt32LE(at + 12) * 2 ** 32,
    bytes: bytes.readUInt32LE(at + 16),
  }
}

class RunReader {
  head: SortedRow = { key: Buffer.alloc(0), row: 0, offset: 0, bytes: 0 }
  #buffer = Buffer.alloc(0)
  #at = 0

  constructor(
    private readonly fd: number,
    private position: number,
    private left: number,
  ) {}

  next(): boolean {
    if (!this.#has(RECORD_BYTES)) return false
    this.#has(RECORD_BYTES + this.#buffer.readUInt32LE(this.#at))
    this.head = readRecord(this.#buffer, this.#at)
    this.#at += RECORD_BYTES + this.head.key.length
    return true
  }

  /** Makes the next `length` bytes available; false at the end of the run. */
  #has(length: number): boolean {
    const rest = this.#buffer.length - this.#at
    if (rest >= length) return true
    if (rest + this.left < length) return false
    // A new buffer each time: the head of before may still be in use.
    const piece = Buffer.allocUnsafe(Math.min(rest + this.left, Math.max(MERGE_BYTES, length)))
    this.#buffer.copy(piece, 0, this.#at)
    for (let filled = rest; filled < piece.length; ) {
      const read = readSync(this.fd, piece, filled, piece.length - filled, this.position)
      if (read === 0) throw new BobbinError('LOCAL_IO', 'the scratch file of the sort was cut short')
      filled += read
      this.position += read
      this.left -= read
    }
    this.#buffer = piece
    this.#at = 0
    return true
  }
}
