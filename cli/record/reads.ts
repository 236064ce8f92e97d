/**
 * Where the ledger comes from: the access logs of a run's mounts, and what its loader has written down. Both are read record by
 * record and counted by inode number; keys and hashes are looked up once for each entry, when the rows are asked for.
 */
import { readdirSync } from 'node:fs'
import { join } from 'node:path'
import { setImmediate } from 'node:timers/promises'
import { hasCode, systemCode, throwIfAborted } from '../../daemon/model/index.js'
import { readAccessLog } from '../../daemon/mount/access-log.js'
import { accessFolder } from '../../daemon/mount/access-logs.js'
import type { OpenedPackage } from '../../daemon/package/package-cache.js'
import type { PackageAddress } from '../../loader/supply/daemon-leases.js'
import type { BatchDelivery, Delivery, EntriesDelivery } from '../../loader/supply/deliveries.js'
import type { OpenPackages } from '../../loader/supply/open-packages.js'
import type { Plans } from '../../loader/supply/plans.js'
import type { LedgerRow, LedgerVia } from './ledger-row.js'
import { linesOf } from './lines.js'
import { PackageRows } from './package-rows.js'
import type { RunFacts, RunMount } from './run-facts.js'
import { Tally } from './tally.js'

/** A list of 10,000 entries with keys of 1,000 bytes has a tenth of this. */
const DELIVERY_BYTES_MAX = 100 * 2 ** 20
/** A time that is no time: a record was damaged. Unix milliseconds, the end of the year 9999. */
const TIME_MAX = Date.UTC(10_000, 0) - 1

/** Records without a look at what else there is to do. */
const AT_ONCE = 10_000

interface PackageReads {
  readonly address: PackageAddress
  readonly tallies: Map<LedgerVia, Tally>
}

/** Gathers reads of any number of packages. */
export class Reads {
  readonly #reads = new Map<string, PackageReads>()
  readonly #loaded = new Map<string, PackageAddress>()
  /** Records that a mount or the loader could not keep, or that are damaged. */
  lost = 0
  #records = 0

  /** Its methods throw INTERRUPTED when the signal has fired. */
  constructor(private readonly signal?: AbortSignal) {}

  /** What was opened through a mount of the run, which is over. */
  async addMount(mount: RunMount): Promise<void> {
    const mountedAt = Date.parse(mount.mountedAt)
    const { registry, package: name, topHash } = mount
    const tally = this.#tally({ registry, package: name, topHash }, 'fuse')
    for (const path of accessLogs(mount, mountedAt)) {
      const log = readAccessLog(path)
      if (log === undefined) this.lost++
      if (log?.facts.mountpoint !== mount.mountpoint || log.facts.mountedAt !== mountedAt) continue
      for (const { kind, ino, bytes, timeNs } of log.records) {
        if (++this.#records % AT_ONCE === 0) await this.#breathe()
        if (kind === 'lost') this.lost += bytes
        // Without opens (open mode `none`) the first read of each file is all there is.
        else if (kind === 'open' || !tally.has(ino)) this.#add(tally, ino, Number(timeNs / 1_000_000n))
      }
    }
  }

  /** What the run's own loader has written down that it delivered; what a plan's steps hold is computed again. */
  async addDeliveries(path: string, plans: Plans, packages: OpenPackages): Promise<void> {
    for await (const delivery of deliveriesIn(path)) {
      if ('lost' in delivery) {
        this.lost += delivery.lost
        continue
      }
      try {
        if (delivery.as === 'entry') await this.#addEntries(delivery, packages)
        else await this.#addBatch(delivery, plans)
      } catch (error) {
        // A plan that was cleared away, or a step that it has not: what was delivered cannot be known any more.
        if (!hasCode(error, 'PLAN_NOT_FOUND', 'INVALID_ARGUMENT')) throw error
        this.lost++
      }
    }
  }

  async #addEntries(delivery: EntriesDelivery & Timed, packages: OpenPackages): Promise<void> {
    const { keys, registry, package: name, topHash, time } = delivery
    const isAborted = delivery.outcome === 'aborted'
    const address = { registry, package: name, topHash }
    this.#note(address)
    const tally = this.#tally(address, 'entry')
    await packages.use(address, async ({ index }) => {
      for (const key of keys) {
        const node = index.find(key)
        if (node !== undefined) this.#add(tally, node.ino, Date.parse(time), { isAborted })
      }
    })
  }

