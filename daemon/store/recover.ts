/** What a store finds when it starts. */
import { lstat, readdir, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { type Log, localError, systemCode } from '../model/index.js'
import { type JournalEntry, loadJournal } from './journal.js'
import {
  isObjectId,
  OBJECT_FOLDERS,
  type ObjectId,
  objectPath,
  objectsFolder,
  parseTemporaryName,
  temporaryFolder,
} from './layout.js'

/**
 * The objects that are here, least recently used first. The journal's word is enough after a clean
 * end; otherwise the folders are walked: they decide what is there, the journal what was checked.
 */
export async function recoverObjects(
  cacheDir: string,
  journalPath: string,
  after: { readonly bootId: string; readonly keepsOrder: boolean },
  log: Log,
): Promise<{ readonly entries: Map<ObjectId, JournalEntry>; readonly isComplete: boolean }> {
  await removeTemporaries(cacheDir)
  const journal = await loadJournal(journalPath, after)
  if (journal.isComplete) return journal
  const known = new Map<ObjectId, JournalEntry>()
  let unknown = 0
  const present = new Set<ObjectId>()
  for await (const id of walkObjects(cacheDir)) {
    present.add(id)
    // A stamp holds the size, and is compared with the file before it is believed.
    if (journal.entries.get(id)?.stamp !== undefined) continue
    const stats = await lstat(objectPath(cacheDir, id)).catch(() => undefined)
    if (stats === undefined) continue
    if (!journal.entries.has(id)) unknown++
    // Never heard of, or never checked: it counts as least recently used.
    known.set(id, { size: stats.size, stamp: undefined, isSynced: false })
  }
  for (const [id, entry] of journal.entries) if (present.has(id) && entry.stamp !== undefined) known.set(id, entry)
  if (known.size > 0) log.info({ objects: known.size, unknown }, 'looked through the store after an unclean end')
  return { entries: known, isComplete: false }
}

async function* walkObjects(cacheDir: string): AsyncGenerator<ObjectId> {
  for (const type of OBJECT_FOLDERS) {
    const typeFolder = join(objectsFolder(cacheDir), type)
    for (const prefix of await list(typeFolder)) {
      for (const name of await list(join(typeFolder, prefix))) {
        const id = `${type}/${name}`
        // Where it does not lie in its place, nobody will look for it.
        if (isObjectId(id) && name.startsWith(prefix) && prefix.length === 2) yield id
      }
    }
  }
}

/**
 * Objects half written or half deleted are the owner's alone, and the owner is we. The rest of the
 * folder is shared with processes that compile packages: theirs go when they are dead.
 */
async function removeTemporaries(cacheDir: string): Promise<void> {
  const folder = temporaryFolder(cacheDir)
  for (const name of await list(folder)) {
    const temporary = parseTemporaryName(name)
    if (temporary === undefined) continue
    const { pid, isStores } = temporary
    if (!isStores && (pid === process.pid || isAlive(pid))) continue
    await rm(join(folder, name), { recursive: true, force: true }).catch(error => {
      throw localError(`delete ${join(folder, name)}`, error)
    })
  }
}

/** Is there a process of this number? */
export function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0)
    return true
  } catch (error) {
    return systemCode(error) !== 'ESRCH'
  }
}

async function list(folder: string): Promise<string[]> {
  return readdir(folder).catch(error => {
    if (['ENOENT', 'ENOTDIR'].includes(systemCode(error) ?? '')) return []
    throw localError(`list ${folder}`, error)
  })
}
