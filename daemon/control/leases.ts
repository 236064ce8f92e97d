/**
 * Objects that a caller in another process (the loader) has asked to have here: fetched where they are missing,
 * checked, and protected from eviction until it lets them go.
 *
 * A lease is named by its owner and a word of the owner's choosing. An owner that is not heard of for OWNER_MS loses all
 * of its leases. They end with this process: who still needs them asks again, and `renew` tells how many there are.
 *
 * A fetch reads with the daemon's rights what a manifest names, and a caller may name the manifest. So each call has a
 * `Served`: what may be had at the door that the caller came through. A caller may ask for less (`places` of a lease), which
 * is how a loader passes its own door's rule on.
 */
import { setMaxListeners } from 'node:events'
import type { Fetcher, Pin } from '../fetch/fetcher.js'
import {
  BobbinError,
  type Entry,
  formatPhysicalKey,
  hasCode,
  type Log,
  type ObjectSpec,
  parsePackageName,
  parsePhysicalKey,
  type Source,
  throwIfAborted,
} from '../model/index.js'
import { atPresentPlace } from '../package/moved-objects.js'
import { type OpenedPackage, openPackage } from '../package/package-cache.js'
import { parseRegistry } from '../registry/reference.js'
import { confined, isBelowOne, isWithin, type Places, Served } from '../registry/served.js'
import type { ObjectId, ObjectStore } from '../store/index.js'
import type { Workers } from '../work/workers.js'
import { Concealer } from './conceal.js'
import { isDoorFull } from './doors.js'
import { problemOf } from './errors.js'
import type { FindAnswer, FindBody, LeaseAnswer, LeaseBody, LoaderFacts, OwnerFacts, ReleaseBody } from './schema.js'

interface Lease {
  /** In the order of the inodes that were asked for; a hole: it could not be had. */
  readonly pins: (Pin | undefined)[]
  bytes: number
}

interface Owner {
  readonly leases: Map<string, Lease>
  /** Of all leases. */
  pins: number
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
/** Of those who come through one door. */
const OWNERS_MAX = 1000
/** Of an owner. */
const LEASES_MAX = 100_000
/** Of an owner: some hundred bytes of memory each. */
const PINS_MAX = 5_000_000
/** Kept open after their last use. */
const PACKAGES_MAX = 16
/** CRC64NVME is no name for an object that anybody can ask for: others may have the same. */
const OBJECT_ID = /^(sha256|sha2-256-chunked)\/([0-9a-f]{64})$/
/** Only the name of a CRC64NVME has to do with it. */
const ANYWHERE = parsePhysicalKey('file:///')

export interface LeasesOptions {
  readonly cacheDir: string
  readonly source: Source
  /** A reload changes it. */
  readonly isOffline: () => boolean
  readonly fetcher: Fetcher
  readonly store: ObjectStore
  readonly workers: Workers
  readonly log: Log
}

export class Leases {
  readonly #owners = new Map<string, Owner>()
  readonly #packages = new Map<string, OpenPackageUse>()
  readonly #timer: NodeJS.Timeout
  readonly #concealer: Concealer

  constructor(private readonly options: LeasesOptions) {
    this.#concealer = new Concealer('the daemon', options.log)
    this.#timer = setInterval(() => this.#sweep(), SWEEP_MS)
    this.#timer.unref()
  }

