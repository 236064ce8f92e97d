/**
 * How often each entry of a package was read one way, by inode number, which is a place in the package's index: 10 bytes an
 * entry, in pages that are made when the first of their entries is read. So 10,000,000 entries take 100 MB.
 */

/** Entries of a page. */
const PAGE = 65_536
const LOW = 2 ** 32

interface Page {
  readonly counts: Uint32Array
  /** Unix milliseconds, their lower and their higher part; good where there is a count. */
  readonly firstLow: Uint32Array
  readonly firstHigh: Uint16Array
  /** Few clients go away before their answer is whole. */
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
    const page = this.#page(Math.floor(ino / PAGE))
    if (!isRead(page, at) || time < firstOf(page, at)) {
      page.firstLow[at] = time % LOW
      page.firstHigh[at] = Math.floor(time / LOW)
    }
    if (isAborted) {
      page.aborted ??= new Uint32Array(PAGE)
      page.aborted[at]!++
    } else page.counts[at]!++
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
    return { count: page.counts[at]!, aborted: page.aborted?.[at] ?? 0, first: firstOf(page, at) }
  }

  /** Inode numbers of what was read, in their order. */
  *inos(): Generator<number> {
    for (const number of [...this.#pages.keys()].sort((a, b) => a - b)) {
      const page = this.#pages.get(number)!
      for (let at = 0; at < PAGE; at++) if (isRead(page, at)) yield number * PAGE + at
    }
  }

  #page(number: number): Page {
    let page = this.#pages.get(number)
    if (page === undefined) {
      page = { counts: new Uint32Array(PAGE), firstLow: new Uint32Array(PAGE), firstHigh: new Uint16Array(PAGE) }
      this.#pages.set(number, page)
    }
    return page
  }
}

function isRead({ counts, aborted }: Page, at: number): boolean {
  return counts[at]! > 0 || (aborted !== undefined && aborted[at]! > 0)
}

function firstOf({ firstLow, firstHigh }: Page, at: number): number {
  return firstHigh[at]! * LOW + firstLow[at]!
}
