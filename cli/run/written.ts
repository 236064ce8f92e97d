/**
 * What a run's command wrote above its data (`bobbin run --scratch`). While the overlay is there, the keys of the package that the
 * command no longer saw are looked up in it; afterwards the files of the upper layer get hashes. None of it is data: the ledger goes on
 * naming the bytes that came from the package.
 */
import type { Dirent } from 'node:fs'
import { lstat, open, readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { type PackageIndex, ROOT_INO } from '../../daemon/index/package-index.js'
import { BobbinError, localError, throwIfAborted } from '../../daemon/model/index.js'
import { hashFile } from '../../daemon/store/hash-file.js'
import type { OverlayMaker } from '../overlay/overlay.js'
import { upperOf } from '../overlay/scratch-folder.js'
import { fileSha256 } from '../record/ledger.js'
import type { RunFacts, RunMount } from '../record/run-facts.js'

export type Written = NonNullable<RunFacts['written']>[number]
export type Hidden = Required<Pick<Written, 'hidden' | 'hiddenMore'>>

/** Files, and hidden keys, that a record names per mount; the others are counted. */
export const WRITTEN_MAX = 10_000

/**
 * Keys of the package that are not there any more in the overlay, or are no files there; a folder that is gone is one key that ends with a slash.
 * Only folders that the command changed are looked at. Throws LOCAL_IO when the overlay cannot be read.
 */
export async function lookAtHidden(
  { folder, mountpoint }: NonNullable<RunMount['scratch']>,
  index: PackageIndex,
  signal: AbortSignal | undefined,
): Promise<Hidden> {
  const hidden: string[] = []
  let hiddenMore = 0
  const upper = upperOf(folder)
  const lookAt = async (key: string, ino: number): Promise<void> => {
    throwIfAborted(signal)
    const seen = new Map((await entriesOf(join(mountpoint, key))).map(entry => [entry.name, entry]))
    for (const child of index.children(ino)) {
      const entry = seen.get(child.name)
      const isThere = child.kind === 'file' ? entry?.isFile() : entry?.isDirectory()
      if (isThere) continue
      if (hidden.length < WRITTEN_MAX) hidden.push(`${key}${child.name}${child.kind === 'file' ? '' : '/'}`)
      else hiddenMore++
    }
    for (const { name } of (await entriesOf(join(upper, key))).filter(entry => entry.isDirectory())) {
      const child = seen.get(name)?.isDirectory() ? index.lookup(ino, name) : undefined
      if (child !== undefined && index.node(child).kind === 'directory') await lookAt(`${key}${name}/`, child)
    }
  }
  await lookAt('', ROOT_INO)
  return { hidden: hidden.sort(), hiddenMore }
}

/** The files of the upper layer. What cannot be read is a problem, in words. Throws INTERRUPTED. */
export async function hashWritten(
  { target, scratch }: RunMount,
  index: PackageIndex,
  signal: AbortSignal | undefined,
): Promise<{ readonly written: Omit<Written, keyof Hidden>; readonly problems: readonly string[] }> {
  const folder = upperOf(scratch!.folder)
  const files: Written['files'][number][] = []
  const problems: string[] = []
  let filesMore = 0
  let bytesMore = 0
  for await (const path of filesBelow(folder, '', scratch!.overlay, problems)) {
    throwIfAborted(signal)
    try {
      const { size } = await lstat(join(folder, path))
      if (files.length >= WRITTEN_MAX) {
        filesMore++
        bytesMore += size
        continue
      }
      const sha256 = await fileSha256(join(folder, path))
      if (sha256 === undefined) throw new BobbinError('LOCAL_IO', 'it is gone')
      files.push({
        path,
        size,
        sha256,
        change: await changeOf(join(folder, path), path, { size, sha256, index, signal }),
      })
    } catch (error) {
      throwIfAborted(signal)
      problems.push(unreadable(path, error))
    }
  }
  files.sort((a, b) => (a.path < b.path ? -1 : 1))
  return { written: { target, folder, files, filesMore, bytesMore }, problems }
}

/** A file of the package that was opened for writing, or given another mode, is copied, and may be what it was. */
async function changeOf(
  file: string,
  key: string,
  found: { size: number; sha256: string; index: PackageIndex; signal: AbortSignal | undefined },
): Promise<Written['files'][number]['change']> {
  const { size, sha256, index, signal } = found
  const node = index.find(key)
  if (node?.kind !== 'file') return 'added'
  const { hash } = index.entry(node.ino, key)
  if (node.size !== size) return 'changed'
  if (hash.type === 'SHA256') return sha256 === hash.hex ? 'copied' : 'changed'
  const handle = await open(file, 'r')
  try {
    return (await hashFile(handle.fd, hash.type, size, { signal })) === hash.hex ? 'copied' : 'changed'
  } finally {
    await handle.close()
  }
}

/** What a run did to its data, in words: undefined when the command saw the data as they are. */
export function shadowText({ target, files, hidden = [], hiddenMore = 0 }: Written): string | undefined {
  const changed = files.filter(({ change }) => change === 'changed').map(({ path }) => path)
  const gone = hidden.length + hiddenMore
  if (changed.length + gone === 0) return undefined
  const named = [...changed, ...hidden].slice(0, 3).map(key => JSON.stringify(key))
  const more = changed.length + gone > named.length ? ', …' : ''
  return `at ${target} the command changed ${changed.length} files of the package and hid ${gone} (${named.join(', ')}${more}): from then on it saw its own there (run.json lists them)`
}

/** Regular files alone: overlays keep what was deleted as devices, and fuse-overlayfs as files with names of its own. */
async function* filesBelow(
  folder: string,
  below: string,
  maker: OverlayMaker,
  problems: string[],
): AsyncGenerator<string> {
  let entries: Dirent[] = []
  try {
    entries = await readdir(join(folder, below), { withFileTypes: true })
  } catch (error) {
    problems.push(unreadable(below, error))
  }
  for (const entry of entries) {
    if (entry.isDirectory()) yield* filesBelow(folder, `${below}${entry.name}/`, maker, problems)
    else if (entry.isFile() && !(maker === 'fuse-overlayfs' && entry.name.startsWith('.wh.')))
      yield `${below}${entry.name}`
  }
}

async function entriesOf(folder: string): Promise<Dirent[]> {
  try {
    return await readdir(folder, { withFileTypes: true })
  } catch (error) {
    throw localError(`look at ${folder}`, error)
  }
}

function unreadable(path: string, error: unknown): string {
  return `what was written to ${JSON.stringify(path)} above the data is not in the record: ${localError('read it', error).message}`
}