  /**
   * Waits until every object is here or has failed; `signal`: the caller has gone, and what this call has pinned is let
   * go. Throws what opening the package throws, and INTERRUPTED. A caller for whom not everything is served is told nothing
   * that was found (conceal.ts), and gets NOT_SERVED for all that is outside.
   */
  async lease(body: LeaseBody, signal: AbortSignal, served: Served = Served.everything): Promise<LeaseAnswer> {
    // One listener an object that is waited for.
    setMaxListeners(0, signal)
    const told = (error: unknown) => (served.isEverything ? error : this.#concealer.concealFound(error))
    if (!served.admits(body)) throw told(new BobbinError('ACCESS_DENIED', notServed(body)))
    const bounds = [served.placesOf(body), body.places].filter(places => places !== undefined)
    const within = foldersOf(bounds)
    const opened = await this.#use(body, within).catch(error => Promise.reject(told(error)))
    const { fetcher } = this.options
    const failed: LeaseAnswer['failed'] = []
    const pins: (Pin | undefined)[] = new Array(body.inos.length)
    const pinOrFetch = async (ino: number, i: number) => {
      try {
        const entry = await entryOf(opened.package, ino)
        requireWithin(entry, bounds)
        pins[i] = await atPresentPlace(opened.package, entry, present => {
          requireWithin(present, bounds)
          return fetcher.pin(present, { signal, label: present.key, priority: body.priority, within })
        })
      } catch (error) {
        const { code, detail } = problemOf(told(error))
        failed.push({ ino, code, detail })
      }
    }
    try {
      const waiting: Promise<void>[] = []
      for (const [i, ino] of body.inos.entries()) {
        // Most are here, and a promise each would cost more than the pin.
        const pin = this.#pinNow(opened.package, ino, bounds)
        if (pin === undefined) waiting.push(pinOrFetch(ino, i))
        else pins[i] = pin
      }
      await Promise.all(waiting)
    } finally {
      opened.done()
    }
    if (signal.aborted) {
      releaseAll(pins)
      throw new BobbinError('INTERRUPTED', 'the caller has gone')
    }
    this.#add(body.owner, body.lease, pins)
    return { failed }
  }

  /**
   * Objects that are in the store, whatever package they are of: leased, or null. Throws INVALID_ARGUMENT, INTERRUPTED, and
   * NOT_SERVED for whoever may not have everything: a hash does not say which package it is asked of.
   */
  async find(
    { owner, lease, ids }: FindBody,
    signal: AbortSignal,
    served: Served = Served.everything,
  ): Promise<FindAnswer> {
    if (!served.isEverything)
      throw this.#concealer.concealFound(new BobbinError('ACCESS_DENIED', 'objects by hash are for the owner alone'))
    const pins: (Pin | undefined)[] = []
    try {
      for (const id of ids) {
        throwIfAborted(signal)
        pins.push(await this.#find(id))
      }
    } catch (error) {
      releaseAll(pins)
      throw error
    }
    this.#add(owner, lease, pins)
    return { found: ids.map((id, i) => (pins[i] === undefined ? null : { id, size: pins[i].size })) }
  }

  async #find(id: string): Promise<Pin | undefined> {
    const [, type, hex] = OBJECT_ID.exec(id) ?? []
    if (type === undefined) throw new BobbinError('INVALID_ARGUMENT', `not an object's id: ${JSON.stringify(id)}`)
    const { store } = this.options
    const size = store.sizeOf(id as ObjectId)
    if (size === undefined) return undefined
    const hash = { type: type === 'sha256' ? 'SHA256' : 'sha2-256-chunked', hex: hex! } as const
    const spec = { hash, size, physicalKey: ANYWHERE }
    // One that was not checked since it was touched is hashed first, and may turn out to be none.
    return store.pinNow(spec) ?? (await pinOf(store, spec))
  }

  release({ owner: name, leases }: ReleaseBody): void {
    const owner = this.#owner(name)
    for (const { lease, distances } of leases) {
      const held = owner.leases.get(lease)
      owner.leases.delete(lease)
      owner.pins -= held?.pins.length ?? 0
      for (const [i, pin] of held?.pins.entries() ?? []) {
        const distance = distances?.[i]
        pin?.release(distance !== undefined && distance >= 0 ? distance : undefined)
      }
    }
  }

  facts(): LoaderFacts | null {
    if (this.#owners.size === 0) return null
    const owners = [...this.#owners].map(([owner, { facts, leases, seenMs }]) => {
      let bytes = 0
      for (const lease of leases.values()) bytes += lease.bytes
      return { owner, ...facts, leases: leases.size, bytes, lastSeen: new Date(seenMs).toISOString() }
    })
    return { owners, leasedBytes: owners.reduce((sum, { bytes }) => sum + bytes, 0) }
  }

  renew(name: string, facts: OwnerFacts | undefined): number {
    const owner = this.#owner(name)
    // A loader that has just come will soon want something fetched.
    if (facts !== undefined && owner.facts === undefined) void this.options.workers.prepare()
    if (facts !== undefined) owner.facts = facts
    return owner.leases.size
  }

  close(): void {
    clearInterval(this.#timer)
    for (const name of [...this.#owners.keys()]) this.#end(name)
    for (const { opening } of this.#packages.values()) void opening.then(opened => opened.close()).catch(() => {})
  }

  #pinNow({ index }: OpenedPackage, ino: number, bounds: readonly Places[]): Pin | undefined {
    try {
      const spec = index.object(ino)
      // Also of what is here: it must not depend on what others have read whether something is served.
      requireWithin(spec, bounds)
      return this.options.fetcher.pinNow(spec)
    } catch {
      // Told by who goes the long way.
      return undefined
    }
  }

  /** Takes the pins over, or lets them go and throws BUSY. */
  #add(name: string, leaseName: string, pins: readonly (Pin | undefined)[]): void {
    try {
      const owner = this.#owner(name)
      const lease = owner.leases.get(leaseName) ?? { pins: [], bytes: 0 }
      if (owner.leases.size >= LEASES_MAX) throw new BobbinError('BUSY', `${name} has ${LEASES_MAX} leases already`)
      if (owner.pins + pins.length > PINS_MAX) throw new BobbinError('BUSY', `${name} has ${PINS_MAX} objects already`)
      owner.leases.set(leaseName, lease)
      owner.pins += pins.length
      for (const pin of pins) {
        lease.pins.push(pin)
        lease.bytes += pin?.size ?? 0
      }
    } catch (error) {
      releaseAll(pins)
      throw error
    }
  }

  #owner(name: string): Owner {
    let owner = this.#owners.get(name)
    if (owner === undefined) {
      if (isDoorFull(this.#owners.keys(), name, OWNERS_MAX))
        throw new BobbinError('BUSY', `there are ${OWNERS_MAX} owners of leases already`)
      owner = { leases: new Map(), pins: 0, facts: undefined, seenMs: 0 }
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
    for (const { pins } of this.#owners.get(name)?.leases.values() ?? []) releaseAll(pins)
    this.#owners.delete(name)
  }

  /** Callers with different rights share no opening: a manifest is a file like others, and may be a link that leads out. */
  async #use(address: Pick<LeaseBody, 'registry' | 'package' | 'topHash'>, within: readonly string[] | undefined) {
    const key = JSON.stringify([address.registry, address.package, address.topHash, within])
    let use = this.#packages.get(key)
    if (use === undefined) {
      const { cacheDir, isOffline, store: room } = this.options
      const source = confined(this.options.source, within)
      const reference = {
        registry: parseRegistry(address.registry),
        name: parsePackageName(address.package),
        revision: { kind: 'hash', prefix: address.topHash },
      } as const
      use = {
        opening: openPackage(reference, { cacheDir, source, offline: isOffline(), room, quarantine: true }),
        users: 0,
      }
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
      return { package: await opening, done }
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

function notServed({ registry, package: name, topHash }: LeaseBody): string {
  return `${registry}/${name}@${topHash} is not mounted here, and its registry was not allowed`
}

/** Throws ACCESS_DENIED for a physical key that leads out, as far as its text says. */
export function requireWithin({ physicalKey, size, hash }: ObjectSpec, bounds: readonly Places[]): void {
  if (bounds.every(places => isWithin(physicalKey, places))) return
  throw new BobbinError(
    'ACCESS_DENIED',
    `${formatPhysicalKey(physicalKey)} (${size} bytes, ${hash.type} ${hash.hex}) is outside of what is served`,
  )
}

/** What files have to lie in when they are opened. Of two bounds the narrower one, as folders that are in both. */
function foldersOf(bounds: readonly Places[]): readonly string[] | undefined {
  if (bounds.length === 0) return undefined
  return bounds.map(({ folders }) => folders).reduce((a, b) => [...below(a, b), ...below(b, a)])
}

function below(inner: readonly string[], outer: readonly string[]): string[] {
  return inner.filter(folder => outer.includes(folder) || isBelowOne(folder, outer))
}

async function entryOf(opened: OpenedPackage, ino: number): Promise<Entry> {
  try {
    return opened.index.entry(ino)
  } catch (error) {
    if (!hasCode(error, 'INDEX_DAMAGED')) throw error
    await opened.rebuild()
    return opened.index.entry(ino)
  }
}

function releaseAll(pins: readonly (Pin | undefined)[]): void {
  for (const pin of pins) pin?.release()
}

async function pinOf(store: ObjectStore, spec: ObjectSpec): Promise<Pin | undefined> {
  const object = await store.open(spec)
  const pin = object?.pin()
  await object?.close()
  return pin
}
