/**
 * How often each entry of a package was read one way, by inode number, which is a place in the package's index: 6 bytes an
 * entry, in pages that are made when the first of their entries is read. So 10,000,000 entries take 60 MB. What few pages need
 * is made when it is: higher parts of numbers, and the counts of what was not taken to the end.
 */

/** Entries of a page. */
const PAGE = 65_536
const COUNT_LOW = 2 ** 16
const TIME_LOW = 2 ** 32

interface Page {
  readonly counts: Uint16Array
  /** What is beyond 65,535, in units of 65,536. */
  countsHigh?: Uint16Array
  /** Unix milliseconds, their lower part; good where there is a count. */
  readonly firsts: Uint32Array
  /** Their higher part, which changes every 49 days: that of all, or of each. */
  readonly firstHigh: number
  firstsHigh?: Uint16Array
  aborted?: Uint32Array
}

export interface Tallied {
  readonly count: number
  readonly aborted: number
  /** Unix milliseconds. */
  readonly first: number
}

export class Tally {
  readonly #pages = new Map<number, Page>()

  get isEmpty(): boolean {
    return this.#pages.size === 0
  }

  /** `time`: Unix milliseconds, a whole number from 0 to 2^48. */
  add(ino: number, time: number, { isAborted = false } = {}): void {
    const at = ino % PAGE
    const page = this.#page(Math.floor(ino / PAGE), time)
    if (!isRead(page, at) || time < firstOf(page, at)) setFirst(page, at, time)
    if (isAborted) {
      page.aborted ??= new Uint32Array(PAGE)
      page.aborted[at]!++
      return
    }
    page.counts[at]!++
    // At its end it has begun anew, and the higher part goes on.
    if (page.counts[at] !== 0) return
    page.countsHigh ??= new Uint16Array(PAGE)
    page.countsHigh[at]!++
  }

  has(ino: number): boolean {
    const page = this.#pages.get(Math.floor(ino / PAGE))
    return page !== undefined && isRead(page, ino % PAGE)
  }

  /** Undefined: it was not read. */
  get(ino: number): Tallied | undefined {
    const at = ino % PAGE
    const page = this.#pages.get(Math.floor(ino / PAGE))
    if (page === undefined || !isRead(page, at)) return undefined
    return { count: countOf(page, at), aborted: page.aborted?.[at] ?? 0, first: firstOf(page, at) }
  }

  /** Inode numbers of what was read, in their order. */
  *inos(): Generator<number> {
    for (const number of [...this.#pages.keys()].sort((a, b) => a - b)) {
      const page = this.#pages.get(number)!
      for (let at = 0; at < PAGE; at++) if (isRead(page, at)) yield number * PAGE + at
    }
  }

  #page(number: number, time: number): Page {
    let page = this.#pages.get(number)
    if (page === undefined) {
      const firstHigh = Math.floor(time / TIME_LOW)
      page = { counts: new Uint16Array(PAGE), firsts: new Uint32Array(PAGE), firstHigh }
      this.#pages.set(number, page)
    }
    return page
  }
}

function isRead(page: Page, at: number): boolean {
  return countOf(page, at) > 0 || (page.aborted !== undefined && page.aborted[at]! > 0)
}

function countOf({ counts, countsHigh }: Page, at: number): number {
  return counts[at]! + (countsHigh === undefined ? 0 : COUNT_LOW * countsHigh[at]!)
}

function firstOf({ firsts, firstHigh, firstsHigh }: Page, at: number): number {
  return firsts[at]! + TIME_LOW * (firstsHigh === undefined ? firstHigh : firstsHigh[at]!)
}

function setFirst(page: Page, at: number, time: number): void {
  const high = Math.floor(time / TIME_LOW)
  if (high !== page.firstHigh) page.firstsHigh ??= new Uint16Array(PAGE).fill(page.firstHigh)
  if (page.firstsHigh !== undefined) page.firstsHigh[at] = high
  page.firsts[at] = time % TIME_LOW
}
