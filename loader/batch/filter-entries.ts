/** Which entries of a package fit an expression, worked out in a process of its own. */
import { setImmediate as yieldToOthers } from 'node:timers/promises'
import { type ConfinedOptions, runConfined } from '../../daemon/confined/confined.js'
import { PackageIndex } from '../../daemon/index/package-index.js'
import type { OpenedPackage } from '../../daemon/package/package-cache.js'
import { Selector } from '../plan/selection.js'
import { selectionLimits } from './selection-limits.js'

export interface FilteredEntries {
  /** A bit per inode number, the lowest of a byte first. */
  readonly bits: Uint8Array
  /** What the first entry that the expression could not be applied to has failed with. */
  readonly firstError: string | undefined
}

interface FilterTask {
  readonly indexPath: string
  readonly manifestPath: string
  readonly where: string
}

const ENTRIES_A_TURN = 10_000

/** Throws INVALID_ARGUMENT for an expression that cannot be read, or takes too long or too much memory. */
export function filterEntries(
  { indexPath, manifestPath, index }: OpenedPackage,
  where: string,
  options: Pick<ConfinedOptions, 'signal' | 'onProgress'>,
): Promise<FilteredEntries> {
  const task: FilterTask = { indexPath, manifestPath, where }
  const what = 'select entries with --where'
  return runConfined(new URL(import.meta.url), task, { ...options, ...selectionLimits(index.facts.entries), what })
}

export function isWithin({ bits }: FilteredEntries, ino: number): boolean {
  return ((bits[ino >>> 3] ?? 0) & (1 << (ino & 7))) !== 0
}

// A default export is what runConfined asks for.
export default async function filter(
  { indexPath, manifestPath, where }: FilterTask,
  onProgress: (seen: number) => void,
): Promise<FilteredEntries> {
  const selector = new Selector({ select: ['**'], exclude: [], where })
  const index = new PackageIndex(indexPath, manifestPath)
  try {
    const bits = new Uint8Array(Math.ceil((index.facts.entries + index.facts.directories + 2) / 8))
    let seen = 0
    for (const { node, key } of index.walk()) {
      if (node.kind === 'directory') continue
      const { ino, size } = node
      const isWanted = selector.matches({ key, size, hash: index.object(ino).hash, meta: () => index.metadata(ino) })
      if (isWanted) bits[ino >>> 3]! |= 1 << (ino & 7)
      if (++seen % ENTRIES_A_TURN !== 0) continue
      onProgress(seen)
      await yieldToOthers()
    }
    return { bits, firstError: selector.firstError }
  } finally {
    index.close()
  }
}
