/**
 * The ledger of a run: every entry that was read, once a way, as JSON lines in the order of package and key.
 *
 * `fuse`: opens through the run's own mounts (what was read of an open file from the kernel's pages, nobody is told);
 * `paths` and `tar`: samples that the run's loader delivered, or began to (`aborted`); `entry`: single ones of it.
 */
import { createHash } from 'node:crypto'
import { createReadStream, statSync } from 'node:fs'
import { createInterface } from 'node:readline'
import { BobbinError, localError, systemCode } from '../../daemon/model/index.js'

export const LEDGER_VIAS = ['fuse', 'paths', 'tar', 'entry'] as const
export type LedgerVia = (typeof LEDGER_VIAS)[number]

export interface LedgerRow {
  /** `ns/name` */
  readonly package: string
  readonly topHash: string
  readonly key: string
  readonly hashType: string
  /** Hex. */
  readonly hash: string
  /** Bytes of the entry. */
  readonly size: number
  readonly via: LedgerVia
  /** Opens, or deliveries. */
  readonly count: number
  /** Deliveries that the client did not take to the end. */
  readonly aborted: number
  /** RFC 3339; of the first. */
  readonly first: string
}

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

export type Tally = Omit<LedgerRow, 'count' | 'aborted' | 'first'> & { count: number; aborted: number; first: string }

/** Rows of several ledgers: what is of one entry and one way is one row. */
export function mergeRows(rows: readonly LedgerRow[]): LedgerRow[] {
  const merged = new Map<string, Tally>()
  for (const row of rows) {
    const known = merged.get(nameOf(row))
    if (known === undefined) {
      merged.set(nameOf(row), { ...row })
      continue
    }
    known.count += row.count
    known.aborted += row.aborted
    if (row.first < known.first) known.first = row.first
  }
  return sorted(merged.values())
}

export function nameOf({
  package: name,
  topHash,
  key,
  via,
}: Pick<LedgerRow, 'package' | 'topHash' | 'key' | 'via'>): string {
  return `${name}\0${topHash}\0${key}\0${via}`
}

export function sorted(rows: Iterable<LedgerRow>): LedgerRow[] {
  return [...rows].sort((a, b) => (nameOf(a) < nameOf(b) ? -1 : 1))
}

export function formatLedger(rows: readonly LedgerRow[]): string {
  return rows.map(row => `${JSON.stringify(row)}\n`).join('')
}

export function ledgerFacts(rows: readonly LedgerRow[], text: string): LedgerFacts {
  const sizes = new Map(rows.map(row => [`${row.package}\0${row.topHash}\0${row.key}`, row.size]))
  return {
    sha256: textSha256(text),
    rows: rows.length,
    entriesRead: sizes.size,
    bytesRead: [...sizes.values()].reduce((sum, size) => sum + size, 0),
    merkleRoot: merkleRoot(rows),
  }
}

/** Of leaves in their order; an odd one at the end goes up as it is. Of none: the SHA-256 of nothing. */
function merkleRoot(rows: readonly LedgerRow[]): string {
  let level: Buffer[] = rows.map(({ key, hash }) => createHash('sha256').update(`${key}\0${hash}`).digest())
  if (level.length === 0) return createHash('sha256').digest('hex')
  while (level.length > 1) {
    const next: Buffer[] = []
    for (let i = 0; i < level.length; i += 2) {
      const [left, right] = [level[i]!, level[i + 1]]
      next.push(right === undefined ? left : createHash('sha256').update(left).update(right).digest())
    }
    level = next
  }
  return level[0]!.toString('hex')
}

/** Throws INVALID_ARGUMENT for what is no ledger. */
export async function* readLedger(path: string): AsyncGenerator<LedgerRow> {
  let number = 0
  for await (const line of createInterface({ input: createReadStream(path), crlfDelay: Number.POSITIVE_INFINITY })) {
    number++
    const row = rowOf(line)
    if (row === undefined) throw new BobbinError('INVALID_ARGUMENT', `${path}, line ${number}: not a row of a ledger`)
    yield row
  }
}

function rowOf(line: string): LedgerRow | undefined {
  try {
    const row = JSON.parse(line) as LedgerRow
    const texts = [row.package, row.topHash, row.key, row.hashType, row.hash, row.first]
    const isOne =
      texts.every(text => typeof text === 'string') && [row.size, row.count, row.aborted].every(Number.isInteger)
    return isOne && LEDGER_VIAS.includes(row.via) ? row : undefined
  } catch {
    return undefined
  }
}

export function textSha256(text: string): string {
  return createHash('sha256').update(text).digest('hex')
}

/** SHA-256 of a file, hex; undefined when there is no file of that name. */
export async function fileSha256(path: string): Promise<string | undefined> {
  const hash = createHash('sha256')
  try {
    if (!statSync(path).isFile()) return undefined
    // Larger than any buffer, perhaps.
    for await (const chunk of createReadStream(path)) hash.update(chunk as Buffer)
    return hash.digest('hex')
  } catch (error) {
    if (systemCode(error) === 'ENOENT') return undefined
    throw localError(`read ${path}`, error)
  }
}
