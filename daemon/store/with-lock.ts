/** Work that one process, and one thread of it, does at a time: whoever holds flock(2) on a file. */
import { closeSync, constants, openSync } from 'node:fs'
import { BobbinError, localError } from '../model/index.js'
import { flockWithin } from './flock.js'

/**
 * The lock ends with the work, and with the process. The file is made, is empty, and stays: to delete it would let two
 * in. Throws UPSTREAM_UNAVAILABLE, which says what another one does so long, when it cannot have the lock within `waitMs`.
 */
export async function withLock<T>(
  path: string,
  { waitMs, what }: { readonly waitMs: number; readonly what: string },
  work: () => Promise<T>,
): Promise<T> {
  let fd: number
  try {
    fd = openSync(path, constants.O_RDWR | constants.O_CREAT | constants.O_NOFOLLOW | constants.O_NONBLOCK, 0o600)
  } catch (error) {
    throw localError(`write ${path}`, error)
  }
  try {
    if (!(await flockWithin(fd, waitMs))) {
      throw new BobbinError('UPSTREAM_UNAVAILABLE', `another process has been ${what} for too long: it holds ${path}`)
    }
    return await work()
  } finally {
    closeSync(fd)
  }
}
