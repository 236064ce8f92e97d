/**
 * A revision of a package that differs in some entries from another one, without anybody having the rest: their rows
 * come along as they are, and so does the metadata of package and directories, as with quilt3's `Package.browse`, `set`,
 * `delete` and `push`.
 */

import { ROOT_INO } from '../../index/package-index.js'
import { findMember } from '../../json/json-bytes.js'
import { canonicalText } from '../../json/python-json.js'
import { ManifestRows } from '../../manifest/manifest-rows.js'
import type { OpenedPackage } from '../../package/package-cache.js'
import type { FileItem } from './items.js'
import { merged } from './items.js'
import { type MetaChoice, withMetas } from './meta-choice.js'
import { fileItem, inTreeOrder, type Pushed } from './push-folder.js'
import { pushRevision, type RevisionOptions } from './push-revision.js'
import { rowItems } from './push-subset.js'
import { RevisionEntries } from './revision-entries.js'
import type { PushProgress } from './transfers.js'

export interface EditOptions extends RevisionOptions, MetaChoice {
  readonly from: OpenedPackage
  /** Paths by key: new entries, or others in place of those that are there. */
  readonly added: ReadonlyMap<string, string>
  readonly isRemoved: (key: string) => boolean
  readonly onProgress?: ((progress: PushProgress) => void) | undefined
}

export async function pushEdited(options: EditOptions): Promise<Pushed> {
  const { from, added, isRemoved, signal } = options
  const { index, manifestPath } = from
  const rows = await ManifestRows.open(manifestPath, index.facts.manifestSha256, signal)
  try {
    const baseHeader = rows.header()
    const userMeta = options.userMeta ?? memberText(baseHeader, 'user_meta')
    const files = inTreeOrder(added)
    const items = () =>
      merged(
        rowItems(from, (_node, key) => !isRemoved(key)),
        fileItems(files),
      )
    const directories = new Map([...directoryMetas(from), ...(options.directories ?? [])])
    const namedDirectories = new Set(options.directories?.keys())
    let entries: RevisionEntries | undefined
    const revision = await withMetas(options, metas =>
      pushRevision({ ...options, userMeta, baseHeader }, tools => {
        entries = new RevisionEntries({ ...options, items, rows, metas, directories, namedDirectories }, tools)
        return entries
      }),
    )
    return { ...revision, uploaded: entries?.uploaded ?? 0, reused: entries?.reused ?? 0 }
  } finally {
    rows.close()
  }
}

async function* fileItems(files: readonly (readonly [key: string, path: string])[]): AsyncGenerator<FileItem> {
  for (const [key, path] of files) yield await fileItem(key, path)
}

/** What is false to Python, as canonical JSON: quilt3 writes no row for such metadata of a directory. */
const FALSY = ['{}', '[]', '""', 'null', 'false', '0', '0.0', '-0.0']

/** In tree order. */
export function* directoryMetas({ index }: OpenedPackage): Generator<[key: string, metadata: string]> {
  for (const { node, key } of index.walk()) {
    if (node.kind !== 'directory' || node.ino === ROOT_INO || !node.hasMetadata) continue
    const metadata = index.metadata(node.ino)
    if (metadata !== undefined && !FALSY.includes(canonicalText(metadata))) yield [key, metadata]
  }
}

export function memberText(header: Buffer, name: string): string | undefined {
  const span = findMember(header, 0, header.length, name)
  return span && header.toString('utf8', span.from, span.to)
}
