/**
 * The closed list of what can go wrong, as codes that every edge (errno, HTTP status, exit code)
 * maps totally. A message is lower case, has no final dot, names the key or path, says what to do
 * where there is something to do, and never holds a credential or a signed URL.
 */

export const ERROR_CODES = [
  /** The caller's words are off: an unparsable reference, size, option. */
  'INVALID_ARGUMENT',
  /** No such bucket or folder. */
  'REGISTRY_NOT_FOUND',
  /** The registry has no package of that name. */
  'PACKAGE_NOT_FOUND',
  /** The registry has no such revision, tag or manifest. */
  'REVISION_NOT_FOUND',
  /** A top-hash prefix fits several revisions; the message lists them. */
  'REVISION_AMBIGUOUS',
  /** The name has moved on: its latest revision is not the one that a new one was made from. */
  'REVISION_CONFLICT',
  /** The package has no entry or directory of that key. */
  'ENTRY_NOT_FOUND',
  /** An entry's object is not at its physical key any more. */
  'OBJECT_GONE',
  /** A manifest's bytes do not hash to the top hash that names it. */
  'MANIFEST_CORRUPT',
  /** An object's bytes are not what the manifest says (hash or size), after one refetch. */
  'OBJECT_CORRUPT',
  /** A folder is not the revision it was compared with. */
  'FOLDER_DIFFERS',
  /** A manifest is malformed or hostile; the message names row and key. */
  'PACKAGE_REFUSED',
  /** A package index on disk is damaged or of another version; it is rebuilt, not shown. */
  'INDEX_DAMAGED',
  /** The registry or the folder refuses us, or there are no credentials. */
  'ACCESS_DENIED',
  /** The registry cannot be reached, or made no progress within the time-out. */
  'UPSTREAM_UNAVAILABLE',
  /** The server says that it cannot do this at all, so that asking again does not help. */
  'NOT_SUPPORTED',
  /** No room: quota, free-space floor or a full disk. */
  'STORE_FULL',
  /** A local file operation failed for another reason. */
  'LOCAL_IO',
  /** The mountpoint has a mount already. */
  'ALREADY_MOUNTED',
  /** The folder is not a mountpoint of ours. */
  'NOT_MOUNTED',
  /** The mountpoint is missing, not empty or not a folder. */
  'MOUNTPOINT_UNUSABLE',
  /** Another process owns the cache. */
  'CACHE_IN_USE',
  /** No /dev/fuse, no libfuse, no permission to mount. */
  'FUSE_UNAVAILABLE',
  /** The daemon did not start or does not answer. */
  'DAEMON_UNAVAILABLE',
  /** The caller gave up (Ctrl-C, SIGTERM, an INTERRUPT from the kernel). */
  'INTERRUPTED',
  /** This sidecar has no plan of that id. */
  'PLAN_NOT_FOUND',
  /** A cursor of another plan or of another top hash. */
  'CURSOR_FOREIGN',
  /** It takes longer than the caller can wait; asking again helps. */
  'NOT_READY',
  /** Too many callers at once, or the service is about to end. */
  'BUSY',
  /** This door does not serve it, or it is not there, or it failed its check: a stranger is not told which, the log is. */
  'NOT_SERVED',
  /** A token is missing or wrong. */
  'UNAUTHENTICATED',
  /** A path component is a file. */
  'NOT_A_DIRECTORY',
  /** The key is a directory where a file is needed. */
  'IS_A_DIRECTORY',
  /** No extended attribute of that name. */
  'NO_ATTRIBUTE',
  /** A value is larger than the kernel's interface can carry, or a request than a service takes. */
  'TOO_LARGE',
  /** Everything here is read-only. */
  'READ_ONLY',
  /** A bug. */
  'INTERNAL',
] as const

export type ErrorCode = (typeof ERROR_CODES)[number]

export class BobbinError extends Error {
  override readonly name = 'BobbinError'
  constructor(
    readonly code: ErrorCode,
    message: string,
    options?: { readonly cause?: unknown },
  ) {
    super(message, options)
  }
}

/** Is this one of ours with this code? */
export function hasCode(error: unknown, ...codes: readonly ErrorCode[]): error is BobbinError {
  return error instanceof BobbinError && codes.includes(error.code)
}

/** Linux's errors that Node.js has no name for. */
const LINUX_CODES: Readonly<Record<string, string>> = {
  'Unknown system error -116': 'ESTALE',
  'Unknown system error -121': 'EREMOTEIO',
}

/** The `code` of a Node.js system error (`ENOENT`, …), if it is one. */
export function systemCode(error: unknown): string | undefined {
  if (typeof error !== 'object' || error === null || !('code' in error)) return undefined
  return typeof error.code === 'string' ? (LINUX_CODES[error.code] ?? error.code) : undefined
}

/** Turns a system error on a local file into ours: `what` reads like "write /cache/objects/…". */
export function localError(what: string, error: unknown): BobbinError {
  if (error instanceof BobbinError) return error
  const code = systemCode(error)
  const reason = error instanceof Error ? error.message : String(error)
  if (code === 'ENOSPC' || code === 'EDQUOT') {
    return new BobbinError('STORE_FULL', `cannot ${what}: no space left on the device`, { cause: error })
  }
  if (code === 'EACCES' || code === 'EPERM') {
    return new BobbinError('ACCESS_DENIED', `cannot ${what}: permission denied`, { cause: error })
  }
  return new BobbinError('LOCAL_IO', `cannot ${what}: ${reason}`, { cause: error })
}

/** Throws INTERRUPTED when the signal has fired. */
export function throwIfAborted(signal: AbortSignal | undefined): void {
  if (signal?.aborted) throw new BobbinError('INTERRUPTED', 'interrupted')
}
