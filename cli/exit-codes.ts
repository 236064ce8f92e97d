import type { ErrorCode } from '../daemon/model/index.js'

/** The exit codes of cli.md, promised. The only file that knows them; a new error code does not compile until it is listed. */
export const EXIT_USAGE = 2

const exitCodeByError = {
  INVALID_ARGUMENT: EXIT_USAGE,
  MOUNTPOINT_UNUSABLE: EXIT_USAGE,
  REGISTRY_NOT_FOUND: 10,
  PACKAGE_NOT_FOUND: 10,
  REVISION_NOT_FOUND: 10,
  REVISION_AMBIGUOUS: 10,
  ENTRY_NOT_FOUND: 10,
  OBJECT_GONE: 10,
  NOT_A_DIRECTORY: 10,
  IS_A_DIRECTORY: 10,
  NO_ATTRIBUTE: 10,
  NOT_MOUNTED: 10,
  ALREADY_MOUNTED: 11,
  REVISION_CONFLICT: 11,
  CACHE_IN_USE: 11,
  PLAN_NOT_FOUND: 10,
  NOT_SERVED: 10,
  ACCESS_DENIED: 12,
  UNAUTHENTICATED: 12,
  MANIFEST_CORRUPT: 13,
  OBJECT_CORRUPT: 13,
  FOLDER_DIFFERS: 13,
  FUSE_UNAVAILABLE: 14,
  PACKAGE_REFUSED: 15,
  UPSTREAM_UNAVAILABLE: 75,
  NOT_READY: 75,
  BUSY: 75,
  INTERRUPTED: 130,
  CURSOR_FOREIGN: 1,
  INDEX_DAMAGED: 1,
  STORE_FULL: 1,
  LOCAL_IO: 1,
  DAEMON_UNAVAILABLE: 1,
  TOO_LARGE: 1,
  READ_ONLY: 1,
  NOT_SUPPORTED: 1,
  INTERNAL: 1,
} as const satisfies Record<ErrorCode, number>

export function exitCodeOf(code: ErrorCode): number {
  return exitCodeByError[code]
}

/** For `--help`. */
export const EXIT_CODES_HELP = `
Exit codes:
  0    done
  1    another failure
  2    wrong usage (a mountpoint that cannot be used, too)
  10   no such registry, package, revision, entry or object; an ambiguous prefix
  11   already mounted, the cache belongs to another daemon, or another revision was pushed meanwhile
  12   access denied
  13   verification failed: a manifest, an object or a folder is not what its hash says
  14   FUSE is not available here
  15   the package is refused as hostile or malformed
  75   the registry cannot be reached now; try again
  129, 130, 143  interrupted`
