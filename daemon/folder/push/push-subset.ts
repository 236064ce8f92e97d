/**
 * Entries of one package become a revision of another. No object is copied: the new rows are the old ones, and point to
 * where those point. Metadata of entries comes along, of directories and of the package it does not, as with quilt3's
 * `Package.filter`: it described the whole.
 */

import type { FileNode } from '../../index/package-index.js'
import { ManifestRows } from '../../manifest/manifest-rows.js'
import { BobbinError } from '../../model/index.js'
import type { OpenedPackage } from '../../package/package-cache.js'
import type { RowItem } from './items.js'
import { pushRevision, type Revision, type RevisionOptions } from './push-revision.js'
import { RevisionEntries } from './revision-entries.js'

export interface SubsetOptions extends RevisionOptions {
  readonly from: OpenedPackage
  readonly isWanted: (node: FileNode, key: string) => boolean
  /** Asked when no entry is wanted: why, if something can be said. */
  readonly whyNone?: (() => string | undefined) | undefined
}

/** Throws INVALID_ARGUMENT when no entry is wanted, or others could not read them, and what `pushRevision` throws. */
export async function pushSubset(options: SubsetOptions): Promise<Revision> {
  const { from, isWanted, signal } = options
  const rows = await ManifestRows.open(from.manifestPath, from.index.facts.manifestSha256, signal)
  try {
    const items = () => rowItems(from, isWanted)
    const whyNone = () => nothingSelected(options.whyNone?.())
    return await pushRevision(options, tools => new RevisionEntries({ ...options, items, rows, whyNone }, tools))
  } finally {
    rows.close()
  }
}

/** Entries of a package, as they are. */
export async function* rowItems(
  { index }: OpenedPackage,
  isWanted: (node: FileNode, key: string) => boolean = () => true,
): AsyncGenerator<RowItem> {
  for (const { node, key } of index.walk()) {
    if (node.kind === 'directory' || !isWanted(node, key)) continue
    const { ino, size } = node
    yield {
      kind: 'row',
      key: key as RowItem['key'],
      size,
      row: index.row(ino),
      object: () => index.object(ino),
      userMeta: () => index.metadata(ino),
    }
  }
}

export function nothingSelected(why: string | undefined): BobbinError {
  return new BobbinError('INVALID_ARGUMENT', `nothing to push: no entry is selected${why ? ` (${why})` : ''}`)
}
