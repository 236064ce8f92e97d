/**
 * Opens objects: from the store where they are, else fetched into it.
 *
 * Callers who want one object at the same time share one fetch (a flight), which is given up only
 * when all of them have. Who comes when enough are under way waits in line (fetch-line.ts), up to
 * WAITING_MAX of them.
 */
import {
  BobbinError,
  formatPhysicalKey,
  hasCode,
  type Log,
  type ObjectSpec,
  silentLog,
  throwIfAborted,
} from '../model/index.js'
import { type ObjectHandle, type ObjectStore, objectId, type Pin, type StoredObject } from '../store/index.js'
import type { Workers } from '../work/workers.js'
import { FetchLine, type Place, type Priority } from './fetch-line.js'
import { fetchVerified } from './fetch-verified.js'

export type { ObjectHandle, Pin } from '../store/index.js'
export type { Priority } from './fetch-line.js'

export interface FetcherOptions {
  readonly store: ObjectStore
  readonly workers: Workers
  readonly log?: Log
}

export interface FetchOptions {
  readonly signal?: AbortSignal | undefined
  /** Names the object in messages; an entry's key. */
  readonly label?: string | undefined
  /** Default: `demand`. */
  readonly priority?: Priority | undefined
  /** Folders that a file has to lie in when it is read; `undefined`: anywhere. What is in the store is not read from there. */
  readonly within?: readonly string[] | undefined
  /**
   * Bytes have come or were hashed; while the object waits for its turn: those of others. Whoever waits can so tell a
   * fetch that takes long from one that is stuck.
   */
  readonly onProgress?: (() => void) | undefined
}

export interface FetchStats {
  /** Fetched, checked and stored. */
  readonly objects: number
  readonly bytes: number
  /** Opened without fetching. */
  readonly hits: number
  /** Second tries, after bytes that were wrong. */
  readonly refetches: number
  /** Given up as OBJECT_CORRUPT. */
  readonly refused: number
  /** Failed for another reason than that nobody wanted it any more. */
  readonly errors: number
  readonly inFlight: number
  readonly queued: number
}

/**
 * 128 objects of 100 KB fill a link of 2 Gb/s that is 50 ms away. Beyond 32 they may have 64 MiB under way together,
 * which is more than such a link holds; large ones are read in several requests each.
 */
const LINE = { objectsMin: 32, objectsMax: 128, bytesMax: 64 * 2 ** 20 }
/** Readers beyond this get an error at once: far more than a machine has threads that read. */
const WAITING_MAX = 100_000
/** Those that wait for their turn are told this often that others go on. */
const TELL_WAITING_MS = 500

interface Flight {
  /** A handle of the flight's own, which each waiter clones and the last one closes. */
  readonly object: Promise<StoredObject>
  readonly controller: AbortController
  place: Place<StoredObject> | undefined
  isDemanded: boolean
  /** Jobs of it that have their turn. None: it waits for others. */
  turns: number
  readonly onProgress: Set<() => void>
  readonly from: string
  waiters: number
}

export class Fetcher {
  readonly #store: ObjectStore
  readonly #workers: Workers
  readonly #log: Log
  readonly #line = new FetchLine(LINE)
  /** By object and size: a manifest that lies about a size must not fail those that do not. */
  readonly #flights = new Map<string, Flight>()
  readonly #closing = new AbortController()
  /** Since those that wait were told. */
  #hasMoved = false
  #telling: NodeJS.Timeout | undefined
  #counts = { objects: 0, bytes: 0, hits: 0, refetches: 0, refused: 0, errors: 0 }

  constructor({ store, workers, log }: FetcherOptions) {
    this.#store = store
    this.#workers = workers
    this.#log = log ?? silentLog
  }

  /**
   * An open, verified object. Whoever opened it closes it. Throws OBJECT_CORRUPT (after one
   * refetch), OBJECT_GONE, ACCESS_DENIED, UPSTREAM_UNAVAILABLE, STORE_FULL, LOCAL_IO, INTERRUPTED.
   */
  async open(spec: ObjectSpec, options: FetchOptions = {}): Promise<ObjectHandle> {
    return this.#open(spec, options)
  }

  /** A verified object that stays in the store until it is released, without a descriptor. Throws what `open` throws. */
  async pin(spec: ObjectSpec, options: FetchOptions = {}): Promise<Pin> {
    const pin = this.pinNow(spec)
    if (pin !== undefined) return pin
    const object = await this.#open(spec, options)
    try {
      return object.pin()
    } finally {
      await object.close()
    }
  }

  /** `undefined`: it has to be fetched, or hashed. */
  pinNow(spec: ObjectSpec): Pin | undefined {
    const pin = this.#store.pinNow(spec)
    if (pin !== undefined) this.#counts.hits++
    return pin
  }

  async #open(spec: ObjectSpec, options: FetchOptions): Promise<StoredObject> {
    const id = flightId(spec, options.within)
    for (;;) {
      throwIfAborted(options.signal)
      throwIfAborted(this.#closing.signal)
      let flight = this.#flights.get(id)
      const isOurs = flight === undefined
      if (flight === undefined) {
        const object = this.#store.openNow(spec)
        if (object !== undefined) {
          this.#counts.hits++
          return object
        }
        flight = this.#start(id, spec, options)
      }
      if (options.priority !== 'ahead') this.#demand(flight)
      try {
        return await this.#join(id, flight, options)
      } catch (error) {
        // The same bytes under another address: ours may still work.
        const isAnother = !isOurs && flight.from !== formatPhysicalKey(spec.physicalKey)
        if (!isAnother || options.signal?.aborted || hasCode(error, 'STORE_FULL', 'LOCAL_IO')) throw error
      }
    }
  }

