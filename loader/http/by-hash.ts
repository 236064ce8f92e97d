/**
 * Entries of served packages by the hash of their bytes. The store is not asked: whether an object lies in it is
 * the business of whoever put it there. What the served packages name is had by this hash, fetched like any other entry,
 * and everything else is nothing that is known here.
 *
 * One table of inode numbers per package, in the order of their hashes' first four bytes: 8 to 16 bytes per entry, made
 * when it is first needed.
 */
import { setImmediate as turn } from 'node:timers/promises'
import { LRUCache } from 'lru-cache'
import type { PackageIndex } from '../../daemon/index/package-index.js'
import type { PackageAddress } from '../supply/daemon-leases.js'
import type { Door } from '../supply/door.js'
import type { OpenPackages } from '../supply/open-packages.js'
import type { Plans } from '../supply/plans.js'

/** Slots of all tables together: 64 MiB, eight million entries. */
const SLOTS_MAX = 2 ** 24
/** Of packages that only plans name, so that a hash which nobody has does not open a thousand of them. */
const PLANS_LOOKED_AT_MAX = 16
/** Others are answered in between. */
const ENTRIES_PER_TURN = 5000

export interface NamedEntry {
  readonly address: PackageAddress
  readonly ino: number
}

export class ByHash {
  readonly #tables = new LRUCache<string, Promise<Uint32Array>>({ max: 1000 })

  constructor(
    private readonly door: Door,
    private readonly packages: OpenPackages,
    private readonly plans: Plans,
  ) {}

  /** `undefined`: no served package has such an entry. Throws what opening a package throws. */
  async find(hex: string): Promise<NamedEntry | undefined> {
    for (const address of this.#addresses()) {
      const ino = await this.packages.use(address, async ({ index }) =>
        look(await this.#table(address, index), index, hex),
      )
      if (ino !== undefined) return { address, ino }
    }
    return undefined
  }

  #addresses(): PackageAddress[] {
    const found = new Map(this.door.served.revisions.map(address => [keyOf(address), address]))
    let plans = 0
    for (const address of this.plans.addresses()) {
      if (++plans > PLANS_LOOKED_AT_MAX) break
      found.set(keyOf(address), address)
    }
    return [...found.values()]
  }

  #table(address: PackageAddress, index: PackageIndex): Promise<Uint32Array> {
    const key = keyOf(address)
    let table = this.#tables.get(key)
    if (table === undefined) {
      table = makeTable(index)
      this.#tables.set(key, table)
      table.then(
        () => this.#forgetOldest(),
        () => this.#tables.delete(key),
      )
    }
    return table
  }

  async #forgetOldest(): Promise<void> {
    let slots = 0
    // The one that was used last comes first.
    for (const [key, table] of this.#tables.entries()) {
      slots += (await table.catch(() => [])).length
      if (slots > SLOTS_MAX) this.#tables.delete(key)
    }
  }
}

/** Open addressing: an inode number where its hash says, or in the next free slot behind; 0 is free. */
async function makeTable(index: PackageIndex): Promise<Uint32Array> {
  const slots = new Uint32Array(2 ** Math.ceil(Math.log2(2 * index.facts.entries + 1)))
  let count = 0
  for (const { node } of index.walk()) {
    if (++count % ENTRIES_PER_TURN === 0) await turn()
    if (node.kind !== 'file') continue
    const { type, hex } = index.object(node.ino).hash
    // Whoever knows a CRC64NVME knows nothing of the bytes: it is no name for them.
    if (type === 'CRC64NVME') continue
    let at = slotOf(hex, slots)
    while (slots[at] !== 0) at = (at + 1) % slots.length
    slots[at] = node.ino
  }
  return slots
}

function look(slots: Uint32Array, index: PackageIndex, hex: string): number | undefined {
  for (let at = slotOf(hex, slots); slots[at] !== 0; at = (at + 1) % slots.length)
    if (index.object(slots[at]!).hash.hex === hex) return slots[at]
  return undefined
}

function slotOf(hex: string, slots: Uint32Array): number {
  return Number.parseInt(hex.slice(0, 8), 16) % slots.length
}

function keyOf({ registry, package: name, topHash }: PackageAddress): string {
  return `${registry} ${name} ${topHash}`
}
