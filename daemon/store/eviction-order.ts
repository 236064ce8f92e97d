/**
 * Which object goes first when room is needed, of those that nobody holds.
 *
 * Time is counted in bytes that were taken into use. An object whose next use somebody has announced (a plan knows
 * its whole order) goes by that: the farthest first, which is the best there is (Belady 1966). One of which nothing is
 * known is taken to be needed again after as long as it has lain here, so the least recently used goes first. Of the
 * two, the one whose next use is farther away goes. An announced use that has passed without coming is no
 * knowledge any more.
 */
import TinyQueue from 'tinyqueue'

interface Resting<T> {
  readonly record: T
  /** On the clock. */
  readonly lastUse: number
  /** On the clock; `undefined`: not known, or not any more. */
  readonly nextUse: number | undefined
  /** Which of two came to rest first, where the clock stood still. */
  readonly turn: number
}

/** Room in a queue for what rests no more, before it is cleared out. */
const STALE_MAX = 1024
/** Clearing out looks at everything: at most once in so many changes as this part of all. */
const CLEARED_PART = 1 / 16

export class EvictionOrder<T extends { readonly id: string }> {
  readonly #resting = new Map<string, Resting<T>>()
  /** Both hold more than rests: what is in use again, or gone, is left out when it comes up. */
  #announced = new TinyQueue<Resting<T>>([], farthestFirst)
  #unknown = new TinyQueue<Resting<T>>([], oldestFirst)
  #clock = 0
  #turns = 0
  #nextExpiry = 0
  /** Since the queues were cleared out. */
  #changes = 0

  get size(): number {
    return this.#resting.size
  }

  /** An object is taken into use. */
  advance(bytes: number): void {
    this.#clock += bytes
  }

  /** It is let go. `distance`: bytes until its next use, where that is known. */
  add(record: T, distance?: number): void {
    const nextUse = distance === undefined ? undefined : this.#clock + distance
    const resting = { record, nextUse, lastUse: this.#clock, turn: this.#turns++ }
    this.#resting.set(record.id, resting)
    const queue = nextUse === undefined ? this.#unknown : this.#announced
    queue.push(resting)
    this.#changes++
    if (queue.length > 2 * this.#resting.size + STALE_MAX) this.#rebuild()
  }

  /** It is in use again, or gone. */
  delete({ id }: T): void {
    this.#resting.delete(id)
  }

  /** The one to go, taken out. */
  take(): T | undefined {
    const isWorthIt = ++this.#changes >= this.#resting.size * CLEARED_PART
    if (isWorthIt && this.#announced.length > 0 && this.#clock >= this.#nextExpiry) this.#rebuild()
    const farthest = this.#first(this.#announced)
    const oldest = this.#first(this.#unknown)
    const isFarther =
      oldest === undefined || (farthest !== undefined && farthest.nextUse! - this.#clock > this.#clock - oldest.lastUse)
    const chosen = isFarther ? farthest : oldest
    if (chosen !== undefined) this.delete(chosen.record)
    return chosen?.record
  }

  /** Least recently used first. */
  *values(): Generator<T> {
    for (const { record } of [...this.#resting.values()].sort(oldestFirst)) yield record
  }

  #first(queue: TinyQueue<Resting<T>>): Resting<T> | undefined {
    for (;;) {
      const first = queue.peek()
      if (first === undefined || this.#rests(first)) return first
      queue.pop()
    }
  }

  #rests(resting: Resting<T>): boolean {
    return this.#resting.get(resting.record.id) === resting
  }

  /** Clears out what rests no more, and takes uses that have passed for unknown ones. */
  #rebuild(): void {
    this.#changes = 0
    const unknown = this.#unknown.data.filter(resting => this.#rests(resting))
    const announced: Resting<T>[] = []
    let span = 0
    for (const resting of this.#announced.data) {
      if (!this.#rests(resting)) continue
      const distance = resting.nextUse! - this.#clock
      if (distance > 0) {
        announced.push(resting)
        span = Math.max(span, distance)
      } else {
        const lapsed = { ...resting, nextUse: undefined }
        this.#resting.set(resting.record.id, lapsed)
        unknown.push(lapsed)
      }
    }
    this.#unknown = new TinyQueue(unknown, oldestFirst)
    this.#announced = new TinyQueue(announced, farthestFirst)
    // Often enough that none lies around for long, seldom enough to cost nothing.
    this.#nextExpiry = this.#clock + Math.max(1, span / 16)
  }
}

function farthestFirst(a: Resting<unknown>, b: Resting<unknown>): number {
  return b.nextUse! - a.nextUse!
}

function oldestFirst(a: Resting<unknown>, b: Resting<unknown>): number {
  return a.lastUse - b.lastUse || a.turn - b.turn
}
