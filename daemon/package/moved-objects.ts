/**
 * Objects that have moved since the manifest was fetched. The top hash does not cover where they are, so a registry may have the same
 * revision with other physical keys: somebody pushed it again after its objects were copied elsewhere, or after old versions were deleted.
 */
import { BobbinError, type Entry, formatPhysicalKey, hasCode } from '../model/index.js'
import type { OpenedPackage } from './package-cache.js'

/**
 * Runs `use` on the entry. Where its object is not at its place any more, the manifest is fetched once more, and `use` runs again if the
 * entry has another place now. Throws what the first run threw where it has none.
 */
export async function atPresentPlace<T>(
  opened: OpenedPackage,
  entry: Entry,
  use: (entry: Entry) => Promise<T>,
): Promise<T> {
  try {
    return await use(entry)
  } catch (error) {
    if (!mayHaveMoved(error, entry)) throw error
    const moved = await placeNow(opened, entry)
    if (moved === undefined) throw error
    return await use(moved)
  }
}

/** Other bytes may lie there now; and S3 says of a missing object that access is denied, to whoever may not list the bucket. */
function mayHaveMoved(error: unknown, { physicalKey }: Entry): boolean {
  return (
    hasCode(error, 'OBJECT_GONE', 'OBJECT_CORRUPT') || (hasCode(error, 'ACCESS_DENIED') && physicalKey.kind === 's3')
  )
}

/** The same entry where it has another physical key now. */
async function placeNow(opened: OpenedPackage, entry: Entry): Promise<Entry | undefined> {
  try {
    await opened.fetchAgain()
    const node = opened.index.find(entry.key)
    if (node === undefined || node.kind !== 'file') return undefined
    const present = opened.index.entry(node.ino, entry.key)
    const isElsewhere = formatPhysicalKey(present.physicalKey) !== formatPhysicalKey(entry.physicalKey)
    return isElsewhere ? present : undefined
  } catch (error) {
    // What went wrong with the object is what its reader has to know.
    if (error instanceof BobbinError && error.code !== 'INTERNAL') return undefined
    throw error
  }
}
