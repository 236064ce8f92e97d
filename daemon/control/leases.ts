/**
 * Objects that a caller in another process (the loader) has asked to have here: fetched where they are missing,
 * checked, and protected from eviction until it lets them go.
 *
 * A lease is named by its owner and a word of the owner's choosing. An owner that is not heard of for OWNER_MS loses all
 * of its leases. They end with this process: who still needs them asks again, and `renew` tells how many there are.
 */

import type { Fetcher } from '../fetch/fetcher.js'
import { BobbinError, hasCode, type Log, parsePackageName, type Source } from '../model/index.js'
import { type OpenedPackage, openPackage } from '../quilt/package-cache.js'
import { parseRegistry } from '../quilt/reference.js'
import type { ObjectHandle } from '../store/index.js'
import { problemOf } from './errors.js'
import type { LeaseAnswer, LeaseBody, OwnerFacts, ReleaseBody } from './schema.js'

interface Lease {
  /** In the order of the inodes that were asked for; a hole: it could not be had. */
  readonly pins: (ObjectHandle | undefined)[]
  bytes: number
}

interface Owner {
  readonly leases: Map<string, Lease>
  facts: OwnerFacts | undefined
  seenMs: number
}

interface OpenPackageUse {
  readonly opening: Promise<OpenedPackage>
  users: number
}

/** Longer than any pause of a process that goes on. */
const OWNER_MS = 60_000
const SWEEP_MS = 5000
const OWNERS_MAX = 1000
const LEASES_MAX = 100_000
/** Kept open after their last use. */
const PACKAGES_MAX = 16

export interface LeasesOptions {
  readonly cacheDir: string
  readonly source: Source
  readonly offline: boolean
  readonly fetcher: Fetcher
  readonly log: Log
}

export class Leases {
  readonly #owners = new Map<string, Owner>()
  readonly #packages = new Map<string, OpenPackageUse>()
  readonly #timer: NodeJS.Timeout

  constructor(private readonly options: LeasesOptions) {
    this.#timer = setInterval(() => this.#sweep(), SWEEP_MS)
    this.#timer.unref()
  }

  /**
   * Waits until every object is here or has failed; `signal`: the caller has gone, and what this call has pinned is let
   * go. Throws what opening the package throws, and INTERRUPTED.
   */
  async lease(body: LeaseBody, signal: AbortSignal): Promise<LeaseAnswer> {
    const opened = await this.#use(body)
    const failed: LeaseAnswer['failed'] = []
    const pins: (ObjectHandle | undefined)[] = await Promise.all(
      body.inos.map(async ino => {
        try {
          const entry = opened.package.index.entry(ino)
          return await this.options.fetcher.open(entry, { signal, label: entry.key })
        } catch (error) {
          const { code, detail } = problemOf(error)
          failed.push({ ino, code, detail })
          return undefined
        }
      }),
    ).finally(() => opened.done())
    if (signal.aborted) {
      for (const pin of pins) void pin?.close()
      throw new BobbinError('INTERRUPTED', 'the caller has gone')
    }
    this.#add(body.owner, body.lease, pins)
    return { failed }
  }

  async release({ owner: name, leases }: ReleaseBody): Promise<void> {
    const owner = this.#owner(name)
    for (const { lease } of leases) {
      const held = owner.leases.get(lease)
      owner.leases.delete(lease)
      for (const pin of held?.pins ?? []) await pin?.close()
    }
  }

  renew(name: string, facts: OwnerFacts | undefined): number {
    const owner = this.#owner(name)
    if (facts !== undefined) owner.facts = facts
    return owner.leases.size
  }

  close(): void {
    clearInterval(this.#timer)
    for (const name of [...this.#owners.keys()]) this.#end(name)
    for (const { opening } of this.#packages.values()) void opening.then(opened => opened.close()).catch(() => {})
  }

  #add(name: string, leaseName: string, pins: readonly (ObjectHandle | undefined)[]): void {
    const { leases } = this.#owner(name)
    let lease = leases.get(leaseName)
    if (lease === undefined) {
      if (leases.size >= LEASES_MAX) {
        for (const pin of pins) void pin?.close()
        throw new BobbinError('BUSY', `the owner ${name} has ${LEASES_MAX} leases already`)
      }
      lease = { pins: [], bytes: 0 }
      leases.set(leaseName, lease)
    }
    for (const pin of pins) {
      lease.pins.push(pin)
      lease.bytes += pin?.size ?? 0
    }
  }

  #owner(name: string): Owner {
    let owner = this.#owners.get(name)
    if (owner === undefined) {
      if (this.#owners.size >= OWNERS_MAX)
        throw new BobbinError('BUSY', `there are ${OWNERS_MAX} owners of leases already`)
      owner = { leases: new Map(), facts: undefined, seenMs: 0 }
      this.#owners.set(name, owner)
    }
    owner.seenMs = Date.now()
    return owner
  }

  #sweep(): void {
    for (const [name, { seenMs, leases }] of this.#owners) {
      if (Date.now() - seenMs < OWNER_MS) continue
      this.options.log.warn({ owner: name, leases: leases.size }, 'an owner of leases was not heard of, and loses them')
      this.#end(name)
    }
  }

  #end(name: string): void {
    for (const { pins } of this.#owners.get(name)?.leases.values() ?? []) for (const pin of pins) void pin?.close()
    this.#owners.delete(name)
  }

  async #use(address: Pick<LeaseBody, 'registry' | 'package' | 'topHash'>) {
    const key = `${address.registry} ${address.package} ${address.topHash}`
    let use = this.#packages.get(key)
    if (use === undefined) {
      const { cacheDir, source, offline } = this.options
      const reference = {
        registry: parseRegistry(address.registry),
        name: parsePackageName(address.package),
        revision: { kind: 'hash', prefix: address.topHash },
      } as const
      use = { opening: openPackage(reference, { cacheDir, source, offline, quarantine: true }), users: 0 }
      this.#packages.set(key, use)
    } else {
      // The last in the map is the one that was used last.
      this.#packages.delete(key)
      this.#packages.set(key, use)
    }
    use.users++
    const { opening } = use
    const done = () => {
      use.users--
      this.#closeIdle()
    }
    try {
      const opened = await opening
      try {
        opened.index.node(1)
      } catch (error) {
        if (!hasCode(error, 'INDEX_DAMAGED')) throw error
        await opened.rebuild()
      }
      return { package: opened, done }
    } catch (error) {
      if (this.#packages.get(key) === use) this.#packages.delete(key)
      use.users--
      throw error
    }
  }

  #closeIdle(): void {
    for (const [key, { users, opening }] of this.#packages) {
      if (this.#packages.size <= PACKAGES_MAX) return
      if (users > 0) continue
      this.#packages.delete(key)
      void opening.then(opened => opened.close()).catch(() => {})
    }
  }
}