  stats(): FetchStats {
    return { ...this.#counts, inFlight: this.#line.active, queued: this.#line.waiting }
  }

  /** Gives up what is under way and waits until it has stopped. Store and workers are the caller's to close. */
  async close(): Promise<void> {
    this.#closing.abort()
    const flights = [...this.#flights.values()]
    for (const flight of flights) flight.controller.abort()
    await Promise.allSettled(flights.map(flight => flight.object))
  }

  #start(id: string, spec: ObjectSpec, { label, priority, within }: FetchOptions): Flight {
    // What is only fetched ahead leaves room for those that somebody waits for.
    const max = priority === 'ahead' ? WAITING_MAX / 2 : WAITING_MAX
    if (this.#line.waiting >= max)
      throw new BobbinError('UPSTREAM_UNAVAILABLE', `${label ?? id}: ${max} fetches are waiting already`)
    const controller = new AbortController()
    const flight: Flight = {
      // Begins only when somebody has asked for it, and so knows whether it is demanded.
      object: Promise.resolve().then(() => this.#openOrFetch(spec, { label, within }, flight)),
      controller,
      place: undefined,
      isDemanded: false,
      turns: 0,
      onProgress: new Set(),
      from: formatPhysicalKey(spec.physicalKey),
      waiters: 0,
    }
    this.#flights.set(id, flight)
    this.#telling ??= setInterval(() => this.#tellWaiting(), TELL_WAITING_MS).unref()
    const land = () => this.#land(id, flight)
    flight.object.then(land, land)
    return flight
  }

  #demand(flight: Flight): void {
    flight.isDemanded = true
    flight.place?.promote()
  }

  #reports(flight: Flight) {
    return {
      onTurn: (change: 1 | -1) => {
        flight.turns += change
      },
      onBytes: () => {
        this.#hasMoved = true
        for (const tell of flight.onProgress) tell()
      },
    }
  }

  #tellWaiting(): void {
    if (!this.#hasMoved) return
    this.#hasMoved = false
    for (const flight of this.#flights.values()) {
      if (flight.turns === 0) for (const tell of flight.onProgress) tell()
    }
  }

  async #join(id: string, flight: Flight, { signal, onProgress }: FetchOptions): Promise<StoredObject> {
    flight.waiters++
    if (onProgress !== undefined) flight.onProgress.add(onProgress)
    try {
      return (await untilAborted(flight.object, signal)).clone()
    } finally {
      if (onProgress !== undefined) flight.onProgress.delete(onProgress)
      if (--flight.waiters === 0) {
        // Whoever comes from now on starts anew.
        this.#land(id, flight)
        flight.controller.abort()
        flight.object.then(
          object => object.close(),
          () => {},
        )
      }
    }
  }

  #land(id: string, flight: Flight): void {
    if (this.#flights.get(id) === flight) this.#flights.delete(id)
    if (this.#flights.size > 0) return
    clearInterval(this.#telling)
    this.#telling = undefined
  }

  async #openOrFetch(spec: ObjectSpec, options: FetchOptions, flight: Flight): Promise<StoredObject> {
    const { signal } = flight.controller
    try {
      const present = await this.#store.open(spec, { signal, ...this.#reports(flight) })
      if (present !== undefined) {
        this.#counts.hits++
        return present
      }
      const priority = flight.isDemanded ? 'demand' : 'ahead'
      flight.place = this.#line.run(spec.size, priority, () => this.#fetch(spec, options, flight))
      return await flight.place.result
    } catch (error) {
      if (hasCode(error, 'OBJECT_CORRUPT')) this.#counts.refused++
      else if (!hasCode(error, 'INTERRUPTED')) this.#counts.errors++
      throw error
    }
  }

  async #fetch(spec: ObjectSpec, { label, within }: FetchOptions, flight: Flight): Promise<StoredObject> {
    const { signal } = flight.controller
    throwIfAborted(signal)
    const reservation = await this.#store.reserve(spec.size, { signal })
    try {
      await fetchVerified(this.#workers, spec, reservation.fd, {
        signal,
        label,
        within,
        log: this.#log,
        ...this.#reports(flight),
        onRefetch: () => {
          this.#counts.refetches++
        },
      })
      throwIfAborted(signal)
      const object = this.#store.admit(spec, reservation)
      this.#counts.objects++
      this.#counts.bytes += spec.size
      return object
    } finally {
      reservation.discard()
    }
  }
}

/** Callers with different rights share no fetch: what one of them may read is no reason that another one gets it. */
function flightId(spec: ObjectSpec, within: readonly string[] | undefined): string {
  const id = `${objectId(spec)}:${spec.size}`
  return within === undefined ? id : `${id}:${JSON.stringify(within)}`
}

function untilAborted<T>(promise: Promise<T>, signal: AbortSignal | undefined): Promise<T> {
  if (signal === undefined) return promise
  return new Promise((resolve, reject) => {
    const onAbort = () => reject(new BobbinError('INTERRUPTED', 'interrupted'))
    signal.addEventListener('abort', onAbort, { once: true })
    promise.then(resolve, reject).finally(() => signal.removeEventListener('abort', onAbort))
  })
}
