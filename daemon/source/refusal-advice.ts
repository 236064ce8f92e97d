/** What to do about a refusal of S3, by its code: not every one is a matter of rights. */
import { s3Code } from './failure-class.js'

const USE_OTHERS = 'use others (AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY)'

const ADVICE: Readonly<Record<string, string>> = {
  SignatureDoesNotMatch:
    'the secret key does not belong to this access key, or a proxy changes requests on their way: check AWS_SECRET_ACCESS_KEY and the endpoint',
  InvalidAccessKeyId: `this server does not know the access key: check the key and the endpoint, or ${USE_OTHERS}`,
  ExpiredToken: 'the session of these credentials has expired: log in again (aws sso login, quilt3 login)',
  ExpiredTokenException: 'the session of these credentials has expired: log in again (aws sso login, quilt3 login)',
  TokenRefreshRequired: 'the session of these credentials has expired: log in again (aws sso login, quilt3 login)',
  InvalidToken: `the session token does not belong to this access key: check AWS_SESSION_TOKEN, or ${USE_OTHERS}`,
  InvalidTokenId: `the session token does not belong to this access key: check AWS_SESSION_TOKEN, or ${USE_OTHERS}`,
  AllAccessDisabled: 'the owner of the bucket, or AWS, has switched off all access to it',
}

/** `error`: with what the signed request was refused. `operation`: the right that it needs. */
export function refusalAdvice(error: unknown, operation: string): string {
  const advice = ADVICE[s3Code(error)]
  if (advice !== undefined) return advice
  // S3 refuses without saying that it is about this.
  const orPay = process.env.AWS_REQUEST_PAYER
    ? ''
    : ', or AWS_REQUEST_PAYER=requester if requesters pay for this bucket'
  return `these credentials need s3:${operation} there${orPay}, or ${USE_OTHERS}`
}
