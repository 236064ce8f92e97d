/** What `DirectGets` sends, next to what AWS publishes and what the SDK itself sends. */
import { createServer, type IncomingMessage } from 'node:http'
import type { AddressInfo } from 'node:net'
import { join } from 'node:path'
import { GetObjectCommand } from '@aws-sdk/client-s3'
import t, { type Test } from 'tap'
import { S3Clients } from '../../../../daemon/source/client.js'
import { DirectGets } from '../../../../daemon/source/direct-get.js'
import type { Identity } from '../../../../daemon/source/identity.js'

/** Of AWS's documentation. */
const EXAMPLE: Identity = {
  accessKeyId: 'AKIAIOSFODNN7EXAMPLE',
  secretAccessKey: 'wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY',
}

async function clientFor(
  t: Test,
  options: { bucket?: string; endpoint?: string; region?: string; identity?: Identity | undefined },
) {
  const before = { ...process.env }
  for (const name of Object.keys(process.env)) if (name.startsWith('AWS_')) delete process.env[name]
  const nothing = join(t.testdir({}), 'nothing')
  Object.assign(process.env, { AWS_CONFIG_FILE: nothing, AWS_SHARED_CREDENTIALS_FILE: nothing })
  if (options.endpoint !== undefined) process.env.AWS_ENDPOINT_URL = options.endpoint
  const { bucket = 'data', region = 'us-east-1', identity } = options
  const clients = new S3Clients()
  t.teardown(() => {
    clients.close()
    for (const name of Object.keys(process.env)) delete process.env[name]
    Object.assign(process.env, before)
  })
  return await clients.get({ bucket, region, sign: identity && (async () => identity) })
}

t.test('request signs as the example in the documentation of Amazon S3', async t => {
  const client = await clientFor(t, {
    bucket: 'examplebucket',
    endpoint: 'https://s3.amazonaws.com',
    identity: EXAMPLE,
  })
  client.config.systemClockOffset = Date.parse('2013-05-24T00:00:00Z') - Date.now()
  const request = await new DirectGets().request(client, {
    Bucket: 'examplebucket',
    Key: 'test.txt',
    Range: 'bytes=0-9',
  })
  t.equal(request?.hostname, 'examplebucket.s3.amazonaws.com')
  t.equal(request?.path, '/test.txt')
  t.equal(
    request?.headers.authorization,
    'AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request, ' +
      'SignedHeaders=host;range;x-amz-content-sha256;x-amz-date, ' +
      'Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41',
  )
})

t.test('request finds the host and path of a bucket', async t => {
  for (const { bucket, endpoint, region, expected } of [
    { bucket: 'data', region: 'eu-west-1', expected: 'https://data.s3.eu-west-1.amazonaws.com/k' },
    { bucket: 'data', region: 'cn-north-1', expected: 'https://data.s3.cn-north-1.amazonaws.com.cn/k' },
    { bucket: 'a.b', region: 'eu-west-1', expected: 'https://s3.eu-west-1.amazonaws.com/a.b/k' },
    { bucket: 'data', endpoint: 'http://[::1]:9000', expected: 'http://[::1]:9000/data/k' },
    { bucket: 'data', endpoint: 'https://storage.example/s3/', expected: 'https://storage.example/s3/data/k' },
  ]) {
    const client = await clientFor(t, {
      bucket,
      identity: EXAMPLE,
      ...(endpoint && { endpoint }),
      ...(region && { region }),
    })
    const request = await new DirectGets().request(client, { Bucket: bucket, Key: 'k' })
    const { protocol, hostname, port, path, headers } = request!
    t.equal(`${protocol}//${hostname}${port === undefined ? '' : `:${port}`}${path}`, expected)
    t.equal(headers.host, new URL(expected).host)
    t.match(headers.authorization, `/${region ?? 'us-east-1'}/s3/aws4_request`)
  }
})

