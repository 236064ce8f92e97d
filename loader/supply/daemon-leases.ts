/**
 * The loader's side of the daemon: asks it to have objects here, checked and protected from eviction, for as
 * long as a lease is held.
 *
 * The daemon may die at any moment and come back without our leases: every renewal compares how many it has,
 * and what is still held is asked for again. Calls wait for the next daemon, up to PATIENCE_MS.
 */
import { randomBytes } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import type { DaemonClient } from '../../daemon/control/client.js'
import type { DaemonOptions } from '../../daemon/control/daemon.js'
import { ensureDaemon } from '../../daemon/control/launch.js'
import type { LeaseBody } from '../../daemon/control/schema.js'
import { BobbinError, ERROR_CODES, hasCode, type Log, throwIfAborted } from '../../daemon/model/index.js'
import type { Places, RevisionAddress } from '../../daemon/registry/served.js'
import type { Door } from './door.js'

/** Which package, as the daemon wants it. */
export type PackageAddress = RevisionAddress

export function isSamePlace(a: PackageAddress, b: PackageAddress): boolean {
  return a.registry === b.registry && a.package === b.package && a.topHash === b.topHash
}

export type Priority = 'demand' | 'ahead'

export interface Lease {
  readonly id: string
  /** By inode number: what could not be had. */
  readonly failed: ReadonlyMap<number, BobbinError>
  /** Once. Distances: bytes until each object's next use, in the order of the inodes. */
  release(distances?: () => readonly number[]): void
}

export interface FoundObject {
  readonly id: string
  /** Bytes. */
  readonly size: number
}

interface Held {
  readonly places: readonly PackageAddress[]
  readonly inos: readonly number[]
}

/** A daemon is back after a second; who restarts it by hand takes longer. */
const PATIENCE_MS = 60_000
/** At our start it may just have been stopped. */
const FIRST_PATIENCE_MS = 5000
const RETRY_MS = 100
const RENEW_MS = 10_000
/** Releases wait so long for others to go with them. */
const RELEASE_MS = 20
/** Kept for a daemon that is not there; one that is gone for long holds nothing. */
const RELEASES_MAX = 100_000

export class Objects {
  readonly #owner = randomBytes(9).toString('base64url')
  readonly #held = new Map<string, Held>()
  readonly #timer: NodeJS.Timeout
  #releases: { lease: string; distances?: readonly number[] }[] = []
  #releaseTimer: NodeJS.Timeout | undefined
  #client: DaemonClient | undefined
  /** Who waits for a daemon waits for one and the same. */
  #connecting: Promise<DaemonClient> | undefined
  #renewing: Promise<void> | undefined
  #leases = 0
  #isClosed = false

  constructor(
    private readonly daemon: DaemonOptions,
    private readonly facts: { readonly pid: number; readonly socket: string },
    private readonly door: Door,
    private readonly log: Log,
  ) {
    this.#timer = setInterval(() => void this.#renew(), RENEW_MS)
    this.#timer.unref()
  }

  get leases(): number {
    return this.#held.size
  }

