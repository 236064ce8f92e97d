/**
 * The objects that came in since the last sync without an error: good as long as the page cache has them,
 * and nobody knows what the disk has.
 *
 * Soon after the first one the disk is asked (write-back.ts). When it has everything, they count as being
 * there also after a power cut. When it has lost something, all of them are suspects: hashing them again would
 * read the page cache once more, so they are given up and fetched again at their next use.
 */
import type { SyncOutcome, WriteBack } from './write-back.js'

/**
 * Short, so that a page whose writing has failed is unlikely to have left the page cache before that is known, and
 * so that few objects have to be fetched again. ext4 writes its own journal as often.
 */
const SYNC_AFTER_MS = 5000
/** Others may be writing gigabytes to the same disk: whoever stops the daemon does not wait for all of that. */
const LAST_SYNC_MS_MAX = 10_000

export interface UnsyncedOptions<T> {
  readonly writeBack: WriteBack
  /** Before the disk is asked; what it gives comes back with `onSynced`. */
  readonly mark: () => string
  readonly onSynced: (items: ReadonlySet<T>, mark: string) => void
  readonly onLost: (items: ReadonlySet<T>) => void
  /** Milliseconds. */
  readonly syncAfterMs?: number | undefined
}

export class Unsynced<T> {
  #waiting = new Set<T>()
  /** Those that the sync under way is for. */
  #asked = new Set<T>()
  #timer: NodeJS.Timeout | undefined
  #asking: Promise<SyncOutcome> | undefined
  #isClosed = false

  constructor(private readonly options: UnsyncedOptions<T>) {}

  add(item: T): void {
    this.#waiting.add(item)
    this.#askLater()
  }

  delete(item: T): void {
    this.#waiting.delete(item)
    this.#asked.delete(item)
  }

  /** Asks now, for everything so far. */
  async sync(): Promise<SyncOutcome> {
    // The one under way may have begun before the last item came.
    while (this.#asking !== undefined) await this.#asking
    this.#asking = this.#ask()
    try {
      return await this.#asking
    } finally {
      this.#asking = undefined
      if (this.#waiting.size > 0) this.#askLater()
    }
  }

  /** Asks for the last time, and waits for the answer, but not for ever. */
  async close(): Promise<SyncOutcome> {
    this.#isClosed = true
    clearTimeout(this.#timer)
    let timer: NodeJS.Timeout | undefined
    const tooLate = new Promise<'unknown'>(resolve => {
      timer = setTimeout(() => resolve('unknown'), LAST_SYNC_MS_MAX)
    })
    const outcome = await Promise.race([this.sync(), tooLate])
    clearTimeout(timer)
    return outcome
  }

  async #ask(): Promise<SyncOutcome> {
    clearTimeout(this.#timer)
    this.#timer = undefined
    this.#asked = this.#waiting
    this.#waiting = new Set()
    const mark = this.options.mark()
    const outcome = await this.options.writeBack.sync()
    const asked = this.#asked
    this.#asked = new Set()
    if (outcome === 'synced') {
      this.options.onSynced(asked, mark)
    } else {
      for (const item of asked) this.#waiting.add(item)
      // What came meanwhile may be what was lost.
      if (outcome === 'lost') {
        const lost = this.#waiting
        this.#waiting = new Set()
        this.options.onLost(lost)
      }
    }
    return outcome
  }

  #askLater(): void {
    if (this.#isClosed || this.#timer !== undefined || this.#asking !== undefined) return
    this.#timer = setTimeout(() => void this.sync(), this.options.syncAfterMs ?? SYNC_AFTER_MS)
    this.#timer.unref()
  }
}
