/**
 * What the failure of a request means for the next try: the one classification that mounts, the loader, `install` and `push` go by.
 *
 * `passes`: asking again may help, without anybody's doing anything. How long to go on is a matter of time (`retry.ts`), never of tries.
 * `credentials`: the server does not take them any more; the same request may work after their provider was asked anew.
 * `final`: the answer will be the same. So is whatever is not listed here.
 *
 * An S3 error has its code as `name` and the HTTP status in `$metadata`; the network's have `code`.
 */
import { BobbinError, systemCode } from '../model/index.js'

export type FailureClass = 'passes' | 'credentials' | 'final'

/** S3's codes, and those that other AWS services and servers like S3 give for the same things. */
const classOfS3Code: Readonly<Record<string, FailureClass>> = {
  BandwidthLimitExceeded: 'passes',
  InternalError: 'passes',
  InternalFailure: 'passes',
  OperationAborted: 'passes',
  PriorRequestNotComplete: 'passes',
  RequestLimitExceeded: 'passes',
  RequestThrottled: 'passes',
  RequestThrottledException: 'passes',
  RequestTimeout: 'passes',
  RequestTimeoutException: 'passes',
  ServiceUnavailable: 'passes',
  SlowDown: 'passes',
  Throttled: 'passes',
  Throttling: 'passes',
  ThrottlingException: 'passes',
  TooManyRequests: 'passes',
  TooManyRequestsException: 'passes',
  // The SDK has learned the server's clock from the answer, and the next try is signed with it.
  RequestExpired: 'passes',
  RequestInTheFuture: 'passes',
  RequestTimeTooSkewed: 'passes',
  // minio's, while it starts and while too few of its disks are there.
  XMinioServerNotInitialized: 'passes',
  SlowDownRead: 'passes',
  SlowDownWrite: 'passes',
  ExpiredToken: 'credentials',
  ExpiredTokenException: 'credentials',
  InvalidAccessKeyId: 'credentials',
  InvalidToken: 'credentials',
  // minio's.
  InvalidTokenId: 'credentials',
  TokenRefreshRequired: 'credentials',
}

/** Besides 5xx, of which these stay as they are: not implemented, HTTP version, no storage left, log in to the network first. */
const PASSING_STATUSES = [408, 425, 429]
const FINAL_SERVER_STATUSES = [501, 505, 507, 511]

/**
 * Node.js's and the kernel's. ENOTFOUND is not among them: the name server has said that there is no such name, which is mostly a
 * mistake in an address; a name server that cannot be asked gives EAI_AGAIN. Certificates do not get better either.
 */
const PASSING_SYSTEM_CODES = [
  'EADDRNOTAVAIL',
  'EAGAIN',
  'EAI_AGAIN',
  'ECONNABORTED',
  'ECONNREFUSED',
  'ECONNRESET',
  'EHOSTDOWN',
  'EHOSTUNREACH',
  // Too many files are open just now.
  'EMFILE',
  'ENFILE',
  'ENETDOWN',
  'ENETRESET',
  'ENETUNREACH',
  'ENOBUFS',
  'ENOTCONN',
  'EPIPE',
  'ERR_STREAM_PREMATURE_CLOSE',
  'ETIMEDOUT',
  // Node.js's parser of HTTP: the answer was cut, or is another program's that has the port for a moment.
  'HPE_INVALID_CONSTANT',
  'HPE_INVALID_EOF_STATE',
  'UND_ERR_BODY_TIMEOUT',
  'UND_ERR_CONNECT_TIMEOUT',
  'UND_ERR_HEADERS_TIMEOUT',
  'UND_ERR_SOCKET',
]

/** An attempt that got no answer in time. */
export class SilenceError extends Error {
  override readonly name = 'SilenceError'
}

interface FailureShape {
  readonly name?: unknown
  readonly Code?: unknown
  readonly cause?: unknown
  readonly $metadata?: { readonly httpStatusCode?: number }
  readonly $response?: { readonly headers?: Readonly<Record<string, string>> }
}

function shapeOf(error: unknown): FailureShape {
  return typeof error === 'object' && error !== null ? error : {}
}

/** The S3 error code, such as `NoSuchKey`; for an answer without one its HTTP status. */
export function s3Code(error: unknown): string {
  const { Code, name, $metadata } = shapeOf(error)
  if (typeof Code === 'string' && Code !== '') return Code
  const isUseful =
    typeof name === 'string' && !['Error', 'Unknown', 'UnknownError', 'SyntaxError', '403'].includes(name)
  return isUseful ? name : `HTTP ${$metadata?.httpStatusCode ?? '?'}`
}

export function httpStatus(error: unknown): number | undefined {
  return shapeOf(error).$metadata?.httpStatusCode
}

export function isClockSkew(error: unknown): boolean {
  return ['RequestTimeTooSkewed', 'RequestExpired', 'RequestInTheFuture'].includes(s3Code(error))
}

export function failureClass(error: unknown): FailureClass {
  if (error instanceof BobbinError) {
    // Such as Quilt's login, whose registry is asked on the way: what stopped it is its cause.
    return error.code === 'UPSTREAM_UNAVAILABLE' && error.cause !== undefined ? failureClass(error.cause) : 'final'
  }
  // The second one is the SDK's, of a connection that was silent for too long.
  if (error instanceof Error && ['SilenceError', 'TimeoutError'].includes(error.name)) return 'passes'
  const code = s3Code(error)
  if (Object.hasOwn(classOfS3Code, code)) return classOfS3Code[code]!
  const status = httpStatus(error)
  if (status !== undefined) {
    if (status >= 500) return FINAL_SERVER_STATUSES.includes(status) ? 'final' : 'passes'
    if (status >= 300) return PASSING_STATUSES.includes(status) ? 'passes' : 'final'
  }
  const ofSystem = systemCode(error)
  if (ofSystem !== undefined) return PASSING_SYSTEM_CODES.includes(ofSystem) ? 'passes' : 'final'
  // A good status, and a body that could not be understood: it was cut, or is not S3's.
  if (status !== undefined) return 'passes'
  // `fetch` hides what went wrong behind "fetch failed".
  const { cause } = shapeOf(error)
  return cause === undefined ? 'final' : failureClass(cause)
}

/** How long the server asks us to stay away (`Retry-After`, in seconds or as a date); 0: it does not say. Milliseconds. */
export function retryAfterMs(error: unknown): number {
  const header = shapeOf(error).$response?.headers?.['retry-after']
  if (header === undefined) return 0
  const ms = /^\d+$/.test(header) ? Number(header) * 1000 : Date.parse(header) - Date.now()
  return Number.isFinite(ms) ? Math.max(0, ms) : 0
}
