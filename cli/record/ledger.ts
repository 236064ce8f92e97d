/**
 * The ledger of a run, `reads.jsonl`: every entry that was read, once a way, as JSON lines in the order of package and key.
 *
 * It may have more rows than memory has room for, or a string: it is written, read and counted row by row. What is kept beside
 * the counts is its head, which the trace statement shows when there is no more of it.
 */
import { createHash } from 'node:crypto'
import { createReadStream, lstatSync } from 'node:fs'
import { BobbinError, localError, systemCode } from '../../daemon/model/index.js'
import { DurableFile } from '../../daemon/store/index.js'
import { formatRow, type LedgerRow, nameOf, parseRow } from './ledger-row.js'
import { linesOf } from './lines.js'
import { MerkleTree } from './merkle.js'

/** Rows of a ledger's head. */
export const LEDGER_HEAD_MAX = 10_000
/** A row of a manifest, from which a row comes, has at most 1,000,000 bytes. */
const LINE_BYTES_MAX = 2 * 2 ** 20
const PIECE_BYTES = 256 * 1024
/** For a UTF-16 code unit. */
const UTF8_BYTES_MAX = 3

export interface LedgerFacts {
  readonly sha256: string
  readonly rows: number
  /** Different entries, whatever the way. */
  readonly entriesRead: number
  /** Of these together. */
  readonly bytesRead: number
  /** Leaf: SHA-256 of `key NUL hash`, in the order of the ledger. */
  readonly merkleRoot: string
}

export interface Ledger {
  readonly facts: LedgerFacts
  /** The first rows, LEDGER_HEAD_MAX at most. */
  readonly head: readonly LedgerRow[]
}

/** Writes rows, which come in the order of the ledger, to a file that outlives a power cut. Throws LOCAL_IO. */
export async function writeLedger(path: string, rows: Iterable<LedgerRow> | AsyncIterable<LedgerRow>): Promise<Ledger> {
  const file = await DurableFile.create(path)
  const hash = createHash('sha256')
  const count = new RowCount()
  // Written into again and again, so that no garbage grows with the rows.
  const piece = Buffer.alloc(PIECE_BYTES)
  let filled = 0
  const write = async (bytes: Uint8Array) => {
    hash.update(bytes)
    await file.write(bytes)
  }
  try {
    for await (const row of rows) {
      count.add(row)
      const line = formatRow(row)
      const lengthMax = UTF8_BYTES_MAX * line.length
      if (filled + lengthMax > piece.length) {
        await write(piece.subarray(0, filled))
        filled = 0
      }
      if (lengthMax > piece.length) await write(Buffer.from(line))
      else filled += piece.write(line, filled)
    }
    await write(piece.subarray(0, filled))
    await file.commit()
  } finally {
    await file.discard()
  }
  return count.ledger(hash.digest('hex'))
}

/** Throws INVALID_ARGUMENT for what is no ledger. */
export async function* readLedger(path: string, onBytes?: (piece: Buffer) => void): AsyncGenerator<LedgerRow> {
  let number = 0
  let last = ''
  for await (const line of linesOf(path, { lineBytesMax: LINE_BYTES_MAX, ...(onBytes && { onBytes }) })) {
    number++
    const row = parseRow(line)
    if (row === undefined) throw new BobbinError('INVALID_ARGUMENT', `${path}, line ${number}: not a row of a ledger`)
    const name = nameOf(row)
    if (name <= last)
      throw new BobbinError('INVALID_ARGUMENT', `${path}, line ${number}: not in the order of package and key`)
    last = name
    yield row
  }
}

/** Reads one through; `onRow` sees each row. Throws as `readLedger` does. */
export async function countLedger(path: string, onRow: (row: LedgerRow) => Promise<void>): Promise<Ledger> {
  const hash = createHash('sha256')
  const count = new RowCount()
  for await (const row of readLedger(path, piece => hash.update(piece))) {
    count.add(row)
    await onRow(row)
  }
  return count.ledger(hash.digest('hex'))
}

/** What is said of a ledger, from its rows in their order: those of one entry are neighbours. */
class RowCount {
  readonly #tree = new MerkleTree()
  readonly #head: LedgerRow[] = []
  #last: LedgerRow | undefined
  #rows = 0
  #entriesRead = 0
  #bytesRead = 0

  add(row: LedgerRow): void {
    const last = this.#last
    if (last?.key !== row.key || last.topHash !== row.topHash || last.package !== row.package) {
      this.#entriesRead++
      this.#bytesRead += row.size
    }
    this.#last = row
    this.#rows++
    this.#tree.add(`${row.key}\0${row.hash}`)
    // A copy. If the first rows themselves stayed, V8 would learn that rows stay, and make each later row in its old generation, where
    // only a large collection finds it: 300,000 rows took 175 to 182 MiB instead of 132 to 157.
    if (this.#head.length < LEDGER_HEAD_MAX) this.#head.push({ ...row })
  }

  ledger(sha256: string): Ledger {
    const [rows, entriesRead, bytesRead] = [this.#rows, this.#entriesRead, this.#bytesRead]
    return { facts: { sha256, rows, entriesRead, bytesRead, merkleRoot: this.#tree.root() }, head: this.#head }
  }
}

export function textSha256(text: string): string {
  return createHash('sha256').update(text).digest('hex')
}

/** SHA-256 of a file, hex; undefined when there is no file of that name: a link is none. */
export async function fileSha256(path: string): Promise<string | undefined> {
  const hash = createHash('sha256')
  try {
    if (!lstatSync(path).isFile()) return undefined
    // Larger than any buffer, perhaps.
    for await (const chunk of createReadStream(path)) hash.update(chunk as Buffer)
    return hash.digest('hex')
  } catch (error) {
    if (systemCode(error) === 'ENOENT') return undefined
    throw localError(`read ${path}`, error)
  }
}
