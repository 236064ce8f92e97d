/**
 * Files of a record. Its folder may be a stranger's, in which a link leads to a file of ours (and `record push` would push it), a
 * pipe keeps its reader waiting for ever, and a device has no end. So what is no file is not opened, or closed again unread.
 */
import { constants, fstatSync, lstatSync, openSync, type Stats } from 'node:fs'
import { BobbinError, localError, systemCode } from '../../daemon/model/index.js'

/** A pipe is opened without waiting for who writes to it, and a link not at all. */
export const OPEN_FLAGS = constants.O_RDONLY | constants.O_NONBLOCK | constants.O_NOFOLLOW

/** A descriptor, which the caller closes. Throws LOCAL_IO, ACCESS_DENIED, FOLDER_DIFFERS for what is no file. */
export function openRecordFileSync(path: string): number {
  try {
    refuseUnlessFile(path, lstatSync(path))
    const fd = openSync(path, OPEN_FLAGS)
    refuseUnlessFile(path, fstatSync(fd))
    return fd
  } catch (error) {
    throw notOpened(path, error)
  }
}

/** Throws FOLDER_DIFFERS. */
export function refuseUnlessFile(path: string, stats: Stats): void {
  if (!stats.isFile())
    throw new BobbinError('FOLDER_DIFFERS', `${path} is a link, a pipe or the like, and a record may have only files`)
}

export function notOpened(path: string, error: unknown): BobbinError {
  return localError(`read ${path}`, error)
}

/** Whether there is such a file. Throws FOLDER_DIFFERS for what has its name and is none. */
export function hasRecordFile(path: string): boolean {
  try {
    refuseUnlessFile(path, lstatSync(path))
    return true
  } catch (error) {
    if (systemCode(error) === 'ENOENT') return false
    throw notOpened(path, error)
  }
}
