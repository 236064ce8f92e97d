/**
 * Whether what this process leaves in a folder belongs to the folder's owner. Root may write anywhere, but the owner of a
 * cache cannot read, replace or delete the files and folders that root makes in it. So root does not begin there.
 *
 * The answer is tried out with a file, since a file server may give root's files to somebody else (root_squash), and user
 * namespaces and volumes of containers show owners differently. A user other than root is told by the kernel already.
 */
import { randomBytes } from 'node:crypto'
import { closeSync, constants, fstatSync, openSync, rmSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { BobbinError, localError, systemCode } from '../model/index.js'

/**
 * The owner's uid, when files that this process makes in the folder would not be the owner's; `undefined`: they would, the
 * folder is not there, or this process is not root.
 */
export function foreignOwner(folder: string): number | undefined {
  const uid = process.geteuid?.()
  if (uid !== 0) return undefined
  const owner = ownerOf(folder)
  if (owner === undefined || owner === uid) return undefined
  const path = join(folder, `.bobbin-${process.pid}-${randomBytes(6).toString('hex')}`)
  let fd: number
  try {
    fd = openSync(path, constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL | constants.O_NOFOLLOW, 0o600)
  } catch {
    // Read-only, or a server that does not know root: then nothing of ours gets there at all.
    return undefined
  }
  try {
    return fstatSync(fd).uid === owner ? undefined : owner
  } finally {
    closeSync(fd)
    rmSync(path, { force: true })
  }
}

/** Throws ACCESS_DENIED where `foreignOwner` finds one. `what`: "the cache", say. */
export function refuseForeignFolder(folder: string, what: string, otherwise: string): void {
  const owner = foreignOwner(folder)
  if (owner === undefined) return
  throw new BobbinError(
    'ACCESS_DENIED',
    `${what} ${folder} belongs to user ${owner}, who could neither read nor replace what root leaves in it: run this as that user (sudo -u '#${owner}' bobbin …), or ${otherwise}`,
  )
}

function ownerOf(folder: string): number | undefined {
  try {
    return statSync(folder).uid
  } catch (error) {
    if (['ENOENT', 'ENOTDIR'].includes(systemCode(error) ?? '')) return undefined
    throw localError(`look at ${folder}`, error)
  }
}
