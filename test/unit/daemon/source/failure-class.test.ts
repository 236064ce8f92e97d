/** Which failures of requests pass: the one table that every verb goes by. */
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { S3Client } from '@aws-sdk/client-s3'
import t from 'tap'
import { BobbinError } from '../../../../daemon/model/index.js'
import { type FailureClass, failureClass, retryAfterMs, SilenceError } from '../../../../daemon/source/failure-class.js'

interface Answer {
  readonly status: number
  readonly code?: string
  readonly headers?: Record<string, string>
}

const answers: readonly (readonly [Answer, FailureClass])[] = [
  [{ status: 500 }, 'passes'],
  [{ status: 500, code: 'InternalError' }, 'passes'],
  [{ status: 502 }, 'passes'],
  [{ status: 503, code: 'SlowDown' }, 'passes'],
  [{ status: 503, code: 'ServiceUnavailable' }, 'passes'],
  [{ status: 503, code: 'AnythingElse' }, 'passes'],
  [{ status: 504 }, 'passes'],
  [{ status: 521 }, 'passes'],
  [{ status: 408 }, 'passes'],
  [{ status: 425 }, 'passes'],
  [{ status: 429 }, 'passes'],
  [{ status: 429, code: 'TooManyRequests' }, 'passes'],
  [{ status: 400, code: 'RequestTimeout' }, 'passes'],
  [{ status: 400, code: 'Throttling' }, 'passes'],
  [{ status: 400, code: 'ThrottlingException' }, 'passes'],
  [{ status: 403, code: 'RequestTimeTooSkewed' }, 'passes'],
  [{ status: 403, code: 'RequestExpired' }, 'passes'],
  [{ status: 409, code: 'OperationAborted' }, 'passes'],
  [{ status: 400, code: 'ExpiredToken' }, 'credentials'],
  [{ status: 403, code: 'InvalidAccessKeyId' }, 'credentials'],
  [{ status: 403, code: 'InvalidToken' }, 'credentials'],
  [{ status: 400, code: 'TokenRefreshRequired' }, 'credentials'],
  [{ status: 403 }, 'final'],
  [{ status: 403, code: 'AccessDenied' }, 'final'],
  [{ status: 403, code: 'SignatureDoesNotMatch' }, 'final'],
  [{ status: 403, code: 'InvalidObjectState' }, 'final'],
  [{ status: 400 }, 'final'],
  [{ status: 400, code: 'InvalidArgument' }, 'final'],
  [{ status: 404, code: 'NoSuchKey' }, 'final'],
  [{ status: 404, code: 'NoSuchBucket' }, 'final'],
  [{ status: 405, code: 'MethodNotAllowed' }, 'final'],
  [{ status: 412, code: 'PreconditionFailed' }, 'final'],
  [{ status: 416, code: 'InvalidRange' }, 'final'],
  [{ status: 501, code: 'NotImplemented' }, 'final'],
  [{ status: 507 }, 'final'],
  // A code of another language's prototype is not one of the table's.
  [{ status: 400, code: 'constructor' }, 'final'],
]

/** What the SDK throws when a server answers so. */
async function thrownFor(client: S3Client): Promise<unknown> {
  const { GetObjectCommand } = await import('@aws-sdk/client-s3')
  return client.send(new GetObjectCommand({ Bucket: 'bucket', Key: 'k' })).then(
    () => new Error('it did not fail'),
    error => error,
  )
}

function clientOf(endpoint: string): S3Client {
  return new S3Client({
    endpoint,
    region: 'us-east-1',
    forcePathStyle: true,
    maxAttempts: 1,
    credentials: { accessKeyId: 'k', secretAccessKey: 's' },
  })
}

t.test('failureClass knows what the SDK throws for each answer (S105)', async t => {
  let answer: Answer = { status: 500 }
  const server = createServer((_request, response) => {
    const body = answer.code === undefined ? '' : `<Error><Code>${answer.code}</Code><Message>m</Message></Error>`
    response.writeHead(answer.status, { 'content-type': 'application/xml', ...answer.headers }).end(body)
  })
  await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))
  t.teardown(() => server.close())
  const client = clientOf(`http://127.0.0.1:${(server.address() as AddressInfo).port}`)
  t.teardown(() => client.destroy())
  for (const [given, expected] of answers) {
    answer = given
    t.equal(failureClass(await thrownFor(client)), expected, JSON.stringify(given))
  }
  answer = { status: 503, code: 'SlowDown', headers: { 'retry-after': '7' } }
  t.equal(retryAfterMs(await thrownFor(client)), 7000)
  answer = { status: 503, headers: { 'retry-after': new Date(Date.now() + 60_000).toUTCString() } }
  const untilMs = retryAfterMs(await thrownFor(client))
  t.ok(untilMs > 50_000 && untilMs <= 60_000, `${untilMs} ms until a date`)
  for (const odd of ['soon', '-1', '']) {
    answer = { status: 503, headers: { 'retry-after': odd } }
    t.equal(retryAfterMs(await thrownFor(client)), 0, odd)
  }
  answer = { status: 503 }
  t.equal(retryAfterMs(await thrownFor(client)), 0)
})

t.test('failureClass knows what the network throws (S105)', async t => {
  const refused = clientOf('http://127.0.0.1:1')
  t.equal(failureClass(await thrownFor(refused)), 'passes', 'nobody listens')
  const several = clientOf('http://localhost:1')
  t.equal(failureClass(await thrownFor(several)), 'passes', 'nobody listens at any address of a name')
  const unknown = clientOf('http://no-such-host.invalid')
  const thrown = await thrownFor(unknown)
  // Without a name server it is EAI_AGAIN.
  const { code = '' } = thrown as { code?: string }
  t.equal(failureClass(thrown), code === 'ENOTFOUND' ? 'final' : 'passes', code)
  for (const client of [refused, several, unknown]) client.destroy()
  const ofSystem = (code: string) => Object.assign(new Error(code), { code })
  for (const code of ['EAI_AGAIN', 'ECONNRESET', 'EPIPE', 'ETIMEDOUT', 'ENETUNREACH', 'EHOSTUNREACH', 'EMFILE']) {
    t.equal(failureClass(ofSystem(code)), 'passes', code)
  }
  for (const code of ['ENOTFOUND', 'CERT_HAS_EXPIRED', 'DEPTH_ZERO_SELF_SIGNED_CERT', 'EPROTO', 'EACCES']) {
    t.equal(failureClass(ofSystem(code)), 'final', code)
  }
  t.equal(failureClass(new SilenceError('no answer')), 'passes')
  // Port 1 is one that fetch does not ask.
  const fetched = await fetch('http://127.0.0.1:2').catch(error => error)
  t.equal(failureClass(fetched), 'passes', 'what fetch throws')
  t.equal(failureClass(new BobbinError('UPSTREAM_UNAVAILABLE', 'm', { cause: fetched })), 'passes', 'and what hides it')
  t.equal(failureClass(new BobbinError('UPSTREAM_UNAVAILABLE', 'm')), 'final')
  t.equal(failureClass(new BobbinError('ACCESS_DENIED', 'm', { cause: fetched })), 'final')
  t.equal(failureClass(new Error('a bug')), 'final')
  t.equal(failureClass(undefined), 'final')
})
