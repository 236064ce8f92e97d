/**
 * `createSource` on real S3 servers, and on one behind a proxy that misbehaves.
 */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:http'
import { type AddressInfo, createServer as createTcpServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import {
  CreateBucketCommand,
  DeleteObjectCommand,
  ListObjectVersionsCommand,
  PutBucketPolicyCommand,
  PutBucketVersioningCommand,
  PutObjectCommand,
  type S3Client,
} from '@aws-sdk/client-s3'
import t, { type Test } from 'tap'
import { BobbinError, type ByteRange, parsePackageName, parseTopHash, type Source } from '../../daemon/model/index.js'
import { parseRegistry } from '../../daemon/registry/reference.js'
import { findTimestampMs } from '../../daemon/registry/registry.js'
import { createSource, type SourceConfig } from '../../daemon/source/index.js'
import { type FaultProxy, startFaultProxy } from '../support/fault-proxy.js'
import { s3ClientOf, startS3 } from '../support/s3-server.js'

type S3Server = Awaited<ReturnType<typeof startS3>>

/** Gives `process.env` these AWS settings for one test, and nothing of the machine's. */
function useEnvironment(t: Test, settings: Readonly<Record<string, string>>): void {
  const before = { ...process.env }
  for (const name of Object.keys(process.env)) if (/^(AWS|BOBBIN|XDG)_/.test(name)) delete process.env[name]
  const home = t.testdir({})
  Object.assign(process.env, {
    HOME: home,
    XDG_DATA_HOME: join(home, 'data'),
    AWS_CONFIG_FILE: join(home, 'no-config'),
    AWS_SHARED_CREDENTIALS_FILE: join(home, 'no-credentials'),
    AWS_EC2_METADATA_DISABLED: 'true',
    ...settings,
  })
  t.teardown(() => {
    for (const name of Object.keys(process.env)) delete process.env[name]
    Object.assign(process.env, before)
  })
}

function sourceFor(t: Test, config: Partial<SourceConfig> = {}): Source {
  const source = createSource({ ioTimeoutMs: 5000, ...config })
  t.teardown(() => source.close())
  return source
}

/** Signed requests to an address, as of now. */
function signed(server: S3Server, endpoint = server.endpoint): Record<string, string> {
  return {
    AWS_ENDPOINT_URL: endpoint,
    AWS_ACCESS_KEY_ID: server.accessKey,
    AWS_SECRET_ACCESS_KEY: server.secretKey,
  }
}

async function put(writer: S3Client, bucket: string, key: string, body: string | Uint8Array): Promise<string> {
  const { VersionId } = await writer.send(new PutObjectCommand({ Bucket: bucket, Key: key, Body: body }))
  return VersionId ?? ''
}

interface ReadOptions {
  readonly versionId?: string
  readonly range?: ByteRange
  readonly signal?: AbortSignal
}

async function read(source: Source, bucket: string, key: string, options: ReadOptions = {}): Promise<Buffer> {
  const { versionId, ...rest } = options
  const physicalKey = { kind: 's3' as const, bucket, key, ...(versionId === undefined ? {} : { versionId }) }
  const reading = await source.read(physicalKey, rest)
  const chunks: Uint8Array[] = []
  for await (const chunk of reading.chunks) chunks.push(chunk)
  return Buffer.concat(chunks)
}

async function namesIn(source: Source, bucket: string, folder: string, namePrefix?: string): Promise<string[]> {
  const names: string[] = []
  const options = namePrefix === undefined ? {} : { namePrefix }
  for await (const { name, isFolder } of source.list({ kind: 's3', bucket, key: folder }, options)) {
    names.push(isFolder ? `${name}/` : name)
  }
  return names
}

async function failureOf(promise: Promise<unknown>): Promise<BobbinError> {
  try {
    await promise
  } catch (error) {
    if (error instanceof BobbinError) return error
    throw error
  }
  throw new Error('it did not fail')
}

async function waitUntil(isTrue: () => Promise<boolean>, what: string): Promise<void> {
  const deadline = Date.now() + 3000
  while (!(await isTrue())) {
    if (Date.now() > deadline) throw new Error(`never happened: ${what}`)
    await new Promise(resolve => setTimeout(resolve, 20))
  }
}

const ODD_KEYS = [
  'a b',
  'a+b',
  'a%20b',
  'é/ü',
  'e\u0301',
  'q"\'`$&;,:=@?#!()*[]{}|^~<>\\',
  'new\nline\ttab',
  '\u{1f600}',
  'x/y/z',
]

for (const kind of ['versitygw', 'minio'] as const) {
  t.test(`S3Source on ${kind}`, async t => {
    const server = await startS3(kind)
    t.teardown(() => server.stop())
    const writer = s3ClientOf(server)
    t.teardown(() => writer.destroy())
    await writer.send(new CreateBucketCommand({ Bucket: 'data' }))
    const body = Buffer.from(Array.from({ length: 300_000 }, (_, i) => i % 251))
    await put(writer, 'data', 'big', body)
    await put(writer, 'data', 'empty', '')

    t.test('read gives whole objects and ranges', async t => {
      useEnvironment(t, signed(server))
      const source = sourceFor(t)
      t.ok((await read(source, 'data', 'big')).equals(body))
      t.equal((await read(source, 'data', 'empty')).length, 0)
      const middle = await read(source, 'data', 'big', { range: { start: 1000, length: 70_000 } })
      t.ok(middle.equals(body.subarray(1000, 71_000)))
      const overEnd = await read(source, 'data', 'big', { range: { start: 299_990, length: 100 } })
      t.ok(overEnd.equals(body.subarray(299_990)), 'fewer bytes only at the end of the object')
      t.equal((await read(source, 'data', 'big', { range: { start: 300_000, length: 1 } })).length, 0)
      t.equal((await read(source, 'data', 'big', { range: { start: 5, length: 0 } })).length, 0)
      t.equal((await read(source, 'data', 'empty', { range: { start: 0, length: 10 } })).length, 0)
      const reading = await source.read({ kind: 's3', bucket: 'data', key: 'big' }, { range: { start: 7, length: 1 } })
      for await (const chunk of reading.chunks) t.equal(chunk[0], 7)
      t.equal(reading.objectBytes, 300_000, 'the whole size is known from a range')
      t.ok(reading.lastModified instanceof Date)
    })

    t.test('read and list take any key', async t => {
      await writer.send(new CreateBucketCommand({ Bucket: 'odd' }))
      for (const key of ODD_KEYS) await put(writer, 'odd', `f/${key}`, `<${key}>`)
      useEnvironment(t, signed(server))
      const source = sourceFor(t)
      for (const key of ODD_KEYS) t.equal(String(await read(source, 'odd', `f/${key}`)), `<${key}>`)
      const expected = ODD_KEYS.map(key => key.replace(/\/.*/s, '/')).sort((a, b) =>
        Buffer.compare(Buffer.from(a), Buffer.from(b)),
      )
      t.same(await namesIn(source, 'odd', 'f/'), expected)
      t.same(await namesIn(source, 'odd', 'f'), expected, 'with or without the final slash')
      t.same(await namesIn(source, 'odd', 'f/', 'a'), ['a b', 'a%20b', 'a+b'])
      t.same(await namesIn(source, 'odd', ''), ['f/'])
      t.same(await namesIn(source, 'odd', 'none/'), [])
    })

    t.test('read sends one request an object, which the server believes, by itself and not by the SDK', async t => {
      await writer.send(new CreateBucketCommand({ Bucket: 'direct' }))
      await writer.send(
        new PutBucketVersioningCommand({ Bucket: 'direct', VersioningConfiguration: { Status: 'Enabled' } }),
      )
      const versions = new Map<string, string>()
      for (const key of ODD_KEYS) versions.set(key, await put(writer, 'direct', key, `<${key}>`))
      const proxy = await startFaultProxy(server.endpoint)
      t.teardown(() => proxy.stop())
      useEnvironment(t, signed(server, proxy.endpoint))
      const source = sourceFor(t)
      for (const [key, versionId] of versions) {
        const range = { start: 1, length: Buffer.byteLength(key) }
        t.equal(String(await read(source, 'direct', key, { versionId, range })), key)
      }
      await failureOf(read(source, 'direct', 'none'))
      t.equal(proxy.requests.length, ODD_KEYS.length + 1)
      for (const { headers } of proxy.requests) {
        t.ok(headers.authorization)
        t.notOk(headers['amz-sdk-request'])
      }
    })

    t.test('list goes on over pages, in order', async t => {
      await writer.send(new CreateBucketCommand({ Bucket: 'many' }))
      const names = Array.from({ length: 1203 }, (_, i) => `k${String(i).padStart(5, '0')}`)
      for (let i = 0; i < names.length; i += 60) {
        await Promise.all(names.slice(i, i + 60).map(name => put(writer, 'many', `f/${name}`, '')))
      }
      useEnvironment(t, signed(server))
      const source = sourceFor(t)
      t.same(await namesIn(source, 'many', 'f/'), names)
    })

    t.test('read tells versions apart, the null version too', async t => {
      const where = { Bucket: 'versions' }
      await writer.send(new CreateBucketCommand(where))
      await put(writer, 'versions', 'k', 'before versioning')
      await writer.send(new PutBucketVersioningCommand({ ...where, VersioningConfiguration: { Status: 'Enabled' } }))
      const first = await put(writer, 'versions', 'k', 'first')
      const second = await put(writer, 'versions', 'k', 'second')
      useEnvironment(t, signed(server))
      const source = sourceFor(t)
      const at = async (versionId: string) => String(await read(source, 'versions', 'k', { versionId }))
      t.equal(await at('null'), 'before versioning')
      t.equal(await at(first), 'first')
      t.equal(await at(second), 'second')
      t.equal(String(await read(source, 'versions', 'k')), 'second')
      for (const versionId of ['nonsense', '11111111-2222-4333-8444-555555555555']) {
        t.equal((await failureOf(at(versionId))).code, 'OBJECT_GONE', versionId)
      }
      await writer.send(new DeleteObjectCommand({ ...where, Key: 'k' }))
      t.equal((await failureOf(read(source, 'versions', 'k'))).code, 'OBJECT_GONE', 'behind a delete marker')
      t.equal(await at(first), 'first', 'older versions stay')
      const { DeleteMarkers } = await writer.send(new ListObjectVersionsCommand(where))
      const marker = DeleteMarkers?.[0]?.VersionId
      t.ok(marker)
      t.equal((await failureOf(at(marker!))).code, 'OBJECT_GONE', 'the delete marker itself')
    })

    t.test('read and list say what is missing', async t => {
      useEnvironment(t, signed(server))
      const source = sourceFor(t)
      t.equal((await failureOf(read(source, 'data', 'none'))).code, 'OBJECT_GONE')
      t.equal((await failureOf(read(source, 'data', ''))).code, 'OBJECT_GONE')
      t.equal((await failureOf(read(source, 'no-such-bucket', 'k'))).code, 'REGISTRY_NOT_FOUND')
      t.equal((await failureOf(namesIn(source, 'no-such-bucket', ''))).code, 'REGISTRY_NOT_FOUND')
    })

    t.test('read without credentials, or with wrong ones, says what was tried and what to do', async t => {
      useEnvironment(t, { AWS_ENDPOINT_URL: server.endpoint })
      const none = await failureOf(read(sourceFor(t), 'data', 'big'))
      t.equal(none.code, 'ACCESS_DENIED')
      t.match(none.message, /tried unsigned \(.*no credentials were found.*AWS_PROFILE.*quilt3/)
      useEnvironment(t, { ...signed(server), AWS_SECRET_ACCESS_KEY: 'nothing-right-about-it' })
      const wrong = await failureOf(read(sourceFor(t), 'data', 'big'))
      t.equal(wrong.code, 'ACCESS_DENIED')
      t.match(wrong.message, /with AWS_ACCESS_KEY_ID of the environment \(SignatureDoesNotMatch\) and unsigned/)
      t.notMatch(wrong.message, /nothing-right/)
      t.notMatch(wrong.message, server.accessKey)
    })

    t.test('(S125) a shared credentials file that was rewritten is read again after a refusal', async t => {
      const file = join(mkdtempSync(join(tmpdir(), 'bobbin-test-')), 'credentials')
      t.teardown(() => rmSync(join(file, '..'), { recursive: true }))
      const write = (accessKey: string, secretKey: string) =>
        writeFileSync(file, `[default]\naws_access_key_id = ${accessKey}\naws_secret_access_key = ${secretKey}\n`)
      write('unknown', server.secretKey)
      useEnvironment(t, { AWS_ENDPOINT_URL: server.endpoint, AWS_SHARED_CREDENTIALS_FILE: file })
      const source = sourceFor(t)
      const refused = await failureOf(read(source, 'data', 'big'))
      t.equal(refused.code, 'ACCESS_DENIED')
      t.match(refused.message, /InvalidAccessKeyId/)
      write(server.accessKey, server.secretKey)
      const isRead = async () => {
        try {
          return (await read(source, 'data', 'big')).equals(body)
        } catch {
          return false
        }
      }
      await waitUntil(isRead, 'a read with the new credentials')
    })

    t.test('(S125) credential_process is asked again within the read that is refused, once for many', async t => {
      const folder = mkdtempSync(join(tmpdir(), 'bobbin-test-'))
      t.teardown(() => rmSync(folder, { recursive: true }))
      const answer = (AccessKeyId: string) =>
        JSON.stringify({ Version: 1, AccessKeyId, SecretAccessKey: server.secretKey })
      writeFileSync(join(folder, 'first'), answer('unknown'))
      writeFileSync(join(folder, 'later'), answer(server.accessKey))
      const script = join(folder, 'credentials.sh')
      const choose = `if [ -e ${folder}/calls ]; then cat ${folder}/later; else cat ${folder}/first; fi`
      writeFileSync(script, `#!/bin/sh\n${choose}\necho call >>${folder}/calls\n`, { mode: 0o755 })
      writeFileSync(join(folder, 'config'), `[default]\ncredential_process = ${script}\n`)
      useEnvironment(t, { AWS_ENDPOINT_URL: server.endpoint, AWS_CONFIG_FILE: join(folder, 'config') })
      const source = sourceFor(t)
      const bodies = await Promise.all(Array.from({ length: 20 }, () => read(source, 'data', 'big')))
      t.ok(bodies.every(read => read.equals(body)))
      t.equal(readFileSync(join(folder, 'calls'), 'utf8'), 'call\ncall\n')
    })

    t.test('(S125) credentials that an answer calls expired in the middle are looked for anew', async t => {
      const file = join(mkdtempSync(join(tmpdir(), 'bobbin-test-')), 'credentials')
      t.teardown(() => rmSync(join(file, '..'), { recursive: true }))
      const write = (secretKey: string, token = '') =>
        writeFileSync(
          file,
          `[default]\naws_access_key_id = ${server.accessKey}\naws_secret_access_key = ${secretKey}\n${token}`,
        )
      const proxy = await startFaultProxy(server.endpoint)
      t.teardown(() => proxy.stop())
      write(server.secretKey)
      useEnvironment(t, { AWS_ENDPOINT_URL: proxy.endpoint, AWS_SHARED_CREDENTIALS_FILE: file })
      const source = sourceFor(t)
      t.ok((await read(source, 'data', 'big')).equals(body))
      write('of-tomorrow')
      proxy.fault(
        { kind: 'status', status: 400, body: '<Error><Code>ExpiredToken</Code><Message>expired</Message></Error>' },
        { times: 1 },
      )
      const error = await failureOf(read(source, 'data', 'big'))
      t.match(error.message, /SignatureDoesNotMatch/, 'the second request was signed with what the file has now')
    })

    t.test('(S127) the keys of the environment come before AWS_PROFILE, without a warning', async t => {
      const file = join(mkdtempSync(join(tmpdir(), 'bobbin-test-')), 'credentials')
      t.teardown(() => rmSync(join(file, '..'), { recursive: true }))
      writeFileSync(file, '[other]\naws_access_key_id = unknown\naws_secret_access_key = unknown\n')
      useEnvironment(t, { ...signed(server), AWS_PROFILE: 'other', AWS_SHARED_CREDENTIALS_FILE: file })
      const warnings = t.capture(process, 'emitWarning')
      const errors = t.capture(console, 'warn')
      t.ok((await read(sourceFor(t), 'data', 'big')).equals(body))
      t.same([...warnings(), ...errors()], [])
    })

    t.test('(S126) a registry that lets nobody list is read by a full top hash', async t => {
      await writer.send(new CreateBucketCommand({ Bucket: 'unlisted' }))
      await put(writer, 'unlisted', 'k', 'for everybody')
      const Policy = JSON.stringify({
        Version: '2012-10-17',
        Statement: [{ Effect: 'Allow', Principal: '*', Action: 's3:GetObject', Resource: 'arn:aws:s3:::unlisted/*' }],
      })
      await writer.send(new PutBucketPolicyCommand({ Bucket: 'unlisted', Policy }))
      useEnvironment(t, { AWS_ENDPOINT_URL: server.endpoint })
      const source = sourceFor(t)
      t.equal((await failureOf(namesIn(source, 'unlisted', ''))).code, 'ACCESS_DENIED', 'listing is refused here')
      t.equal(String(await read(source, 'unlisted', 'k')), 'for everybody')
      const registry = parseRegistry('s3://unlisted')
      const topHash = parseTopHash('0'.repeat(64))
      t.equal(await findTimestampMs(source, registry, parsePackageName('cv/coco'), topHash), undefined)
    })

    t.test('read goes unsigned into public buckets, and remembers it', async t => {
      await writer.send(new CreateBucketCommand({ Bucket: 'public' }))
      await put(writer, 'public', 'folder/k', 'for everybody')
      const allow = (Action: string, Resource: string) => ({ Effect: 'Allow', Principal: '*', Action, Resource })
      const Policy = JSON.stringify({
        Version: '2012-10-17',
        Statement: [allow('s3:GetObject', 'arn:aws:s3:::public/*'), allow('s3:ListBucket', 'arn:aws:s3:::public')],
      })
      await writer.send(new PutBucketPolicyCommand({ Bucket: 'public', Policy }))
      const proxy = await startFaultProxy(server.endpoint)
      t.teardown(() => proxy.stop())
      const isSigned = () => proxy.requests.map(({ headers }) => headers.authorization !== undefined)

      useEnvironment(t, { AWS_ENDPOINT_URL: proxy.endpoint })
      const anonymous = sourceFor(t)
      t.equal(String(await read(anonymous, 'public', 'folder/k')), 'for everybody')
      t.same(await namesIn(anonymous, 'public', ''), ['folder/'])
      t.same(isSigned(), [false, false], 'no credentials: unsigned at once')

      proxy.clear()
      useEnvironment(t, { ...signed(server, proxy.endpoint), AWS_ACCESS_KEY_ID: 'unknown' })
      const stranger = sourceFor(t)
      t.equal(String(await read(stranger, 'public', 'folder/k')), 'for everybody')
      t.equal(String(await read(stranger, 'public', 'folder/k')), 'for everybody')
      t.same(isSigned(), [true, false, false], 'a refusal is tried unsigned, and that is remembered')
      t.same(await namesIn(stranger, 'public', 'folder/'), ['k'])
      t.same(isSigned().slice(3), [true, false], 'but not for another operation')
      t.equal((await failureOf(read(stranger, 'public', 'folder/none'))).code, 'OBJECT_GONE')
    })
  })
}

t.test('S3Source behind a server that misbehaves', async t => {
  const server = await startS3('versitygw')
  t.teardown(() => server.stop())
  const writer = s3ClientOf(server)
  t.teardown(() => writer.destroy())
  await writer.send(new CreateBucketCommand({ Bucket: 'data' }))
  const body = Buffer.from(Array.from({ length: 3_000_000 }, (_, i) => (i * 7) % 253))
  await put(writer, 'data', 'big', body)
  await put(writer, 'data', 'folder/k', 'k')
  const proxy: FaultProxy = await startFaultProxy(server.endpoint)
  t.teardown(() => proxy.stop())
  t.beforeEach(() => proxy.clear())

  function behindProxy(t: Test, ioTimeoutMs = 5000): Source {
    useEnvironment(t, signed(server, proxy.endpoint))
    return sourceFor(t, { ioTimeoutMs })
  }

  t.test('read and list try again after 503, 500, resets and silence', async t => {
    const source = behindProxy(t, 3000)
    for (const fault of [
      { kind: 'status', status: 503, body: '<Error><Code>SlowDown</Code></Error>' },
      { kind: 'status', status: 500 },
      { kind: 'status', status: 502, body: '<html>bad gateway</html>' },
      { kind: 'reset' },
    ] as const) {
      proxy.clear()
      proxy.fault(fault, { times: 2 })
      t.ok((await read(source, 'data', 'big')).equals(body), JSON.stringify(fault))
      t.equal(proxy.requests.length, 3)
      proxy.fault(fault, { times: 1 })
      t.same(await namesIn(source, 'data', 'folder/'), ['k'])
    }
    proxy.clear()
    proxy.fault({ kind: 'stall' }, { times: 1 })
    t.ok((await read(source, 'data', 'big')).equals(body), 'a silent connection is given up for a fresh one')
    t.equal(proxy.requests.length, 2)
  })

  t.test(
    'read asks a server that answers 503 until the time-out, less and less often, and then gives up (S105)',
    async t => {
      const source = behindProxy(t, 3000)
      proxy.fault({ kind: 'status', status: 503, body: '<Error><Code>SlowDown</Code></Error>' })
      const started = performance.now()
      const error = await failureOf(read(source, 'data', 'big'))
      const tookMs = performance.now() - started
      t.equal(error.code, 'UPSTREAM_UNAVAILABLE')
      t.match(error.message, /no progress on s3:\/\/data\/big within 3.0 s, in \d+ tries: .* SlowDown \(HTTP 503\)/)
      t.ok(tookMs > 2500, `took ${tookMs} ms`)
      t.ok(proxy.requests.length > 7 && proxy.requests.length < 25, `${proxy.requests.length} requests`)
    },
  )

  t.test('read comes back no sooner than the server asks for (S105)', async t => {
    const source = behindProxy(t)
    const headers = { 'retry-after': '2' }
    proxy.fault({ kind: 'status', status: 503, headers }, { times: 1 })
    const started = performance.now()
    t.ok((await read(source, 'data', 'big')).equals(body))
    t.ok(performance.now() - started > 1990)
    t.equal(proxy.requests.length, 2)
    proxy.clear()
    proxy.fault({ kind: 'status', status: 503, headers: { 'retry-after': '3600' } })
    t.equal((await failureOf(read(source, 'data', 'big'))).code, 'UPSTREAM_UNAVAILABLE')
    t.equal(proxy.requests.length, 2, 'but within the time-out')
  })

  t.test('read and list fail after the time-out when nothing comes', async t => {
    const source = behindProxy(t, 1000)
    proxy.fault({ kind: 'stall' })
    for (const call of [() => read(source, 'data', 'big'), () => namesIn(source, 'data', 'folder/')]) {
      const started = performance.now()
      const error = await failureOf(call())
      const tookMs = performance.now() - started
      t.equal(error.code, 'UPSTREAM_UNAVAILABLE')
      t.match(error.message, /no progress on s3:\/\/data\/.* within 1.0 s/)
      t.ok(tookMs > 500 && tookMs < 1500, `took ${tookMs} ms`)
    }
    await waitUntil(async () => (await proxy.connections()) === 0, 'no connection is left behind')
  })

  t.test('read continues a body that broke, from the byte reached and only of the same object', async t => {
    const source = behindProxy(t, 2000)
    for (const fault of [
      { kind: 'reset', afterBytes: 1_000_000 },
      { kind: 'cut', afterBytes: 1_000_000 },
      { kind: 'stall', afterBytes: 1_000_000 },
    ] as const) {
      proxy.clear()
      proxy.fault(fault, { times: 2 })
      t.ok((await read(source, 'data', 'big')).equals(body), fault.kind)
      t.equal(proxy.requests.length, 3)
      t.match(proxy.requests[1]?.headers.range, /^bytes=[1-9]\d*-2999999$/)
      t.ok(proxy.requests[1]?.headers['if-match'])
      proxy.clear()
      proxy.fault({ ...fault, afterBytes: 500_000 }, { times: 1 })
      const part = await read(source, 'data', 'big', { range: { start: 100, length: 2_000_000 } })
      t.ok(part.equals(body.subarray(100, 2_000_100)), `a range, ${fault.kind}`)
    }
  })

  t.test('read fails when a body never gets further', async t => {
    const source = behindProxy(t, 1500)
    for (const kind of ['reset', 'cut', 'stall'] as const) {
      proxy.clear()
      proxy.fault({ kind, afterBytes: 100_000 }, { times: 1 })
      proxy.fault({ kind, afterBytes: 0 })
      const started = performance.now()
      const error = await failureOf(read(source, 'data', 'big'))
      t.equal(error.code, 'UPSTREAM_UNAVAILABLE', kind)
      t.match(error.message, /s3:\/\/data\/big/)
      t.ok(performance.now() - started < 4000)
      t.ok(proxy.requests.length <= 20, `${proxy.requests.length} requests`)
    }
  })

  t.test('read does not join two states of an object', async t => {
    const source = behindProxy(t)
    await put(writer, 'data', 'mutable', body)
    proxy.fault({ kind: 'cut', afterBytes: 1_000_000 }, { times: 1 })
    const reading = await source.read({ kind: 's3', bucket: 'data', key: 'mutable' })
    await put(writer, 'data', 'mutable', Buffer.alloc(body.length))
    const consume = async () => {
      for await (const chunk of reading.chunks) t.ok(chunk.length > 0)
    }
    const error = await failureOf(consume())
    t.equal(error.code, 'UPSTREAM_UNAVAILABLE')
    t.match(error.message, /changed while it was read/)
  })

  t.test('read does not hold a slow consumer against the server', async t => {
    const source = behindProxy(t, 400)
    const reading = await source.read({ kind: 's3', bucket: 'data', key: 'big' })
    await new Promise(resolve => setTimeout(resolve, 600))
    const chunks: Uint8Array[] = []
    for await (const chunk of reading.chunks) {
      if (chunks.length === 0) await new Promise(resolve => setTimeout(resolve, 600))
      chunks.push(chunk)
    }
    t.ok(Buffer.concat(chunks).equals(body))
    t.equal(proxy.requests.length, 1)
  })

  t.test('read stops when its signal fires, and leaves no connection', async t => {
    const source = behindProxy(t, 30_000)
    proxy.fault({ kind: 'stall' }, { times: 1 })
    const early = new AbortController()
    const waiting = failureOf(read(source, 'data', 'big', { signal: early.signal }))
    await waitUntil(async () => proxy.requests.length === 1, 'the request arrives')
    early.abort()
    t.equal((await waiting).code, 'INTERRUPTED')

    proxy.fault({ kind: 'stall', afterBytes: 100_000 }, { times: 1 })
    const late = new AbortController()
    const reading = failureOf(read(source, 'data', 'big', { signal: late.signal }))
    await waitUntil(async () => proxy.requests.length === 2, 'the second request arrives')
    await new Promise(resolve => setTimeout(resolve, 200))
    late.abort()
    t.equal((await reading).code, 'INTERRUPTED')

    const never = new AbortController()
    await source.read({ kind: 's3', bucket: 'data', key: 'big' }, { signal: never.signal })
    never.abort()

    for await (const chunk of (await source.read({ kind: 's3', bucket: 'data', key: 'big' })).chunks) {
      t.ok(chunk.length > 0)
      break
    }
    t.equal((await failureOf(read(source, 'data', 'big', { signal: AbortSignal.abort() }))).code, 'INTERRUPTED')
    await waitUntil(async () => (await proxy.connections()) === 0, 'no connection is left behind')
  })

  t.test('read follows a bucket into its region, once', async t => {
    const source = behindProxy(t)
    const redirect = {
      kind: 'status',
      status: 301,
      headers: { 'x-amz-bucket-region': 'eu-central-1' },
      body: '<Error><Code>PermanentRedirect</Code></Error>',
    } as const
    const scopes = () =>
      proxy.requests.map(({ headers }) => /\/(\w+-\w+-\d)\/s3/.exec(String(headers.authorization))?.[1])
    proxy.fault(redirect, { times: 1 })
    // versitygw is in us-east-1 and says so: one redirect a request, so the lie ends in an error,
    await failureOf(read(source, 'data', 'big'))
    t.same(scopes(), ['us-east-1', 'eu-central-1'])
    proxy.clear()
    t.ok((await read(source, 'data', 'big')).equals(body))
    t.same(scopes(), ['eu-central-1', 'us-east-1'], 'and the truth is followed')
    proxy.clear()
    t.ok((await read(source, 'data', 'big')).equals(body))
    t.same(scopes(), ['us-east-1'], 'and remembered')
    proxy.clear()
    proxy.fault(redirect)
    const lost = await failureOf(read(source, 'data', 'big'))
    t.equal(lost.code, 'UPSTREAM_UNAVAILABLE')
    t.match(lost.message, /another region/)
  })

  t.test('read signs with the clock of the server, once it has said that ours is wrong', async t => {
    const source = behindProxy(t)
    const date = new Date(Date.now() + 3_600_000).toUTCString()
    proxy.fault(
      { kind: 'status', status: 403, headers: { date }, body: '<Error><Code>RequestTimeTooSkewed</Code></Error>' },
      { times: 1 },
    )
    // Whose clock is right in truth, so the server refuses the second try, and the third one is signed with that.
    t.ok((await read(source, 'data', 'big')).equals(body))
    const signedAt = proxy.requests.map(({ headers }) => {
      const [, day, time] = /^(\d{8})T(\d{6})Z$/.exec(String(headers['x-amz-date']))!
      return Date.parse(`${day!.replace(/(....)(..)(..)/, '$1-$2-$3')}T${time!.replace(/(..)(..)(..)/, '$1:$2:$3')}Z`)
    })
    t.ok(Math.abs(signedAt[1]! - signedAt[0]! - 3_600_000) < 10_000, String(signedAt))
  })

  t.test(
    'read waits for a server that nobody listens for, until the time-out, and not for a name that nobody has (S105)',
    async t => {
      const port = await unusedPort()
      useEnvironment(t, signed(server, `http://127.0.0.1:${port}`))
      const source = sourceFor(t, { ioTimeoutMs: 2000 })
      const started = performance.now()
      const error = await failureOf(read(source, 'data', 'big'))
      t.equal(error.code, 'UPSTREAM_UNAVAILABLE')
      t.match(error.message, /no progress on .* within 2.0 s.*ECONNREFUSED/)
      t.ok(performance.now() - started > 1500)

      useEnvironment(t, signed(server, 'http://no-such-host.invalid'))
      const unnamed = await failureOf(read(sourceFor(t, { ioTimeoutMs: 2000 }), 'data', 'big'))
      t.equal(unnamed.code, 'UPSTREAM_UNAVAILABLE')
      t.match(unnamed.message, /ENOTFOUND|EAI_AGAIN/)
    },
  )

  t.test('read says that the endpoint is not a URL', async t => {
    useEnvironment(t, signed(server, 'localhost'))
    const error = await failureOf(read(sourceFor(t), 'data', 'big'))
    t.equal(error.code, 'INVALID_ARGUMENT')
    t.match(error.message, /AWS_ENDPOINT_URL.*localhost/)
  })

  t.test('read does not wait long for instance metadata that does not answer', async t => {
    const silent = createTcpServer(() => {})
    await new Promise<void>(resolve => silent.listen(0, '127.0.0.1', resolve))
    t.teardown(() => silent.close())
    useEnvironment(t, {
      AWS_ENDPOINT_URL: proxy.endpoint,
      AWS_EC2_METADATA_DISABLED: 'false',
      AWS_EC2_METADATA_SERVICE_ENDPOINT: `http://127.0.0.1:${(silent.address() as AddressInfo).port}`,
    })
    const source = sourceFor(t)
    const started = performance.now()
    t.equal((await failureOf(read(source, 'data', 'big'))).code, 'ACCESS_DENIED')
    t.ok(performance.now() - started < 1500, `took ${performance.now() - started} ms`)
  })

  t.test("Quilt's login takes the place of the AWS chain", async t => {
    useEnvironment(t, { ...signed(server, proxy.endpoint), AWS_SECRET_ACCESS_KEY: 'wrong' })
    process.env.XDG_DATA_HOME = quiltData(t, server, '2999-01-01T00:00:00+00:00')
    t.ok((await read(sourceFor(t), 'data', 'big')).equals(body))
    t.match(String(proxy.requests[0]?.headers.authorization), server.accessKey)
    process.env.XDG_DATA_HOME = t.testdir({ Quilt: { 'credentials.json': '{}' } })
    t.equal((await failureOf(read(sourceFor(t), 'data', 'big'))).code, 'ACCESS_DENIED', 'empty: the chain is used')
  })

  t.test("Quilt's login is asked for again when its registry is away for a moment (S105)", async t => {
    let asked = 0
    const registry = createServer((_request, response) => {
      if (++asked <= 2) return response.writeHead(503).end()
      const { accessKey: AccessKeyId, secretKey: SecretAccessKey } = server
      return response.end(JSON.stringify({ AccessKeyId, SecretAccessKey, Expiration: '2999-01-01T00:00:00Z' }))
    })
    await new Promise<void>(resolve => registry.listen(0, '127.0.0.1', resolve))
    t.teardown(() => registry.close())
    useEnvironment(t, { AWS_ENDPOINT_URL: proxy.endpoint })
    const url = `http://127.0.0.1:${(registry.address() as AddressInfo).port}`
    // The access token is good, so that only the credentials are asked for.
    process.env.XDG_DATA_HOME = quiltData(t, server, '2001-01-01T00:00:00+00:00', url, 4e9)
    t.ok((await read(sourceFor(t), 'data', 'big')).equals(body))
    t.equal(asked, 3)
  })

  t.test("Quilt's login is renewed at its registry when it has expired", async t => {
    const asked: string[] = []
    const registry = createServer((request, response) => {
      asked.push(`${request.method} ${request.url} ${request.headers.authorization ?? ''}`)
      const answer =
        request.url === '/api/token'
          ? { access_token: 'fresh', refresh_token: 'next', expires_at: 4e9 }
          : { AccessKeyId: server.accessKey, SecretAccessKey: server.secretKey, Expiration: '2999-01-01T00:00:00Z' }
      response.end(JSON.stringify(answer))
    })
    await new Promise<void>(resolve => registry.listen(0, '127.0.0.1', resolve))
    t.teardown(() => registry.close())
    const url = `http://127.0.0.1:${(registry.address() as AddressInfo).port}`
    useEnvironment(t, { AWS_ENDPOINT_URL: proxy.endpoint })
    process.env.XDG_DATA_HOME = quiltData(t, server, '2001-01-01T00:00:00+00:00', url)
    const source = sourceFor(t)
    t.ok((await read(source, 'data', 'big')).equals(body))
    t.ok((await read(source, 'data', 'big')).equals(body))
    t.same(asked, ['POST /api/token ', 'GET /api/auth/get_credentials Bearer fresh'])
    t.ok((await read(sourceFor(t), 'data', 'big')).equals(body))
    t.same(asked.slice(2), ['GET /api/auth/get_credentials Bearer fresh'], 'the renewed access token was kept')
  })

  t.test("Quilt's login that cannot be renewed is an error that says how to renew it", async t => {
    useEnvironment(t, signed(server, proxy.endpoint))
    process.env.XDG_DATA_HOME = quiltData(t, server, '2001-01-01T00:00:00+00:00')
    const error = await failureOf(read(sourceFor(t), 'data', 'big'))
    t.equal(error.code, 'ACCESS_DENIED')
    t.match(error.message, /expired.*quilt3 login/)
    process.env.XDG_DATA_HOME = quiltData(
      t,
      server,
      '2001-01-01T00:00:00+00:00',
      `http://127.0.0.1:${await unusedPort()}`,
    )
    t.equal((await failureOf(read(sourceFor(t), 'data', 'big'))).code, 'UPSTREAM_UNAVAILABLE')
  })
})

async function unusedPort(): Promise<number> {
  const server = createTcpServer()
  await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))
  const { port } = server.address() as AddressInfo
  await new Promise(resolve => server.close(resolve))
  return port
}

/** What `quilt3 login` leaves, with the server's own keys and an access token that has expired. */
function quiltData(t: Test, server: S3Server, expiry: string, registryUrl?: string, tokenExpiresAt = 1): string {
  const credentials = { access_key: server.accessKey, secret_key: server.secretKey, token: '', expiry_time: expiry }
  const login = { refresh_token: 'old', access_token: 'stale', expires_at: tokenExpiresAt }
  return t.testdir({
    Quilt: {
      'credentials.json': JSON.stringify(credentials),
      'config.yml':
        registryUrl === undefined ? 'region: null\n' : `registryUrl: "${registryUrl}/"\nregion: us-east-1 # home\n`,
      'auth.json': JSON.stringify(registryUrl === undefined ? {} : { [registryUrl]: login }),
    },
  })
}
