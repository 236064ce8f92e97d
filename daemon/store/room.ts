/** The sums of the store: quota, free-space floor, and what fetches under way have reserved. */
import { renameSync, statfsSync } from 'node:fs'
import { rm } from 'node:fs/promises'
import { BobbinError, formatBytes, localError } from '../model/index.js'
import { temporaryFolder } from './layout.js'
import type { Reservation } from './reservation.js'

const FREE_BYTES_MIN_DEFAULT = 2 * 2 ** 30

export class Room {
  readonly bytesMax: number
  readonly freeBytesMin: number
  /** As many as there are fetches at a time. */
  readonly reservations = new Set<Reservation>()
  #waiting: (() => void)[] = []

  /** `heldBytes`: what the objects take already. */
  constructor(
    private readonly cacheDir: string,
    heldBytes: number,
    limits: { readonly bytesMax?: number | undefined; readonly freeBytesMin?: number | undefined },
  ) {
    const disk = this.#disk()
    this.freeBytesMin = limits.freeBytesMin ?? Math.min(FREE_BYTES_MIN_DEFAULT, Math.floor(disk.bytes / 20))
    this.bytesMax = limits.bytesMax ?? Math.floor((heldBytes + disk.freeBytes) * 0.8)
  }

  get reservedBytes(): number {
    let bytes = 0
    for (const reservation of this.reservations) bytes += reservation.bytes
    return bytes
  }

  /** How many bytes have to be evicted before `bytes` more have room; zero or less: they have. */
  missing(bytes: number, heldBytes: number): number {
    const overQuota = heldBytes + this.reservedBytes + bytes - this.bytesMax
    return Math.max(overQuota, this.#belowFloor(bytes))
  }

  #belowFloor(bytes: number): number {
    const left = this.#disk().freeBytes - this.freeBytesMin - bytes
    if (left >= this.reservedBytes) return 0
    // Near the floor it matters that a part of what is reserved is written already.
    let unwritten = 0
    for (const reservation of this.reservations) unwritten += reservation.unwrittenBytes
    return unwritten - left
  }

  #disk(): { readonly bytes: number; readonly freeBytes: number } {
    try {
      const { bsize, blocks, bavail } = statfsSync(temporaryFolder(this.cacheDir))
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

  fullError(bytes: number, heldBytes: number, pinnedBytes: number): BobbinError {
    const floor = this.#disk().freeBytes - this.freeBytesMin
    const isQuota = heldBytes + bytes - this.bytesMax >= bytes - floor
    const reason = isQuota
      ? `its limit is ${formatBytes(this.bytesMax)}, ${formatBytes(pinnedBytes)} of it in open files and leased by loaders: close some, or raise --cache-limit`
      : `its disk has ${formatBytes(Math.max(0, floor))} above the floor of ${formatBytes(this.freeBytesMin)} free: delete something, or lower --free-floor`
    return new BobbinError('STORE_FULL', `no room for ${bytes} bytes in the cache ${this.cacheDir}: ${reason}`)
  }
}
