/** Packages that single entries were asked of lately, kept open: opening one costs more than serving an entry. */
import { parsePackageName } from '../../daemon/model/index.js'
import type { OpenedPackage, OpenOptions } from '../../daemon/package/package-cache.js'
import { parseRegistry } from '../../daemon/registry/reference.js'
import type { PackageAddress } from './daemon-leases.js'
import type { Door } from './door.js'

interface Use {
  readonly address: PackageAddress
  readonly opening: Promise<OpenedPackage>
  users: number
}

/** Each holds two descriptors. */
const OPEN_MAX = 8

export class OpenPackages {
  readonly #uses = new Map<string, Use>()

  constructor(
    private readonly door: Door,
    private readonly options: OpenOptions,
  ) {}

  /** One that is open, by its top hash alone. */
  addressOf(topHash: string): PackageAddress | undefined {
    for (const { address } of this.#uses.values()) if (address.topHash === topHash) return address
    return undefined
  }

  /** Open while `run` runs. Throws what opening throws. */
  async use<T>(address: PackageAddress, run: (opened: OpenedPackage) => Promise<T>): Promise<T> {
    const key = `${address.registry} ${address.package} ${address.topHash}`
    const use = this.#uses.get(key) ?? { address, opening: this.#open(address), users: 0 }
    // The last in the map is the one that was used last.
    this.#uses.delete(key)
    this.#uses.set(key, use)
    use.users++
    try {
      return await run(await use.opening)
    } catch (error) {
      const isOpen = await use.opening.then(
        () => true,
        () => false,
      )
      if (!isOpen && this.#uses.get(key) === use) this.#uses.delete(key)
      throw error
    } finally {
      use.users--
      this.#closeIdle(OPEN_MAX)
    }
  }

  close(): void {
    this.#closeIdle(0)
  }

  #open({ registry, package: name, topHash }: PackageAddress): Promise<OpenedPackage> {
    const revision = { kind: 'hash', prefix: topHash } as const
    return this.door.open({ registry: parseRegistry(registry), name: parsePackageName(name), revision }, this.options)
  }

  #closeIdle(most: number): void {
    for (const [key, { users, opening }] of this.#uses) {
      if (this.#uses.size <= most) return
      if (users > 0) continue
      this.#uses.delete(key)
      void opening.then(opened => opened.close()).catch(() => {})
    }
  }
}