t.test('request sends the session token, and nothing of an identity where the client signs nothing', async t => {
  const signed = await clientFor(t, { identity: { ...EXAMPLE, sessionToken: 'of a session' } })
  const { headers } = (await new DirectGets().request(signed, { Bucket: 'data', Key: 'k' }))!
  t.equal(headers['x-amz-security-token'], 'of a session')
  t.match(headers.authorization, /SignedHeaders=host;x-amz-content-sha256;x-amz-date;x-amz-security-token,/)
  const unsigned = await clientFor(t, {})
  const anonymous = (await new DirectGets().request(unsigned, { Bucket: 'data', Key: 'k', Range: 'bytes=0-9' }))!
  t.same(Object.keys(anonymous.headers).sort(), ['host', 'range', 'user-agent'])
})

t.test('request leaves to the SDK what it does not know', async t => {
  const client = await clientFor(t, { identity: EXAMPLE })
  t.equal(await new DirectGets().request(client, { Bucket: 'data--use1-az4--x-s3', Key: 'k' }), undefined, 'S3 Express')
  const other = await clientFor(t, { identity: EXAMPLE })
  other.middlewareStack.add(
    next => async args => {
      Object.assign((args.request as { headers: object }).headers, { 'x-amz-something': 'new' })
      return await next(args)
    },
    { step: 'build' },
  )
  t.equal(await new DirectGets().request(other, { Bucket: 'data', Key: 'k' }), undefined, 'a header')
})

t.test('request looks again after credentials could not be had', async t => {
  let isGone = true
  const clients = new S3Clients()
  t.teardown(() => clients.close())
  const client = await clients.get({
    bucket: 'data',
    region: 'us-east-1',
    sign: async () => {
      if (isGone) throw new Error('expired')
      return EXAMPLE
    },
  })
  const gets = new DirectGets()
  t.equal(await gets.request(client, { Bucket: 'data', Key: 'k' }), undefined)
  isGone = false
  t.ok(await gets.request(client, { Bucket: 'data', Key: 'k' }))
})

t.test('send asks for any key as the SDK does', async t => {
  const seen: IncomingMessage[] = []
  const server = createServer((request, response) => {
    seen.push(request)
    response.end('body')
  })
  await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))
  t.teardown(() => {
    server.closeAllConnections()
    server.close()
  })
  const endpoint = `http://127.0.0.1:${(server.address() as AddressInfo).port}`
  const client = await clientFor(t, { endpoint, identity: EXAMPLE })
  const gets = new DirectGets()
  const { signal } = new AbortController()
  for (const input of [
    ...[' ', '+', '%', '%2F', '~-_.', 'é/e\u0301/\u{1f600}', '\'"`$&;,:=@?#!()*[]{}|^<>\\', '\n\r\t\0'],
    ...['/', '//', '/a', 'a/', 'a//b', '.', '..', 'a/../b', './a', 'k'],
  ].flatMap(Key => [
    { Bucket: 'data', Key },
    { Bucket: 'data', Key, VersionId: 'null', Range: 'bytes=1-2' },
    { Bucket: 'data', Key, VersionId: '+a/b=&%20', IfMatch: '"e"' },
  ])) {
    seen.length = 0
    const answers = [await gets.send(client, input, signal), await client.send(new GetObjectCommand(input))]
    for (const { Body } of answers) (Body as IncomingMessage).resume()
    const [ours, theirs] = seen.map(({ url, headers }) => {
      const { host, range, 'if-match': ifMatch, 'user-agent': userAgent } = headers
      const { pathname, searchParams } = new URL(url!, endpoint)
      searchParams.delete('x-id')
      return {
        rawPath: url!.replace(/\?.*/s, ''),
        pathname,
        query: [...searchParams],
        host,
        range,
        ifMatch,
        product: userAgent?.replace(/ .*/, ''),
      }
    })
    t.same(ours, theirs, JSON.stringify(input))
    t.equal(seen[0]?.headers['amz-sdk-request'], undefined, 'not by the SDK')
    t.ok(seen[1]?.headers['amz-sdk-request'])
  }
})
