/**
 * Which object goes first when room is needed, of those that nobody holds.
 *
 * Time is counted in bytes that were taken into use. An object whose next use somebody has announced (a plan knows
 * its whole order) goes by that: the farthest first, which is the best there is (Belady 1966). One of which nothing is
 * known is taken to be needed again after as long as it has lain here, so the least recently used goes first. Of the
 * two, the one whose next use is farther away goes. An announced use that has passed without coming is no
 * knowledge any more.
 */
import { LRUCache } from 'lru-cache'
import TinyQueue from 'tinyqueue'

interface Announced<T> {
  readonly record: T
  readonly nextUse: number
}

interface Resting<T> {
  readonly record: T
  /** On the clock; `undefined`: it lies among the recent ones. */
  readonly announced: Announced<T> | undefined
  readonly lastUse: number
}

/** Room for announcements that hold no more, before they are cleared out. */
const STALE_MAX = 1024

export class EvictionOrder<T extends { readonly id: string }> {
  readonly #resting = new Map<string, Resting<T>>()
  /** Of which nothing is known. It never evicts by itself: the store does the sums. */
  readonly #recent = new LRUCache<string, Resting<T>>({
    maxSize: Number.MAX_SAFE_INTEGER,
    sizeCalculation: () => 1,
  })
  #queue = new TinyQueue<Announced<T>>([], farthestFirst)
  #clock = 0
  #nextExpiry = 0

  get size(): number {
    return this.#resting.size
  }

  /** An object is taken into use. */
  advance(bytes: number): void {
    this.#clock += bytes
  }

  /** It is let go. `distance`: bytes until its next use, where that is known. */
  add(record: T, distance?: number): void {
    const announced = distance === undefined ? undefined : { record, nextUse: this.#clock + distance }
    const resting = { record, announced, lastUse: this.#clock }
    this.#resting.set(record.id, resting)
    if (announced === undefined) this.#recent.set(record.id, resting)
    else {
      this.#queue.push(announced)
      if (this.#queue.length > 2 * this.#resting.size + STALE_MAX) this.#rebuild()
    }
  }

  /** It is in use again, or gone. */
  delete({ id }: T): void {
    this.#resting.delete(id)
    this.#recent.delete(id)
  }

  /** The one to go, taken out. */
  take(): T | undefined {
    if (this.#clock >= this.#nextExpiry) this.#rebuild()
    const farthest = this.#farthest()
    const [oldest] = this.#recent.rvalues()
    const chosen =
      oldest === undefined || (farthest !== undefined && farthest.nextUse - this.#clock > this.#clock - oldest.lastUse)
        ? farthest
        : oldest
    if (chosen !== undefined) this.delete(chosen.record)
    return chosen?.record
  }

  /** About in the order in which they go. */
  *values(): Generator<T> {
    for (const resting of this.#recent.rvalues()) if (resting !== undefined) yield resting.record
    const announced = [...this.#resting.values()].flatMap(resting => resting.announced ?? [])
    for (const { record } of announced.sort(farthestFirst)) yield record
  }

  #farthest(): Announced<T> | undefined {
    for (;;) {
      const announced = this.#queue.peek()
      if (announced === undefined || this.#holds(announced)) return announced
      this.#queue.pop()
    }
  }

  #holds(announced: Announced<T>): boolean {
    return this.#resting.get(announced.record.id)?.announced === announced
  }

  /** Clears out what holds no more, and takes uses that have passed for unknown ones. */
  #rebuild(): void {
    const kept: Announced<T>[] = []
    for (const announced of this.#queue.data) {
      if (!this.#holds(announced)) continue
      if (announced.nextUse > this.#clock) kept.push(announced)
      else this.add(announced.record)
    }
    this.#queue = new TinyQueue(kept, farthestFirst)
    // Often enough that none lies around for long, seldom enough to cost nothing.
    const span = kept.reduce((sum, { nextUse }) => Math.max(sum, nextUse - this.#clock), 0)
    this.#nextExpiry = this.#clock + Math.max(1, span / 16)
  }
}

function farthestFirst(a: { readonly nextUse: number }, b: { readonly nextUse: number }): number {
  return b.nextUse - a.nextUse
}
