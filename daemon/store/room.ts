/**
 * The sums of a cache: quota, free-space floor, what fetches under way have reserved, and what lies in the folder beside
 * objects.
 */
import { renameSync, statfsSync } from 'node:fs'
import { rm } from 'node:fs/promises'
import { BobbinError, formatBytes, localError } from '../model/index.js'
import { freeBytesMinOf, LOWER_FLOOR, RAISE_LIMIT } from './cache-room.js'
import type { Reservation } from './reservation.js'
import { type CacheUsage, sumOf } from './usage.js'

/** Of files that are no objects; so much is not counted, since every cache has a journal and notes. */
const SMALL_BYTES = 2 ** 20

/** Room that somebody has for files that are no objects, until they lie where they are measured. */
export interface HeldRoom {
  bytes: number
  /** Those of them that came last: whoever holds more has written what they had. */
  unwrittenBytes: number
}

export class Room {
  bytesMax: number
  freeBytesMin: number
  /** As many as there are fetches at a time. */
  readonly reservations = new Set<Reservation>()
  readonly holds = new Set<HeldRoom>()
  #waiting: (() => void)[] = []

  /** `heldBytes`: what the objects take already. `usage`: what the rest does, as it was measured last. */
  constructor(
    private readonly cacheDir: string,
    heldBytes: number,
    public usage: CacheUsage,
    limits: { readonly bytesMax?: number | undefined; readonly freeBytesMin?: number | undefined },
  ) {
    const disk = this.#disk()
    this.freeBytesMin = limits.freeBytesMin ?? freeBytesMinOf(disk.bytes)
    this.bytesMax = limits.bytesMax ?? Math.floor((heldBytes + sumOf(usage) + disk.freeBytes) * 0.8)
  }

  /** For objects. */
  get reservedBytes(): number {
    let bytes = 0
    for (const reservation of this.reservations) bytes += reservation.bytes
    return bytes
  }

  /** For other files. */
  get #holdBytes(): number {
    let bytes = 0
    for (const hold of this.holds) bytes += hold.bytes
    return bytes
  }

  /** What counts against the quota beside objects. A file under way is measured or held for, mostly both. */
  get otherBytes(): number {
    return Math.max(0, sumOf(this.usage) + Math.max(this.usage.underWay, this.#holdBytes) - SMALL_BYTES)
  }

  /** How many bytes have to be evicted before `bytes` more have room; zero or less: they have. */
  missing(bytes: number, heldBytes: number): number {
    const overQuota = heldBytes + this.otherBytes + this.reservedBytes + bytes - this.bytesMax
    return Math.max(overQuota, this.#belowFloor(bytes))
  }

  /** What objects may take in all; some of it they take already. */
  inAll(heldBytes: number): number {
    return Math.max(0, Math.min(this.bytesMax - this.otherBytes, this.#aboveFloor() + heldBytes))
  }

  #belowFloor(bytes: number): number {
    const left = this.#aboveFloor() - bytes
    if (left >= this.reservedBytes) return 0
    // Near the floor it matters that a part of what is reserved is written already.
    let unwritten = 0
    for (const reservation of this.reservations) unwritten += reservation.unwrittenBytes
    return unwritten - left
  }

  /** What is free for objects, where other files get what is held for them. */
  #aboveFloor(): number {
    let left = this.#disk().freeBytes - this.freeBytesMin
    for (const hold of this.holds) left -= hold.unwrittenBytes
    return left
  }

  #disk(): { readonly bytes: number; readonly freeBytes: number } {
    try {
      const { bsize, blocks, bavail } = statfsSync(this.cacheDir)
      return { bytes: bsize * blocks, freeBytes: bsize * bavail }
    } catch (error) {
      throw localError(`look at the disk of ${this.cacheDir}`, error)
    }
  }

  giveBack(reservation: Reservation): void {
    this.reservations.delete(reservation)
    this.changed()
  }

  /** Something came free: those who wait look again. */
  changed(): void {
    const waiting = this.#waiting
    this.#waiting = []
    for (const resume of waiting) resume()
  }

  /** Until something comes free, or the signal fires. */
  change(signal: AbortSignal | undefined): Promise<void> {
    return new Promise(resolve => {
      const resume = () => {
        signal?.removeEventListener('abort', resume)
        resolve()
      }
      this.#waiting.push(resume)
      signal?.addEventListener('abort', resume)
    })
  }

  /** Moves a file out of the way at once, so that its name is free, then deletes it, which may take long. */
  async remove(path: string, temporary: string): Promise<void> {
    try {
      renameSync(path, temporary)
    } catch {
      // Deleted by hand, or the disk is ill; then what lies there is deleted in place.
      await rm(path, { recursive: true, force: true }).catch(() => {})
      return
    }
    await rm(temporary, { recursive: true, force: true }).catch(() => {})
  }

  /** `what`: it needs the bytes. */
  fullError(what: string, bytes: number, heldBytes: number, pinnedBytes: number): BobbinError {
    const floor = this.#aboveFloor()
    const isQuota = heldBytes + this.otherBytes + bytes - this.bytesMax >= bytes - floor
    const others =
      this.otherBytes > 0 ? `, and ${formatBytes(this.otherBytes)} in packages, plans and logs (bobbin status)` : ''
    const reason = isQuota
      ? `its limit is ${formatBytes(this.bytesMax)}, ${formatBytes(pinnedBytes)} of it in open files and leased by loaders${others}: close some, or ${RAISE_LIMIT}`
      : `its disk has ${formatBytes(Math.max(0, floor))} above the floor of ${formatBytes(this.freeBytesMin)} free: delete something, or ${LOWER_FLOOR}`
    return new BobbinError('STORE_FULL', `no room for ${what} in the cache ${this.cacheDir}: ${reason}`)
  }
}
