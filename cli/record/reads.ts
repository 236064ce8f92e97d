/** Where the ledger comes from: the access logs of a run's mounts, and what its loader has written down. */
import { readdirSync } from 'node:fs'
import { type FileHandle, open } from 'node:fs/promises'
import { join } from 'node:path'
import { type Entry, localError, systemCode } from '../../daemon/model/index.js'
import { readAccessLog } from '../../daemon/mount/access-log.js'
import type { OpenedPackage } from '../../daemon/quilt/package-cache.js'
import type { Delivery } from '../../loader/http/deliveries.js'
import type { PackageAddress } from '../../loader/http/objects.js'
import type { OpenPackages } from '../../loader/http/open-packages.js'
import type { Plans } from '../../loader/http/plans.js'
import { type LedgerRow, type LedgerVia, nameOf, sorted, type Tally } from './ledger.js'
import type { RunFacts, RunMount } from './run-facts.js'

/** Gathers reads of any number of packages. */
export class Reads {
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
    for await (const delivery of deliveriesIn(path)) {
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
      await plans.use(id, async plan => {
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

/** Lines of a file that may not be there; some may be cut, by a process that was killed or a disk that was full for a while. */
async function* deliveriesIn(path: string): AsyncGenerator<WrittenDelivery> {
  let file: FileHandle | undefined
  try {
    file = await open(path)
    // Line by line: at the end of a long job it is larger than a string may be.
    for await (const line of file.readLines()) if (line !== '') yield deliveryIn(line)
  } catch (error) {
    if (systemCode(error) === 'ENOENT') return
    throw localError(`read ${path}`, error)
  } finally {
    await file?.close()
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
