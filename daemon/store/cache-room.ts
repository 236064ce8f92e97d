/**
 * Room in the cache for files that are no objects: whoever is about to write some holds room for them first.
 *
 * A hold grows before the files do. Two rules are looked at here, in whatever process writes: what is compiled takes at
 * most a quarter of the cache's quota, where what nobody uses is deleted first (compiled-files.ts), and the disk keeps
 * its free space. The quota itself is the business of the daemon that owns the objects, since they can make room
 * (store/object-store.ts); it says in `<cache>/limits.json` what its limits are.
 */
import { mkdirSync, readFileSync, statfsSync } from 'node:fs'
import { join } from 'node:path'
import { BobbinError, formatBytes, localError } from '../model/index.js'
import { listCompiled, pruneCompiled } from './compiled-files.js'

export interface CacheRoom {
  /** `what` is named when there is no room: "the index of …". */
  hold(what: string): RoomHold
}

export interface RoomHold {
  /** Before the files that it is for take more than so many bytes, in all. Throws STORE_FULL, and then holds what it did. */
  grow(bytes: number): Promise<void>
  /** The files are where they belong, or gone. */
  end(): void
}

export interface CacheLimits {
  readonly limitBytes: number
  readonly freeBytesMin: number
}

/** As somebody has set them; what they did not set is as the last daemon had it, or follows from the disk. */
export type CacheLimitWishes = { readonly [Limit in keyof CacheLimits]?: number | undefined }

/** What to do where the quota is too small; only the daemon of the cache enforces it. */
export const RAISE_LIMIT =
  'raise the limit of the cache (set BOBBIN_CACHE_LIMIT, then bobbin reload; where no daemon runs, --cache-limit of bobbin mount or bobbin daemon)'

/** What to do where the disk is too full. */
export const LOWER_FLOOR = 'keep less of the disk free (--free-floor, or BOBBIN_FREE_FLOOR)'

/** Compiled packages and plans may take this part of the quota. */
const COMPILED_PART = 1 / 4
/** Even of a small quota. */
const COMPILED_BYTES_MIN = 2 ** 20
const FREE_BYTES_MIN_DEFAULT = 2 * 2 ** 30

/** What is left to others on a disk where nobody has said how much. */
export function freeBytesMinOf(diskBytes: number): number {
  return Math.min(FREE_BYTES_MIN_DEFAULT, Math.floor(diskBytes / 20))
}

export function limitsPath(cacheDir: string): string {
  return join(cacheDir, 'limits.json')
}

/** In a process that does not own the store, and knows no daemon. */
export function unownedRoom(cacheDir: string, wishes: CacheLimitWishes = {}): CacheRoom {
  return { hold: what => new UnownedHold(cacheDir, what, wishes) }
}

class UnownedHold implements RoomHold {
  #bytes = 0

  constructor(
    private readonly cacheDir: string,
    private readonly what: string,
    private readonly wishes: CacheLimitWishes,
  ) {}

  async grow(bytes: number): Promise<void> {
    if (bytes <= this.#bytes) return
    mkdirSync(this.cacheDir, { recursive: true, mode: 0o750 })
    const { freeBytes, limits } = diskOf(this.cacheDir, this.wishes)
    await keepShare(this.cacheDir, limits.limitBytes, { bytes, what: this.what })
    // What it held before is written by now, or nearly.
    const missing = bytes - this.#bytes + limits.freeBytesMin - freeBytes
    if (missing > 0 && (await pruneCompiled(this.cacheDir, missing)) < missing) {
      throw new BobbinError(
        'STORE_FULL',
        `no room for ${this.what} (${formatBytes(bytes)}) in the cache ${this.cacheDir}: its disk has ${formatBytes(freeBytes)} free, ` +
          `and ${formatBytes(limits.freeBytesMin)} stay free: delete something, or ${LOWER_FLOOR}`,
      )
    }
    this.#bytes = bytes
  }

  end(): void {
    this.#bytes = 0
  }
}

interface Need {
  readonly bytes: number
  readonly what: string
  /** What others are about to write. Bytes. */
  readonly elsewhere?: number
}

/** Deletes what is not used until what is compiled, and will be, is within its share of the quota. Throws STORE_FULL. */
export async function keepShare(cacheDir: string, limitBytes: number, need: Need): Promise<void> {
  const { bytes, what, elsewhere = 0 } = need
  const most = Math.max(COMPILED_BYTES_MIN, Math.floor(limitBytes * COMPILED_PART))
  const there = (await listCompiled(cacheDir)).reduce((sum, { bytes }) => sum + bytes, elsewhere)
  const over = there + bytes - most
  if (over <= 0 || (await pruneCompiled(cacheDir, over)) >= over) return
  throw new BobbinError(
    'STORE_FULL',
    `no room for ${what} (${formatBytes(bytes)}) in the cache ${cacheDir}: compiled packages and plans may take ${formatBytes(most)}, ` +
      `a quarter of its limit, and those in use take ${formatBytes(there)}: unmount some, or ${RAISE_LIMIT}`,
  )
}

function diskOf(
  cacheDir: string,
  wishes: CacheLimitWishes,
): { readonly freeBytes: number; readonly limits: CacheLimits } {
  try {
    const { bsize, blocks, bavail } = statfsSync(cacheDir)
    const freeBytes = bsize * bavail
    const said = readLimits(cacheDir)
    const limits = {
      limitBytes: wishes.limitBytes ?? said?.limitBytes ?? Math.floor(freeBytes * 0.8),
      freeBytesMin: wishes.freeBytesMin ?? said?.freeBytesMin ?? freeBytesMinOf(bsize * blocks),
    }
    return { freeBytes, limits }
  } catch (error) {
    throw localError(`look at the disk of ${cacheDir}`, error)
  }
}

/** As the last daemon of the cache had them. */
function readLimits(cacheDir: string): CacheLimits | undefined {
  try {
    const { limitBytes, freeBytesMin } = JSON.parse(readFileSync(limitsPath(cacheDir), 'utf8')) as Partial<CacheLimits>
    if (typeof limitBytes === 'number' && typeof freeBytesMin === 'number') return { limitBytes, freeBytesMin }
  } catch {
    // No daemon was here yet, or the file is damaged: then the disk says.
  }
  return undefined
}
