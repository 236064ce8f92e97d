/**
 * The ledger of a run: every entry that was read, once a way, as JSON lines in the order of package and key.
 *
 * `fuse`: opens through the run's own mounts (what was read of an open file from the kernel's pages, nobody is told);
 * `paths` and `tar`: samples that the run's loader delivered, or began to (`aborted`); `entry`: single ones of it.
 */
import { createHash } from 'node:crypto'
import { createReadStream, readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { BobbinError, type Entry, hasCode, localError, parsePackageName, systemCode } from '../../daemon/model/index.js'
import { readAccessLog } from '../../daemon/mount/access-log.js'
import { type OpenedPackage, type OpenOptions, openPackage } from '../../daemon/quilt/package-cache.js'
import { parseRegistry } from '../../daemon/quilt/reference.js'
import type { Delivery } from '../../loader/http/deliveries.js'
import type { PackageAddress } from '../../loader/http/objects.js'
import type { OpenPackages } from '../../loader/http/open-packages.js'
import type { Plans } from '../../loader/http/plans.js'
import type { RunMount } from './run-folder.js'

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

type Tally = Omit<LedgerRow, 'count' | 'aborted' | 'first'> & { count: number; aborted: number; first: string }

/** Gathers reads of any number of packages. */
export class Ledger {
  readonly #rows = new Map<string, Tally>()
  readonly #packages = new Map<string, PackageAddress>()
  /** Records that a mount could not keep. */
  lost = 0

  add(row: Omit<LedgerRow, 'count' | 'aborted'>, { isAborted = false } = {}): void {
    const id = nameOf(row)
    const known = this.#rows.get(id)
    if (known === undefined) {
      this.#rows.set(id, { ...row, count: isAborted ? 0 : 1, aborted: isAborted ? 1 : 0 })
      return
    }
    if (isAborted) known.aborted++
    else known.count++
    if (row.first < known.first) known.first = row.first
  }

  /** What was opened through a mount of the run, which is over. */
  addMount(mount: RunMount, { index, name, topHash }: OpenedPackage): void {
    const mountedAt = Date.parse(mount.mountedAt)
    for (const path of accessLogs(mount, mountedAt)) {
      const { facts, records } = readAccessLog(path)
      if (facts.mountpoint !== mount.mountpoint || facts.mountedAt !== mountedAt) continue
      for (const { kind, ino, bytes, timeNs } of records) {
        if (kind === 'lost') this.lost += bytes
        // Without opens (open mode `none`) the first read of each file is all there is.
        if (kind === 'lost') continue
        const { key, hash, size } = index.entry(ino)
        const first = new Date(Number(timeNs / 1_000_000n)).toISOString()
        const row = {
          package: name,
          topHash,
          key,
          hashType: hash.type,
          hash: hash.hex,
          size,
          via: 'fuse',
          first,
        } as const
        if (kind === 'open' || !this.#rows.has(nameOf(row))) this.add(row)
      }
    }
  }

  /** What the run's own loader has written down that it delivered; what a plan's steps hold is computed again. */
  async addDeliveries(path: string, plans: Plans, packages: OpenPackages): Promise<void> {
    for (const delivery of deliveriesIn(path)) {
      if ('lost' in delivery) {
        this.lost += delivery.lost
        continue
      }
      const isAborted = delivery.outcome === 'aborted'
      const add = (packageName: string, topHash: string, { key, hash, size }: Entry, via: LedgerVia) =>
        this.add(
          { package: packageName, topHash, key, hashType: hash.type, hash: hash.hex, size, via, first: delivery.time },
          { isAborted },
        )
      if (delivery.as === 'entry') {
        const { keys, registry, package: name, topHash } = delivery
        this.#note({ registry, package: name, topHash })
        await packages.use({ registry, package: name, topHash }, async ({ index }) => {
          for (const key of keys) {
            const node = index.find(key)
            if (node !== undefined) add(name, topHash, index.entry(node.ino), 'entry')
          }
        })
        continue
      }
      const { plan: id, epoch, steps, positions = [], rank, world, as } = delivery
      const plan = await plans.get(id)
      await plan.use(async () => {
        const contents =
          steps === null ? [plan.at(epoch, positions)] : steps.map(step => plan.step(epoch, step, { rank, world }))
        const { package: name, topHash } = plan.address
        this.#note(plan.address)
        for (const { samples } of contents)
          for (const { facts } of samples) for (const { entry } of facts.entries) add(name, topHash, entry, as)
      })
    }
  }

  /** Those that the loader was asked for. */
  packages(): PackageAddress[] {
    return [...this.#packages.values()]
  }

  #note(address: PackageAddress): void {
    this.#packages.set(`${address.registry} ${address.package} ${address.topHash}`, address)
  }

  rows(): LedgerRow[] {
    return sorted(this.#rows.values())
  }
}

type WrittenDelivery = (Delivery & { readonly time: string }) | { readonly lost: number }

/** Lines of a file that may not be there, the last one perhaps cut. */
function* deliveriesIn(path: string): Generator<WrittenDelivery> {
  let text: string
  try {
    text = readFileSync(path, 'utf8')
  } catch (error) {
    if (systemCode(error) === 'ENOENT') return
    throw localError(`read ${path}`, error)
  }
  for (const line of text.split('\n').slice(0, -1)) yield JSON.parse(line) as WrittenDelivery
}

function accessLogs({ cacheDir, topHash }: RunMount, mountedAt: number): string[] {
  const folder = join(cacheDir, 'access')
  try {
    return readdirSync(folder)
      .filter(name => name.startsWith(`${topHash}-${mountedAt}-`))
      .map(name => join(folder, name))
  } catch (error) {
    // Made with the first record.
    if (systemCode(error) === 'ENOENT') return []
    throw error
  }
}

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

function nameOf({ package: name, topHash, key, via }: Pick<LedgerRow, 'package' | 'topHash' | 'key' | 'via'>): string {
  return `${name}\0${topHash}\0${key}\0${via}`
}

function sorted(rows: Iterable<LedgerRow>): LedgerRow[] {
  return [...rows].sort((a, b) => (nameOf(a) < nameOf(b) ? -1 : 1))
}

export function formatLedger(rows: readonly LedgerRow[]): string {
  return rows.map(row => `${JSON.stringify(row)}\n`).join('')
}

export function ledgerFacts(rows: readonly LedgerRow[], text: string): LedgerFacts {
  const sizes = new Map(rows.map(row => [`${row.package}\0${row.topHash}\0${row.key}`, row.size]))
  return {
    sha256: createHash('sha256').update(text).digest('hex'),
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

/** What a ledger says that its package does not; empty: it is a subset. */
export async function notInPackages(
  rows: AsyncIterable<LedgerRow>,
  registries: ReadonlyMap<string, string>,
  options: OpenOptions,
): Promise<string[]> {
  const opened = new Map<string, OpenedPackage>()
  const wrong: string[] = []
  try {
    for await (const row of rows) {
      const where = `${row.package}@${row.topHash.slice(0, 12)} ${JSON.stringify(row.key)}`
      const registry = registries.get(`${row.package}@${row.topHash}`)
      if (registry === undefined) {
        wrong.push(`${where}: the statement names no such package`)
        continue
      }
      const id = `${registry} ${row.package} ${row.topHash}`
      const known = opened.get(id) ?? (await open(registry, row, options))
      opened.set(id, known)
      const node = known.index.find(row.key)
      if (node?.kind !== 'file') {
        wrong.push(`${where}: the package has no such entry`)
        continue
      }
      const { hash, size } = known.index.entry(node.ino)
      if (hash.type !== row.hashType || hash.hex !== row.hash || size !== row.size)
        wrong.push(`${where}: the package says ${hash.type}:${hash.hex} of ${size} bytes`)
    }
  } finally {
    for (const one of opened.values()) one.close()
  }
  return wrong
}

function open(registry: string, { package: name, topHash }: LedgerRow, options: OpenOptions): Promise<OpenedPackage> {
  return openPackage(
    {
      registry: parseRegistry(registry),
      name: parsePackageName(name),
      revision: { kind: 'hash', prefix: topHash },
    },
    options,
  )
}

/** SHA-256 of a file, hex; undefined when it is not there. */
export function fileSha256(path: string): string | undefined {
  try {
    return createHash('sha256').update(readFileSync(path)).digest('hex')
  } catch (error) {
    if (systemCode(error) === 'ENOENT' || hasCode(error, 'ENTRY_NOT_FOUND')) return undefined
    throw error
  }
}
