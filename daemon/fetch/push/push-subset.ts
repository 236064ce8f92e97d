/**
 * Entries of one package become a revision of another. No object is copied: the new rows are the old ones, and point to
 * where those point. Metadata of entries comes along, of directories and of the package it does not, as with quilt3's
 * `Package.filter`: it described the whole.
 */
import { BobbinError, throwIfAborted } from '../../model/index.js'
import { ManifestRows } from '../../quilt/manifest-rows.js'
import type { ManifestWriter } from '../../quilt/manifest-writer.js'
import type { OpenedPackage } from '../../quilt/package-cache.js'
import type { FileNode } from '../../quilt/package-index.js'
import type { WorkflowEntry } from '../../quilt/workflow.js'
import { type Entries, pushRevision, type Revision, type RevisionOptions } from './push-revision.js'

export interface SubsetOptions extends RevisionOptions {
  readonly from: OpenedPackage
  readonly isWanted: (node: FileNode, key: string) => boolean
  /** Asked when no entry is wanted: why, if something can be said. */
  readonly whyNone?: (() => string | undefined) | undefined
  /** Entries seen so far. */
  readonly onProgress?: ((seen: number) => void) | undefined
}

/** Throws INVALID_ARGUMENT when no entry is wanted, or others could not read them, and what `pushRevision` throws. */
export async function pushSubset(options: SubsetOptions): Promise<Revision> {
  const { from, signal } = options
  const rows = await ManifestRows.open(from.manifestPath, from.index.facts.manifestSha256, signal)
  try {
    return await pushRevision(options, () => new SubsetEntries(options, rows))
  } finally {
    rows.close()
  }
}

class SubsetEntries implements Entries {
  /** Inode numbers, in tree order. */
  readonly #wanted: number[] = []

  constructor(
    private readonly options: SubsetOptions,
    private readonly rows: ManifestRows,
  ) {}

  async look(): Promise<void> {
    const { from, isWanted, whyNone, registry, signal, onProgress } = this.options
    const { index } = from
    let seen = 0
    for (const { node, key } of index.walk()) {
      if (node.kind === 'directory') continue
      if (++seen % 10_000 === 0) {
        // The loop has no other moment in which Ctrl-C is seen.
        await new Promise(setImmediate)
        throwIfAborted(signal)
        onProgress?.(seen)
      }
      if (!isWanted(node, key)) continue
      if (registry.kind === 's3' && index.object(node.ino).physicalKey.kind === 'file') {
        const reason = 'it lies in a folder of this machine, where readers of the bucket cannot get it'
        throw new BobbinError('INVALID_ARGUMENT', `${JSON.stringify(key)} cannot be in the new package: ${reason}`)
      }
      this.#wanted.push(node.ino)
    }
    if (this.#wanted.length > 0) return
    const why = whyNone?.()
    throw new BobbinError('INVALID_ARGUMENT', `nothing to push: no entry is selected${why ? ` (${why})` : ''}`)
  }

  async list(): Promise<WorkflowEntry[]> {
    const { index } = this.options.from
    return Array.from(this.#walk(), ({ ino, size, key }) => {
      return { logical_key: key, size, meta: JSON.parse(index.metadata(ino) ?? '{}') as unknown }
    })
  }

  async describe(manifest: ManifestWriter): Promise<void> {
    const { from, signal } = this.options
    for (const { ino, size, key } of this.#walk()) {
      throwIfAborted(signal)
      const { bytes, canonical } = this.rows.read(from.index.row(ino))
      manifest.addFileRow(bytes, Buffer.from(key), canonical, size)
    }
  }

  /** The index again, for the keys: it is walked faster than they are kept, or found by their numbers. */
  *#walk(): Generator<FileNode & { readonly key: string }> {
    let next = 0
    for (const { node, key } of this.options.from.index.walk()) {
      if (node.ino !== this.#wanted[next] || node.kind === 'directory') continue
      next++
      yield { ...node, key }
    }
  }

  write(manifest: ManifestWriter): Promise<void> {
    return this.describe(manifest)
  }
}
