import { constants } from 'node:os'
import { BobbinError, type ErrorCode } from '../model/index.js'

const { errno } = constants

/** The only file that knows errno. A new error code does not compile until it is listed. */
const errnoByCode = {
  ENTRY_NOT_FOUND: errno.ENOENT,
  NOT_A_DIRECTORY: errno.ENOTDIR,
  IS_A_DIRECTORY: errno.EISDIR,
  NO_ATTRIBUTE: errno.ENODATA,
  TOO_LARGE: errno.E2BIG,
  READ_ONLY: errno.EROFS,
  // Not ESTALE: the name is still valid, only its bytes are unusable.
  OBJECT_CORRUPT: errno.EIO,
  OBJECT_GONE: errno.EIO,
  MANIFEST_CORRUPT: errno.EIO,
  INDEX_DAMAGED: errno.EIO,
  UPSTREAM_UNAVAILABLE: errno.EIO,
  NOT_SUPPORTED: errno.EIO,
  ACCESS_DENIED: errno.EACCES,
  STORE_FULL: errno.ENOSPC,
  INTERRUPTED: errno.EINTR,
  INVALID_ARGUMENT: errno.EINVAL,
  LOCAL_IO: errno.EIO,
  INTERNAL: errno.EIO,
  // Of a mount that was detached while somebody stood in it.
  NOT_MOUNTED: errno.ENOTCONN,
  // None of these can come out of a mounted filesystem.
  REGISTRY_NOT_FOUND: errno.EIO,
  PACKAGE_NOT_FOUND: errno.EIO,
  REVISION_NOT_FOUND: errno.EIO,
  REVISION_AMBIGUOUS: errno.EIO,
  REVISION_CONFLICT: errno.EIO,
  FOLDER_DIFFERS: errno.EIO,
  PACKAGE_REFUSED: errno.EIO,
  ALREADY_MOUNTED: errno.EIO,
  MOUNTPOINT_UNUSABLE: errno.EIO,
  CACHE_IN_USE: errno.EIO,
  FUSE_UNAVAILABLE: errno.EIO,
  DAEMON_UNAVAILABLE: errno.EIO,
  PLAN_NOT_FOUND: errno.EIO,
  NOT_SERVED: errno.EIO,
  CURSOR_FOREIGN: errno.EIO,
  NOT_READY: errno.EIO,
  BUSY: errno.EIO,
  UNAUTHENTICATED: errno.EIO,
} as const satisfies Record<ErrorCode, number>

/** A positive errno; whatever is no BobbinError is a bug, and EIO. */
export function errnoOf(error: unknown): number {
  return error instanceof BobbinError ? errnoByCode[error.code] : errno.EIO
}