  /** Starts the daemon when none runs. */
  async #connect(): Promise<DaemonClient> {
    if (this.#client !== undefined) return this.#client
    this.#connecting ??= this.#findDaemon().finally(() => {
      this.#connecting = undefined
    })
    return this.#connecting
  }

  async #findDaemon(): Promise<DaemonClient> {
    const { client, isStarted } = await ensureDaemon(this.daemon)
    if (isStarted) this.log.info({ daemon: client.pid }, 'started the daemon')
    this.#client = client
    void this.#renew()
    return client
  }

  /** Bytes that the store may hold. Throws DAEMON_UNAVAILABLE soon, since nothing has been served yet. */
  async storeLimit(): Promise<number> {
    const { cache } = await this.#call(client => client.status(), { patienceMs: FIRST_PATIENCE_MS })
    return cache.limitBytes
  }

  /** Is there a daemon that answers? */
  async isReady(): Promise<boolean> {
    const client = await this.#connect().catch(() => undefined)
    if ((await client?.isAlive()) === true) return true
    this.#client = undefined
    return false
  }

  /**
   * Waits until every object is here or has failed. Throws INTERRUPTED, DAEMON_UNAVAILABLE (after a minute without
   * one), and what concerns the whole package (PACKAGE_REFUSED, REVISION_NOT_FOUND, …). What the first place does not have
   * is asked of the next one.
   */
  async lease(
    places: readonly PackageAddress[],
    inos: readonly number[],
    options: { readonly priority: Priority; readonly signal?: AbortSignal | undefined },
  ): Promise<Lease> {
    const id = `${this.#owner}.${++this.#leases}`
    const { priority, signal } = options
    const failed = await this.#fill(id, places, inos, priority, signal)
    this.#held.set(id, { places, inos })
    let isHeld = true
    return {
      id,
      failed,
      release: distances => {
        if (!isHeld) return
        isHeld = false
        this.#held.delete(id)
        this.#release(id, distances?.())
      },
    }
  }

  /** Objects of the store by their SHA-256 values, leased; null: not there. */
  async find(
    ids: readonly string[],
    signal?: AbortSignal,
  ): Promise<{ readonly found: readonly (FoundObject | null)[]; release(): void }> {
    const lease = `${this.#owner}.${++this.#leases}`
    const { found } = await this.#call(
      client => client.findObjects({ owner: this.#owner, lease, ids: [...ids] }, signal),
      { signal },
    )
    return { found, release: () => this.#release(lease) }
  }

  /** Lets everything go. */
  async close(): Promise<void> {
    this.#isClosed = true
    clearInterval(this.#timer)
    for (const lease of this.#held.keys()) this.#releases.push({ lease })
    this.#held.clear()
    await this.#flush()
  }

  async #fill(
    lease: string,
    places: readonly PackageAddress[],
    inos: readonly number[],
    priority: Priority,
    signal: AbortSignal | undefined,
  ): Promise<Map<number, BobbinError>> {
    let failed: Map<number, BobbinError> | undefined
    let failure: unknown
    try {
      for (const place of places) {
        const wanted = failed === undefined ? [...inos] : [...failed.keys()]
        try {
          const answer = await this.#fillFrom(place, { owner: this.#owner, lease, inos: wanted, priority }, signal)
          // What the first place said of an entry is told when the others have it neither.
          for (const ino of failed?.keys() ?? []) if (!answer.has(ino)) failed?.delete(ino)
          failed ??= answer
        } catch (error) {
          if (hasCode(error, 'INTERRUPTED', 'DAEMON_UNAVAILABLE')) throw error
          failure ??= error
        }
        if (failed?.size === 0) break
      }
      if (failed === undefined) throw failure
      return failed
    } catch (error) {
      // The daemon may have it, or have it in a moment.
      this.#release(lease)
      throw error
    }
  }

  async #fillFrom(
    { registry, package: name, topHash }: PackageAddress,
    wish: Pick<LeaseBody, 'owner' | 'lease' | 'inos' | 'priority'>,
    signal: AbortSignal | undefined,
  ): Promise<Map<number, BobbinError>> {
    const { door } = this
    const within = door.placesOf({ registry, package: name, topHash })
    const places = within && { folders: [...within.folders], buckets: bucketsOf(within) }
    const body = { ...wish, registry, package: name, topHash, ...(places && { places }) }
    try {
      const { failed } = await this.#call(client => client.leaseObjects(body, signal), { signal })
      return new Map(failed.map(({ ino, code, detail }) => [ino, door.found(errorOf(code, detail))]))
    } catch (error) {
      throw door.found(error)
    }
  }

  async #call<T>(
    run: (client: DaemonClient) => Promise<T>,
    { signal, patienceMs = PATIENCE_MS }: { readonly signal?: AbortSignal | undefined; readonly patienceMs?: number },
  ): Promise<T> {
    for (const deadline = Date.now() + patienceMs; ; ) {
      throwIfAborted(signal)
      try {
        return await run(await this.#connect())
      } catch (error) {
        throwIfAborted(signal)
        if (!hasCode(error, 'DAEMON_UNAVAILABLE') || this.#isClosed || Date.now() > deadline) throw error
        this.#client = undefined
        await sleep(RETRY_MS)
      }
    }
  }

  #release(lease: string, distances?: readonly number[]): void {
    this.#releases.push({ lease, ...(distances && { distances }) })
    this.#releaseTimer ??= setTimeout(() => void this.#flush(), RELEASE_MS)
  }

  async #flush(): Promise<void> {
    clearTimeout(this.#releaseTimer)
    this.#releaseTimer = undefined
    // They go with the first renewal of the next connection: it may be the same daemon, which was slow for a moment.
    if (this.#client === undefined) this.#releases = this.#releases.slice(-RELEASES_MAX)
    if (this.#releases.length === 0 || this.#client === undefined) return
    const leases = this.#releases
    this.#releases = []
    try {
      await this.#client.releaseObjects({
        owner: this.#owner,
        leases: leases.map(({ lease, distances }) => (distances ? { lease, distances: [...distances] } : { lease })),
      })
    } catch {
      // A daemon that has died holds nothing of ours, and to let go of nothing is no error.
      this.#releases = [...leases, ...this.#releases].slice(-RELEASES_MAX)
    }
  }

  #renew(): Promise<void> {
    this.#renewing ??= this.#renewOnce().finally(() => {
      this.#renewing = undefined
    })
    return this.#renewing
  }

  async #renewOnce(): Promise<void> {
    if (this.#client === undefined) return
    const before = [...this.#held]
    try {
      const { leases } = await this.#client.renewOwner({ owner: this.#owner, facts: this.facts })
      void this.#flush()
      // Held before and behind that call, so the daemon had them when it counted; it may have others of ours besides.
      const held = before.filter(([lease]) => this.#held.has(lease))
      if (leases >= held.length) return
      this.log.warn({ leases: held.length }, 'the daemon is another one: what is in use is leased again')
      for (const [lease, { places, inos }] of held) {
        if (!this.#held.has(lease)) continue
        await this.#fill(lease, places, inos, 'demand', undefined)
        if (!this.#held.has(lease)) this.#release(lease)
      }
    } catch (error) {
      this.log.warn({ error: String(error) }, 'the daemon does not answer')
      this.#client = undefined
    }
  }
}

function bucketsOf({ buckets }: Places): 'any' | string[] {
  return buckets === 'any' ? buckets : [...buckets]
}

function errorOf(code: string, detail: string): BobbinError {
  return new BobbinError(ERROR_CODES.find(candidate => candidate === code) ?? 'INTERNAL', detail)
}
