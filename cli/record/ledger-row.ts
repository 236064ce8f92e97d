/** A row of a ledger: an entry that was read, once a way. */

export const LEDGER_VIAS = ['fuse', 'paths', 'tar', 'entry'] as const
/**
 * `fuse`: opens through the run's own mounts (what was read of an open file from the kernel's pages, nobody is told);
 * `paths` and `tar`: samples that the run's loader delivered, or began to (`aborted`); `entry`: single ones of it.
 */
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

/** Rows stand in the order of these, which no two share. */
export function nameOf({
  package: name,
  topHash,
  key,
  via,
}: Pick<LedgerRow, 'package' | 'topHash' | 'key' | 'via'>): string {
  return `${name}\0${topHash}\0${key}\0${via}`
}

export function formatRow(row: LedgerRow): string {
  return `${JSON.stringify(row)}\n`
}

/** Undefined: it is none. */
export function parseRow(line: string): LedgerRow | undefined {
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
