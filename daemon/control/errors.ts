/** Errors on their way through HTTP: a status for each code, and RFC 9457 problem documents that carry the code. */
import { type Static, Type } from '@sinclair/typebox'
import { Value } from '@sinclair/typebox/value'
import { BobbinError, ERROR_CODES, type ErrorCode } from '../model/index.js'

/** The only file that knows status codes of errors. A new error code does not compile until it is listed. */
const statusByCode = {
  INVALID_ARGUMENT: 400,
  ACCESS_DENIED: 403,
  REGISTRY_NOT_FOUND: 404,
  PACKAGE_NOT_FOUND: 404,
  REVISION_NOT_FOUND: 404,
  ENTRY_NOT_FOUND: 404,
  NOT_MOUNTED: 404,
  NO_ATTRIBUTE: 404,
  OBJECT_GONE: 410,
  ALREADY_MOUNTED: 409,
  CACHE_IN_USE: 409,
  REVISION_AMBIGUOUS: 409,
  FOLDER_DIFFERS: 409,
  TOO_LARGE: 413,
  MOUNTPOINT_UNUSABLE: 422,
  NOT_A_DIRECTORY: 422,
  IS_A_DIRECTORY: 422,
  PACKAGE_REFUSED: 422,
  READ_ONLY: 422,
  // 499 of nginx: whoever asked has gone.
  INTERRUPTED: 499,
  INTERNAL: 500,
  LOCAL_IO: 500,
  INDEX_DAMAGED: 500,
  FUSE_UNAVAILABLE: 501,
  MANIFEST_CORRUPT: 502,
  OBJECT_CORRUPT: 502,
  UPSTREAM_UNAVAILABLE: 503,
  DAEMON_UNAVAILABLE: 503,
  STORE_FULL: 507,
} as const satisfies Record<ErrorCode, number>

export const PROBLEM_TYPE = 'application/problem+json'

export const Problem = Type.Object({
  type: Type.String(),
  title: Type.String(),
  status: Type.Integer(),
  detail: Type.String(),
  code: Type.Union(ERROR_CODES.map(code => Type.Literal(code))),
})
export type Problem = Static<typeof Problem>

/** What is no BobbinError is a bug: its message stays in the log. */
export function problemOf(error: unknown): Problem {
  const code = error instanceof BobbinError ? error.code : 'INTERNAL'
  return {
    type: `urn:bobbin:error:${code.toLowerCase().replaceAll('_', '-')}`,
    title: code.toLowerCase().replaceAll('_', ' '),
    status: statusByCode[code],
    detail: error instanceof BobbinError ? error.message : 'a bug in the daemon; its log says more',
    code,
  }
}

/** The error that a problem document was made from; `status` is for answers that hold none. */
export function errorOf(body: unknown, status: number): BobbinError {
  if (Value.Check(Problem, body)) return new BobbinError(body.code as ErrorCode, body.detail)
  return new BobbinError('DAEMON_UNAVAILABLE', `the daemon answered ${status}, which it does not do: is it another version?`)
}
