/**
 * What was read of one package, as rows in the order of the ledger: by key, as JavaScript compares strings.
 *
 * The index has the children of a folder side by side, in the byte order of their names. That is the order of keys, too, except
 * where a folder's name is the start of another name (`a/` comes behind `a.txt`), and between characters that UTF-8 and UTF-16
 * order differently. Only the children of such folders are sorted, as numbers. Folders in which nothing was read are left out.
 */

import { type IndexNode, type PackageIndex, ROOT_INO } from '../../daemon/index/package-index.js'
import { hasCode } from '../../daemon/model/index.js'
import type { OpenedPackage } from '../../daemon/package/package-cache.js'
import type { LedgerRow, LedgerVia } from './ledger-row.js'
import type { Tally } from './tally.js'

export class PackageRows {
  /** Folders in which something was read. */
  readonly #folders = new Bits()
  /** Reads of what is no file of this package: the records of them were damaged. */
  lost = 0

  constructor(
    private readonly opened: OpenedPackage,
    /** In the order of the names. */
    private readonly tallies: readonly (readonly [LedgerVia, Tally])[],
  ) {
    for (const [, tally] of tallies) this.#markFolders(tally)
  }

  *[Symbol.iterator](): Generator<LedgerRow> {
    const { index, name, topHash } = this.opened
    for (const { ino, key } of this.#read()) {
      const {
        hash: { type: hashType, hex: hash },
        size,
      } = index.object(ino)
      for (const [via, tally] of this.tallies) {
        const tallied = tally.get(ino)
        if (tallied === undefined) continue
        const { count, aborted } = tallied
        const first = new Date(tallied.first).toISOString()
        yield { package: name, topHash, key, hashType, hash, size, via, count, aborted, first }
      }
    }
  }

  #markFolders(tally: Tally): void {
    const { index } = this.opened
    let [low, high] = [0, 0]
    for (const ino of tally.inos()) {
      // Mostly a neighbour of the last one.
      if (ino >= low && ino < high) continue
      try {
        let { parent } = index.node(ino)
        ;({ low, high } = index.childRange(parent))
        for (; !this.#folders.has(parent); parent = index.node(parent).parent) {
          this.#folders.add(parent)
          if (parent === ROOT_INO) break
        }
      } catch (error) {
        if (!hasCode(error, 'ENTRY_NOT_FOUND')) throw error
        this.#lose(ino)
      }
    }
  }

  #lose(ino: number): void {
    for (const [, tally] of this.tallies) {
      const { count = 0, aborted = 0 } = tally.get(ino) ?? {}
      this.lost += count + aborted
    }
  }

  /** Files that were read. */
  *#read(): Generator<{ readonly ino: number; readonly key: string }> {
    if (!this.#folders.has(ROOT_INO)) return
    // An own stack: a package may be 2,000 directories deep.
    const stack = [{ prefix: '', nodes: this.#childrenOf(ROOT_INO) }]
    while (stack.length > 0) {
      const { prefix, nodes } = stack.at(-1)!
      const next = nodes.next()
      if (next.done) {
        stack.pop()
        continue
      }
      const { kind, ino, name } = next.value
      const key = prefix + name
      if (kind === 'file') yield { ino, key }
      else {
        if (this.#isRead(ino)) this.#lose(ino)
        if (this.#folders.has(ino)) stack.push({ prefix: `${key}/`, nodes: this.#childrenOf(ino) })
      }
    }
  }

  *#childrenOf(folder: number): Generator<IndexNode> {
    const { index } = this.opened
    const { low, high } = index.childRange(folder)
    const numbers = this.#areInOrder(low, high) ? undefined : this.#sorted(low, high)
    if (numbers !== undefined) for (const ino of numbers) yield index.node(ino)
    else for (let ino = low; ino < high; ino++) if (this.#isWanted(ino)) yield index.node(ino)
  }

  #areInOrder(low: number, high: number): boolean {
    let last: string | undefined
    for (let ino = low; ino < high; ino++) {
      if (!this.#isWanted(ino)) continue
      const name = nameIn(this.opened.index, ino)
      if (last !== undefined && name < last) return false
      last = name
    }
    return true
  }

  #sorted(low: number, high: number): Uint32Array {
    const numbers = new Uint32Array(high - low)
    let wanted = 0
    for (let ino = low; ino < high; ino++) if (this.#isWanted(ino)) numbers[wanted++] = ino
    const { index } = this.opened
    return numbers.subarray(0, wanted).sort((a, b) => (nameIn(index, a) < nameIn(index, b) ? -1 : 1))
  }

  #isWanted(ino: number): boolean {
    return this.#folders.has(ino) || this.#isRead(ino)
  }

  #isRead(ino: number): boolean {
    return this.tallies.some(([, tally]) => tally.has(ino))
  }
}

/** As it stands in keys. */
function nameIn(index: PackageIndex, ino: number): string {
  const { kind, name } = index.node(ino)
  return kind === 'directory' ? `${name}/` : name
}

/** A set of inode numbers: a bit for each, in pages. */
class Bits {
  readonly #pages = new Map<number, Uint8Array>()

  has(ino: number): boolean {
    const page = this.#pages.get(ino >>> 16)
    return page !== undefined && (page[(ino & 0xffff) >>> 3]! & (1 << (ino & 7))) !== 0
  }

  add(ino: number): void {
    let page = this.#pages.get(ino >>> 16)
    if (page === undefined) {
      page = new Uint8Array(8192)
      this.#pages.set(ino >>> 16, page)
    }
    page[(ino & 0xffff) >>> 3]! |= 1 << (ino & 7)
  }
}