  async #addBatch(delivery: BatchDelivery & Timed, plans: Plans): Promise<void> {
    const { plan: id, epoch, steps, positions = [], rank, world, as, time } = delivery
    const isAborted = delivery.outcome === 'aborted'
    await plans.use(id, async plan => {
      this.#note(plan.address)
      const tally = this.#tally(plan.address, as)
      for (const step of steps ?? [null]) {
        const { inos } = step === null ? plan.at(epoch, positions) : plan.step(epoch, step, { rank, world })
        for (const ino of inos) this.#add(tally, ino, Date.parse(time), { isAborted })
      }
    })
  }

  /** Those that the loader was asked for. */
  packages(): PackageAddress[] {
    return [...this.#loaded.values()]
  }

  /** All of it, in the order of the ledger. `lost` is whole when they have been taken. */
  async *rows(open: (address: PackageAddress) => Promise<OpenedPackage>): AsyncGenerator<LedgerRow> {
    const inOrder = [...this.#reads].sort(([a], [b]) => (a < b ? -1 : 1))
    for (const [id, { address, tallies }] of inOrder) {
      if ([...tallies.values()].every(tally => tally.isEmpty)) continue
      const opened = await open(address)
      try {
        const byVia = [...tallies].sort(([a], [b]) => (a < b ? -1 : 1))
        const rows = new PackageRows(opened, byVia)
        for (const row of rows) {
          if (++this.#records % AT_ONCE === 0) await this.#breathe()
          yield row
        }
        this.lost += rows.lost
      } finally {
        opened.close()
      }
      this.#reads.delete(id)
    }
  }

  /** Files are read and written synchronously here, and signals want to be heard. */
  async #breathe(): Promise<void> {
    await setImmediate()
    throwIfAborted(this.signal)
  }

  #add(tally: Tally, ino: number, time: number, options?: { readonly isAborted: boolean }): void {
    if (time >= 0 && time <= TIME_MAX) tally.add(ino, time, options)
    else this.lost++
  }

  /** Of two registries with one revision, entries and inode numbers are the same. */
  #tally(address: PackageAddress, via: LedgerVia): Tally {
    const id = `${address.package}\0${address.topHash}`
    const reads = this.#reads.get(id) ?? { address, tallies: new Map() }
    const tally = reads.tallies.get(via) ?? new Tally()
    this.#reads.set(id, reads)
    reads.tallies.set(via, tally)
    return tally
  }

  #note(address: PackageAddress): void {
    this.#loaded.set(`${address.registry} ${address.package} ${address.topHash}`, address)
  }
}

interface Timed {
  readonly time: string
}

type WrittenDelivery = (Delivery & Timed) | { readonly lost: number }

/** Lines of a file that may not be there; some may be cut, by a process that was killed or a disk that was full for a while. */
async function* deliveriesIn(path: string): AsyncGenerator<WrittenDelivery> {
  try {
    for await (const line of linesOf(path, { lineBytesMax: DELIVERY_BYTES_MAX }))
      if (line !== '') yield deliveryIn(line)
  } catch (error) {
    if (systemCode(error instanceof Error ? error.cause : undefined) !== 'ENOENT') throw error
  }
}

function deliveryIn(line: string): WrittenDelivery {
  try {
    return JSON.parse(line) as WrittenDelivery
  } catch {
    return { lost: 1 }
  }
}

/** A cache keeps the logs of mounts that have ended for a while. A mount that nobody read has none: that is not known then. */
export function areLogsThere({ mounts }: RunFacts): boolean {
  return mounts.every(mount => accessLogs(mount, Date.parse(mount.mountedAt)).length > 0)
}

function accessLogs({ cacheDir, topHash }: RunMount, mountedAt: number): string[] {
  const folder = accessFolder(cacheDir)
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
