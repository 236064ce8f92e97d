/** A folder, or some files, become a revision of a package: they are stored, unless they are there already. */
import { realpath, stat } from 'node:fs/promises'
import { sep } from 'node:path'
import { BobbinError, compareTreeOrder, type LogicalKey, localError } from '../../model/index.js'
import type { FileItem } from './items.js'
import { type MetaChoice, withMetas } from './meta-choice.js'
import { pushRevision, type Revision, type RevisionOptions } from './push-revision.js'
import { type OnSkipped, RevisionEntries } from './revision-entries.js'
import type { PushProgress } from './transfers.js'
import { checkedKey, walkFolder } from './walk-folder.js'

export interface PushOptions extends RevisionOptions, MetaChoice {
  readonly dir: string
  /** These become the entries, by their keys, and nothing else of the folder is looked at, `.quiltignore` neither. */
  readonly files?: ReadonlyMap<string, string> | undefined
  readonly onProgress?: ((progress: PushProgress) => void) | undefined
  /** What is in the folder and does not become an entry. */
  readonly onSkipped?: OnSkipped | undefined
}

export interface Pushed extends Revision {
  /** Objects that were written, */
  readonly uploaded: number
  /** and objects that were there already. */
  readonly reused: number
}

/**
 * Throws INVALID_ARGUMENT (no such folder, a name that no package may have, metadata of nothing), LOCAL_IO for a file that
 * changed while it was read, and what `pushRevision` throws. An empty folder is a package without entries, as with quilt3.
 */
export async function pushFolder(options: PushOptions): Promise<Pushed> {
  const { dir, files, signal } = options
  await requireOutside(options)
  const given = files && inTreeOrder(files)
  async function* items(onSkipped?: OnSkipped): AsyncGenerator<FileItem> {
    if (given === undefined) {
      for await (const found of walkFolder(dir, { signal, onSkipped })) yield { kind: 'file', ...found }
    } else for (const [key, path] of given) yield await fileItem(key, path)
  }
  return await pushItems(options, (_tools, onSkipped) => items(onSkipped))
}

/** Entries that are no other revision's. As quilt3's `set_dir` without metadata has it, that of the package is null. */
export async function pushItems(
  options: RevisionOptions & MetaChoice & Pick<PushOptions, 'onProgress' | 'onSkipped'>,
  items: ConstructorParameters<typeof RevisionEntries>[0]['items'],
  more: { readonly copiesObjects?: boolean } = {},
): Promise<Pushed> {
  let entries: RevisionEntries | undefined
  const userMeta = options.userMeta ?? 'null'
  const revision = await withMetas(options, metas =>
    pushRevision({ ...options, userMeta }, tools => {
      const directories = options.directories
      const namedDirectories = new Set(directories?.keys())
      entries = new RevisionEntries({ ...options, ...more, items, metas, directories, namedDirectories }, tools)
      return entries
    }),
  )
  return { ...revision, uploaded: entries?.uploaded ?? 0, reused: entries?.reused ?? 0 }
}

/** A registry in the folder would become a part of itself. */
async function requireOutside({ dir, registry }: PushOptions): Promise<void> {
  if (registry.kind !== 'file') return
  const real = (path: string) => realpath(path).catch(() => path)
  const [folder, root] = [await real(dir), await real(registry.path)]
  if (!`${root}${sep}`.startsWith(`${folder}${sep}`)) return
  throw new BobbinError('INVALID_ARGUMENT', `the registry ${root} lies in the folder that is pushed, ${folder}`)
}

export function inTreeOrder(files: ReadonlyMap<string, string>): (readonly [key: string, path: string])[] {
  return [...files]
    .map(([key, path]) => ({ key, path, bytes: Buffer.from(key) }))
    .sort((a, b) => compareTreeOrder(a.bytes, b.bytes))
    .map(({ key, path }) => [key, path])
}

/** Follows links. Throws INVALID_ARGUMENT for a key that no package may have, and for what is not a file. */
export async function fileItem(key: string, path: string): Promise<FileItem> {
  const checked: LogicalKey = checkedKey(key, path)
  const stats = await stat(path).catch(error => Promise.reject(localError(`read ${path}`, error)))
  if (!stats.isFile()) throw new BobbinError('INVALID_ARGUMENT', `${JSON.stringify(path)} is not a file`)
  return { kind: 'file', key: checked, path, size: stats.size }
}
