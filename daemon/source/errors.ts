/**
 * What the AWS SDK and the network throw, as the codes of ours. Nothing else looks at their errors, but for `failure-class.ts`, which
 * says whether to try again.
 */
import { BobbinError, systemCode } from '../model/index.js'
import { failureClass, httpStatus, isClockSkew, s3Code } from './failure-class.js'
import { PROXY_AUTHENTICATION } from './proxies.js'

interface S3ErrorShape {
  readonly Region?: unknown
  readonly $response?: { readonly headers?: Readonly<Record<string, string>> }
}

const DENIED_CODES = [
  'AccessDenied',
  'AllAccessDisabled',
  'ExpiredToken',
  'ExpiredTokenException',
  'InvalidAccessKeyId',
  'InvalidSecurity',
  'InvalidToken',
  'InvalidTokenId',
  'SignatureDoesNotMatch',
  'TokenRefreshRequired',
]

/** Is this a refusal of who we are, so that asking as somebody else could help? */
export function isDenied(error: unknown): boolean {
  if (error instanceof BobbinError) return false
  const code = s3Code(error)
  if (failureClass(error) === 'passes' || code === 'InvalidObjectState') return false
  return DENIED_CODES.includes(code) || httpStatus(error) === 401 || httpStatus(error) === 403
}

/** Codes that say: not who you say you are, or not any more. The last three are answers to HEAD, which have no code. */
const STALE_CODES = [
  'ExpiredToken',
  'ExpiredTokenException',
  'InvalidAccessKeyId',
  'InvalidClientTokenId',
  'InvalidSecurity',
  'InvalidToken',
  'InvalidTokenId',
  'SignatureDoesNotMatch',
  'TokenRefreshRequired',
  'UnrecognizedClientException',
  // The SDK's own, when a profile, an SSO login or a token file that it had used is not good any more.
  'CredentialsProviderError',
  'TokenProviderError',
  'HTTP 400',
  'HTTP 401',
  'HTTP 403',
]

/** Could the same request be answered with credentials that are looked for anew? */
export function isStaleIdentity(error: unknown): boolean {
  return !(error instanceof BobbinError) && STALE_CODES.includes(s3Code(error))
}

/** The region that the bucket is in, where the answer says that it is not the one we asked in. */
export function redirectRegion(error: unknown): string | undefined {
  const status = httpStatus(error)
  if (status !== 301 && status !== 307 && status !== 400 && status !== 403) return undefined
  const { Region, $response }: S3ErrorShape = typeof error === 'object' && error !== null ? error : {}
  const header = $response?.headers?.['x-amz-bucket-region']
  if (header !== undefined && header !== '') return header
  return typeof Region === 'string' && Region !== '' ? Region : undefined
}

/** What went wrong, in a few words that follow a colon. */
export function reasonOf(error: unknown): string {
  const code = s3Code(error)
  const status = httpStatus(error)
  if (status !== undefined && status >= 300) {
    return `the server answers ${code === `HTTP ${status}` ? code : `${code} (HTTP ${status})`}`
  }
  // Several addresses of one name were tried: Node.js says no more than a code of that.
  return error instanceof Error && error.message !== '' ? error.message : (systemCode(error) ?? code)
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
  if (status === 407) {
    return new BobbinError('ACCESS_DENIED', `${PROXY_AUTHENTICATION}: ${what}`, { cause: error })
  }
  if (code === 'InvalidObjectState') {
    return new BobbinError('ACCESS_DENIED', `archived, restore it in S3 first: ${what}`, { cause: error })
  }
  if (isClockSkew(error)) {
    return new BobbinError('ACCESS_DENIED', `the clock of this machine is too far off for S3: ${what}`, {
      cause: error,
    })
  }
  if (isList && status === 501) {
    return new BobbinError(
      'NOT_SUPPORTED',
      `the server does not list (${code}, HTTP 501): ${what}; name the package, and its revision by a tag or the whole top hash`,
      { cause: error },
    )
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
    return new BobbinError('UPSTREAM_UNAVAILABLE', `${reasonOf(error)}: ${what}`, { cause: error })
  }
  return new BobbinError('UPSTREAM_UNAVAILABLE', `cannot reach ${what}: ${reasonOf(error)}`, { cause: error })
}
