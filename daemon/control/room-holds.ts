/**
 * Room that other processes hold in the cache, for packages and plans that they compile: by a name of their choosing,
 * until they let go or are not heard of for HOLD_MS. Both sides of it are here: the daemon's, and the asker's.
 */
import { randomBytes } from 'node:crypto'
import { BobbinError, formatBytes, hasCode, type Log } from '../model/index.js'
import { type CacheRoom, RAISE_LIMIT, type RoomHold, unownedRoom } from '../store/cache-room.js'
import { type DaemonClient, findDaemon } from './client.js'
import { isDoorFull, isShared } from './doors.js'
import type { RoomBody } from './schema.js'

const HOLD_MS = 120_000
const RENEW_MS = 30_000
/** Of those who come through one door. */
const HOLDS_MAX = 1000
/** Of the quota, for what comes through the shared door: half of what packages and plans may take. */
const SHARED_PART = 1 / 8
/** Even of a small quota. */
const SHARED_BYTES_MIN = 2 ** 19

export class RoomHolds {
  readonly #holds = new Map<string, { readonly hold: RoomHold; bytes: number; seenMs: number }>()
  readonly #timer: NodeJS.Timeout

  constructor(
    private readonly room: CacheRoom,
    /** The quota, in bytes. */
    private readonly limitBytes: () => number,
    private readonly log: Log,
  ) {
    this.#timer = setInterval(() => this.#sweep(), RENEW_MS)
    this.#timer.unref()
  }

  /** 0 bytes: it lets go. Throws STORE_FULL, BUSY. */
  async ask({ hold: name, what, bytes }: RoomBody): Promise<void> {
    const known = this.#holds.get(name)
    if (bytes === 0) {
      this.#holds.delete(name)
      known?.hold.end()
      return
    }
    if (known === undefined && isDoorFull(this.#holds.keys(), name, HOLDS_MAX))
      throw new BobbinError('BUSY', `${HOLDS_MAX} processes hold room in the cache already`)
    if (isShared(name)) this.#refuseBeyondShare(name, bytes)
    const held = known ?? { hold: this.room.hold(what), bytes: 0, seenMs: 0 }
    this.#holds.set(name, held)
    held.seenMs = Date.now()
    const before = held.bytes
    // Already now, so that several at once see each other.
    held.bytes = Math.max(before, bytes)
    try {
      await held.hold.grow(bytes)
    } catch (error) {
      held.bytes = before
      throw error
    }
  }

  /** So that nobody of the group can keep the owner from opening a package. */
  #refuseBeyondShare(name: string, bytes: number): void {
    const most = Math.max(SHARED_BYTES_MIN, Math.floor(this.limitBytes() * SHARED_PART))
    let elsewhere = 0
    for (const [other, { bytes }] of this.#holds) if (isShared(other) && other !== name) elsewhere += bytes
    if (elsewhere + bytes <= most) return
    throw new BobbinError(
      'STORE_FULL',
      `no room for ${formatBytes(bytes)} through the door of the group, which may hold ${formatBytes(most)} and holds ${formatBytes(elsewhere)}: wait, or ${RAISE_LIMIT}`,
    )
  }

  #sweep(): void {
    for (const [name, { hold, seenMs }] of this.#holds) {
      if (Date.now() - seenMs < HOLD_MS) continue
      this.log.warn({ hold: name }, 'a process that holds room in the cache was not heard of, and loses it')
      this.#holds.delete(name)
      hold.end()
    }
  }

  close(): void {
    clearInterval(this.#timer)
    for (const { hold } of this.#holds.values()) hold.end()
    this.#holds.clear()
  }
}

/** Asks the daemon that owns the cache, which can evict objects, where there is one; what else there is to look at, too. */
export function daemonRoom(
  cacheDir: string,
  settings: { readonly cacheBytesMax?: number | undefined; readonly freeBytesMin?: number | undefined },
): CacheRoom {
  const { cacheBytesMax: limitBytes, freeBytesMin } = settings
  return {
    hold: what => {
      const client = findDaemon(cacheDir)
      // The limits of a daemon that runs are those that count.
      const own = unownedRoom(cacheDir, client === undefined ? { limitBytes, freeBytesMin } : {}).hold(what)
      return client === undefined ? own : new DaemonHold(own, client, what)
    },
  }
}

class DaemonHold implements RoomHold {
  readonly #name = randomBytes(12).toString('hex')
  readonly #timer = setInterval(() => void this.#ask(this.#bytes).catch(() => {}), RENEW_MS)
  #bytes = 0

  constructor(
    private readonly own: RoomHold,
    private readonly client: DaemonClient,
    private readonly what: string,
  ) {
    this.#timer.unref()
  }

  async grow(bytes: number): Promise<void> {
    if (bytes <= this.#bytes) return
    // First, since objects may have to make the room that is looked for then.
    await this.#ask(bytes)
    this.#bytes = bytes
    await this.own.grow(bytes)
  }

  end(): void {
    clearInterval(this.#timer)
    this.own.end()
    if (this.#bytes > 0) void this.#ask(0).catch(() => {})
    this.#bytes = 0
  }

  /** One that has gone, or does not know of this, measures what is here when it looks next. */
  async #ask(bytes: number): Promise<void> {
    await this.client.askRoom({ hold: this.#name, what: this.what, bytes }).catch((error: unknown) => {
      if (hasCode(error, 'STORE_FULL')) throw error
    })
  }
}
