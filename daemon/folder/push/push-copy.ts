/**
 * A package in another registry, with its objects. Rows and header stay as they are, but for where the objects lie, so
 * the top hash is the same; a part of a package is another revision, as with `filter`.
 */

import type { FileNode } from '../../index/package-index.js'
import { ManifestRows } from '../../manifest/manifest-rows.js'
import type { OpenedPackage } from '../../package/package-cache.js'
import { directoryMetas, memberText } from './push-edited.js'
import type { Pushed } from './push-folder.js'
import { pushRevision, type RevisionOptions } from './push-revision.js'
import { nothingSelected, rowItems } from './push-subset.js'
import { RevisionEntries } from './revision-entries.js'
import type { PushProgress } from './transfers.js'

export interface CopyPackageOptions extends Omit<RevisionOptions, 'message'> {
  readonly from: OpenedPackage
  /** Of a part: which entries, and what is new. Without it the whole is copied. */
  readonly part?:
    | {
        readonly isWanted: (node: FileNode, key: string) => boolean
        readonly whyNone: () => string | undefined
        readonly message: string | null
      }
    | undefined
  readonly onProgress?: ((progress: PushProgress) => void) | undefined
}

/** Throws what `pushRevision` throws, and OBJECT_CORRUPT for an object that is not what the manifest says. */
export async function copyPackage(options: CopyPackageOptions): Promise<Pushed> {
  const { from, part, signal } = options
  const { index, manifestPath, topHash } = from
  const rows = await ManifestRows.open(manifestPath, index.facts.manifestSha256, signal)
  try {
    const header = rows.header()
    const words = part ?? { message: index.message ?? null }
    const userMeta = memberText(header, 'user_meta')
    const whole = part === undefined ? { header, userMeta, expectedTopHash: topHash } : {}
    let entries: RevisionEntries | undefined
    const revision = await pushRevision({ ...options, message: words.message, ...whole }, tools => {
      entries = new RevisionEntries(
        {
          ...options,
          items: () => rowItems(from, part?.isWanted),
          rows,
          copiesObjects: true,
          // A manifest in a bucket is a stranger's word, and could have any file of this machine published.
          mayReadFiles: from.registry.kind === 'file',
          directories: part === undefined ? new Map(directoryMetas(from)) : undefined,
          whyNone: part && (() => nothingSelected(part.whyNone())),
        },
        tools,
      )
      return entries
    })
    return { ...revision, uploaded: entries?.uploaded ?? 0, reused: entries?.reused ?? 0 }
  } finally {
    rows.close()
  }
}
