/**
 * What the AWS SDK and the network throw, as the codes of ours. Nothing else looks at their errors.
 *
 * An S3 error has its code as `name` and the HTTP status in `$metadata`; the network's have `code`.
 */
import { BobbinError, systemCode } from '../../model/index.js'

interface S3ErrorShape {
  readonly name?: unknown
  readonly Code?: unknown
  readonly Region?: unknown
  readonly message?: unknown
  readonly $metadata?: { readonly httpStatusCode?: number }
  readonly $response?: { readonly headers?: Readonly<Record<string, string>> }
}

function shapeOf(error: unknown): S3ErrorShape {
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

const DENIED_CODES = [
  'AccessDenied',
  'AllAccessDisabled',
  'ExpiredToken',
  'InvalidAccessKeyId',
  'InvalidSecurity',
  'InvalidToken',
  'SignatureDoesNotMatch',
  'TokenRefreshRequired',
]

/** Is this a refusal of who we are, so that asking as somebody else could help? */
export function isDenied(error: unknown): boolean {
  if (error instanceof BobbinError) return false
  const code = s3Code(error)
  if (isClockSkew(code) || code === 'InvalidObjectState') return false
  return DENIED_CODES.includes(code) || httpStatus(error) === 401 || httpStatus(error) === 403
}

/** The region that the bucket is in, where the answer says that it is not the one we asked in. */
export function redirectRegion(error: unknown): string | undefined {
  const status = httpStatus(error)
  if (status !== 301 && status !== 307 && status !== 400 && status !== 403) return undefined
  const { Region, $response } = shapeOf(error)
  const header = $response?.headers?.['x-amz-bucket-region']
  if (header !== undefined && header !== '') return header
  return typeof Region === 'string' && Region !== '' ? Region : undefined
}

function isClockSkew(code: string): boolean {
  return ['RequestTimeTooSkewed', 'RequestExpired', 'RequestInTheFuture'].includes(code)
}

/** A throttled server gets better with time: the waits add up to about six seconds. */
const TRIES_MAX = 7
/** Nobody listens, or the name is unknown: often for good, so say so within a second. */
const UNREACHABLE_TRIES_MAX = 3
const RETRIED_STATUSES = [408, 425, 429, 500, 502, 503, 504]
const RETRIED_CODES = [
  'InternalError',
  'RequestTimeout',
  'ServiceUnavailable',
  'SlowDown',
  'Throttling',
  'TooManyRequests',
]

/** How many tries in all an error is worth; 1: it is final. */
export function triesMax(error: unknown): number {
  if (error instanceof BobbinError) return 1
  // The second one is the SDK's, of a connection that was silent for too long.
  if (error instanceof Error && ['SilenceError', 'TimeoutError'].includes(error.name)) return TRIES_MAX
  const status = httpStatus(error)
  // The SDK has learned the server's clock from the answer; the second try is signed with it.
  if (isClockSkew(s3Code(error))) return 2
  if (RETRIED_CODES.includes(s3Code(error))) return TRIES_MAX
  if (status !== undefined && status >= 300) return RETRIED_STATUSES.includes(status) ? TRIES_MAX : 1
  const code = systemCode(error)
  if (code !== undefined) {
    if (/CERT|SSL|TLS|SELF_SIGNED|UNABLE_TO|INVALID|ERR_INVALID/.test(code)) return 1
    return ['ECONNREFUSED', 'ENOTFOUND', 'EAI_AGAIN'].includes(code) ? UNREACHABLE_TRIES_MAX : TRIES_MAX
  }
  // A good status, and a body that could not be understood: it was cut or is not S3's.
  if (status !== undefined) return UNREACHABLE_TRIES_MAX
  return 1
}

/** `what` is the address that was asked for, `isList` whether it was a listing. */
export function s3Error(error: unknown, what: string, isList: boolean): BobbinError {
  if (error instanceof BobbinError) return error
  const code = s3Code(error)
  const status = httpStatus(error)
  const reason = error instanceof Error && error.message !== '' ? error.message : String(code)
  if (code === 'CredentialsProviderError' || code === 'TokenProviderError') {
    return new BobbinError('ACCESS_DENIED', `the AWS credentials cannot be used any more (${reason}): ${what}`, {
      cause: error,
    })
  }
  if (['NoSuchBucket', 'InvalidBucketName'].includes(code) || (isList && status === 404)) {
    return new BobbinError('REGISTRY_NOT_FOUND', `no such bucket: ${what}`, { cause: error })
  }
  if (code === 'NoSuchVersion' || (code === 'InvalidArgument' && /version/i.test(reason))) {
    return new BobbinError('OBJECT_GONE', `no such version: ${what}`, { cause: error })
  }
  if (code === 'MethodNotAllowed' || status === 405) {
    return new BobbinError('OBJECT_GONE', `deleted (this version is a delete marker): ${what}`, { cause: error })
  }
  if (status === 404 || code === 'KeyTooLongError') {
    return new BobbinError('OBJECT_GONE', `no such object: ${what}`, { cause: error })
  }
  if (code === 'InvalidObjectState') {
    return new BobbinError('ACCESS_DENIED', `archived, restore it in S3 first: ${what}`, { cause: error })
  }
  if (isClockSkew(code)) {
    return new BobbinError('ACCESS_DENIED', `the clock of this machine is too far off for S3: ${what}`, {
      cause: error,
    })
  }
  if (status === 412) {
    return new BobbinError('UPSTREAM_UNAVAILABLE', `changed while it was read: ${what}`, { cause: error })
  }
  if (status === 301 || status === 307 || code === 'AuthorizationHeaderMalformed') {
    return new BobbinError(
      'UPSTREAM_UNAVAILABLE',
      `the bucket is in another region or at another endpoint (set AWS_REGION or AWS_ENDPOINT_URL): ${what}`,
      { cause: error },
    )
  }
  if (status !== undefined && status >= 300) {
    const said = code === `HTTP ${status}` ? code : `${code} (HTTP ${status})`
    return new BobbinError('UPSTREAM_UNAVAILABLE', `the server answers ${said}: ${what}`, { cause: error })
  }
  return new BobbinError('UPSTREAM_UNAVAILABLE', `cannot reach ${what}: ${reason}`, { cause: error })
}
