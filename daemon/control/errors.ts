/** Errors on their way over HTTP: RFC 9457 problems that carry our code, so that the client has the same error again. */
import { BobbinError, ERROR_CODES, type ErrorCode } from '../model/index.js'

const statusByCode = {
  INVALID_ARGUMENT: 400,
  MOUNTPOINT_UNUSABLE: 400,
  UNAUTHENTICATED: 401,
  ACCESS_DENIED: 403,
  REGISTRY_NOT_FOUND: 404,
  PACKAGE_NOT_FOUND: 404,
  REVISION_NOT_FOUND: 404,
  ENTRY_NOT_FOUND: 404,
  OBJECT_GONE: 404,
  PLAN_NOT_FOUND: 404,
  NOT_SERVED: 404,
  NOT_MOUNTED: 404,
  NO_ATTRIBUTE: 404,
  NOT_A_DIRECTORY: 404,
  IS_A_DIRECTORY: 404,
  READ_ONLY: 405,
  REVISION_AMBIGUOUS: 409,
  REVISION_CONFLICT: 409,
  ALREADY_MOUNTED: 409,
  CURSOR_FOREIGN: 409,
  CACHE_IN_USE: 409,
  TOO_LARGE: 413,
  PACKAGE_REFUSED: 422,
  BUSY: 429,
  INTERRUPTED: 499,
  INTERNAL: 500,
  LOCAL_IO: 500,
  INDEX_DAMAGED: 500,
  FUSE_UNAVAILABLE: 501,
  MANIFEST_CORRUPT: 502,
  OBJECT_CORRUPT: 502,
  FOLDER_DIFFERS: 502,
  UPSTREAM_UNAVAILABLE: 503,
  NOT_SUPPORTED: 501,
  NOT_READY: 503,
  DAEMON_UNAVAILABLE: 503,
  STORE_FULL: 507,
} as const satisfies Record<ErrorCode, number>

export const PROBLEM_TYPE = 'application/problem+json'

export interface Problem {
  readonly status: number
  readonly code: ErrorCode
  readonly detail: string
}

export function problemOf(error: unknown): Problem {
  if (error instanceof BobbinError) return { status: statusByCode[error.code], code: error.code, detail: error.message }
  // Fastify's own: a body that is not JSON, does not fit the schema, or is too long.
  if (error instanceof Error && 'statusCode' in error) {
    const status = Number(error.statusCode)
    const code = status === 413 ? 'TOO_LARGE' : 'INVALID_ARGUMENT'
    if (status >= 400 && status < 500) return { status, code, detail: error.message }
  }
  return { status: 500, code: 'INTERNAL', detail: error instanceof Error ? error.message : String(error) }
}

/** The error that a problem was made of. */
export function errorOf(body: string, status: number): BobbinError {
  try {
    const { code, detail } = JSON.parse(body) as Partial<Problem>
    const known = ERROR_CODES.find(candidate => candidate === code)
    if (known !== undefined && typeof detail === 'string') return new BobbinError(known, detail)
  } catch {
    // Not one of ours, so it is told as it came.
  }
  return new BobbinError('DAEMON_UNAVAILABLE', `the daemon answered ${status}: ${body.slice(0, 200)}`)
}
