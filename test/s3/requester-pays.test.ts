/** A bucket whose requesters pay: a real S3 server behind a proxy that refuses, as S3 does, what does not say that it pays. */
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { CreateBucketCommand } from '@aws-sdk/client-s3'
import t from 'tap'
import { Bobbin } from '../support/cli.js'
import { type ProxiedRequest, startFaultProxy } from '../support/fault-proxy.js'
import { s3ClientOf, startS3 } from '../support/s3-server.js'

t.setTimeout(200_000)

const paid = ({ headers }: ProxiedRequest) => headers['x-amz-request-payer'] === 'requester'

t.test('(S185) requests say that the requester pays, where that is set', async t => {
  const server = await startS3('minio')
  t.teardown(() => server.stop())
  const proxy = await startFaultProxy(server.endpoint)
  t.teardown(() => proxy.stop())
  const admin = s3ClientOf(server)
  await admin.send(new CreateBucketCommand({ Bucket: 'data' }))
  admin.destroy()
  const folder = mkdtempSync(join(tmpdir(), 'bobbin-requester-pays-'))
  t.teardown(() => rmSync(folder, { recursive: true }))
  const files = join(folder, 'files')
  mkdirSync(files)
  writeFileSync(join(files, 'small'), 'small')
  // An upload in parts.
  writeFileSync(join(files, 'large'), Buffer.alloc(9 * 2 ** 20, 'large'))
  const body = '<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>'
  proxy.fault({ kind: 'status', status: 403, body }, { match: request => !paid(request) })
  const env = { ...server.env, AWS_ENDPOINT_URL: proxy.endpoint, HOME: folder, XDG_DATA_HOME: folder }
  const bobbin = (payer: string | undefined) => {
    return new Bobbin(join(folder, `cache-${payer}`), { ...env, AWS_REQUEST_PAYER: payer })
  }
  const reference = 's3://data/ns/pkg'

  const unpaid = await bobbin(undefined).try('push', files, reference, '-m', 'first')
  t.not(unpaid.status, 0)
  t.match(unpaid.stderr, /AWS_REQUEST_PAYER=requester if requesters pay for this bucket/)
  t.notOk(proxy.requests.some(paid), 'nobody pays unasked')
  const before = proxy.requests.length

  const paying = bobbin('requester')
  await paying.text('push', files, reference, '-m', 'first')
  t.match(await paying.text('ls', reference), 'large')
  t.equal(await paying.text('cat', reference, 'small'), 'small')
  await paying.text('log', reference)
  const paidFor = proxy.requests.slice(before)
  t.ok(paidFor.every(paid))
  for (const method of ['GET', 'HEAD', 'PUT', 'POST'])
    t.ok(
      paidFor.some(request => request.method === method),
      `${method} is among them`,
    )
  t.ok(paidFor.some(({ url }) => url.includes('list-type=2')))

  const refused = await bobbin(undefined).try('cat', reference, 'small')
  t.match(refused.stderr, /AWS_REQUEST_PAYER=requester if requesters pay/)
  const odd = await bobbin('me').try('ls', reference)
  t.match(odd.stderr, /AWS_REQUEST_PAYER can only be "requester", not "me"/)
})
