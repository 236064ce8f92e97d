/** Servers that are only like S3: a real one, behind a proxy that refuses what some of them refuse. */
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { CreateBucketCommand } from '@aws-sdk/client-s3'
import t, { type Test } from 'tap'
import { Bobbin } from '../support/cli.js'
import { type Fault, type FaultProxy, type ProxiedRequest, startFaultProxy } from '../support/fault-proxy.js'
import { startHeldServer } from '../support/held-server.js'
import { noise } from '../support/objects.js'
import { writeRegistry } from '../support/registry.js'
import { type S3Server, s3ClientOf, startS3 } from '../support/s3-server.js'

const MIB = 2 ** 20
const FILES = { small: noise(5000, 1), 'more/small': noise(6000, 2), large: noise(9 * MIB, 3) }

interface Stage {
  readonly server: S3Server
  readonly proxy: FaultProxy
  readonly bobbin: Bobbin
  readonly folder: string
}

const hasHeader = (name: RegExp) => (request: ProxiedRequest) =>
  Object.keys(request.headers).some(header => name.test(header))
const hasChecksum = hasHeader(/^x-amz-(checksum-|sdk-checksum-algorithm)/)
const isConditional = hasHeader(/^if-(none-)?match$/)

const refusal = (status: number, code: string): Fault => ({
  kind: 'status',
  status,
  body: `<Error><Code>${code}</Code><Message>Unsupported header received for this API call</Message></Error>`,
})

t.test('pushing to servers that are only like S3', { timeout: 300_000 }, async t => {
  const server = await startS3('versitygw')
  t.teardown(() => server.stop())
  const folder = mkdtempSync(join(tmpdir(), 'bobbin-like-'))
  t.teardown(() => rmSync(folder, { recursive: true, force: true }))
  const client = s3ClientOf(server)
  await client.send(new CreateBucketCommand({ Bucket: 'like' }))
  client.destroy()
  const source = join(folder, 'source')
  mkdirSync(join(source, 'more'), { recursive: true })
  for (const [key, bytes] of Object.entries(FILES)) writeFileSync(join(source, key), bytes)
  const proxy = await startFaultProxy(server.endpoint)
  t.teardown(() => proxy.stop())
  t.beforeEach(() => proxy.clear())
  const env = { ...server.env, HOME: folder, XDG_DATA_HOME: folder, XDG_CONFIG_HOME: folder }
  const bobbin = new Bobbin(join(folder, 'cache'), { ...env, AWS_ENDPOINT_URL: proxy.endpoint })
  const stage: Stage = { server, proxy, bobbin, folder }

  for (const [what, fault] of [
    ['400, as B2', refusal(400, 'InvalidArgument')],
    ['501', refusal(501, 'NotImplemented')],
  ] as const) {
    t.test(`without checksums (${what}) it is done, and said once (S109)`, async t => {
      proxy.fault(fault, { match: hasChecksum })
      const name = `like/sums${fault.kind === 'status' ? fault.status : ''}`
      const { status, stderr } = await bobbin.try('push', source, `s3://like/${name}`, '-m', 'm')
      t.equal(status, 0, stderr)
      t.equal(stderr.match(/takes no checksums/g)?.length, 1, stderr)
      await isWhole(t, stage, name)
      writeFileSync(join(source, 'added'), `for ${name}`)
      const requests = proxy.requests.length
      const again = await bobbin.try('push', source, `s3://like/${name}`, '-m', 'm', '--force')
      t.equal(again.status, 0, again.stderr)
      t.match(again.stderr, /3 there already/, 'this bucket has no versions: what lies there is read, and used')
      t.ok(proxy.requests.length - requests < 40, `${proxy.requests.length - requests} requests`)
      rmSync(join(source, 'added'))
    })
  }

  t.test('without conditional writes (501) it is done, and said once (S109)', async t => {
    proxy.fault(refusal(501, 'NotImplemented'), {
      match: request => request.method !== 'GET' && isConditional(request),
    })
    const { status, stderr } = await bobbin.try('push', source, 's3://like/like/conditions', '-m', 'm')
    t.equal(status, 0, stderr)
    t.equal(stderr.match(/cannot write conditionally/g)?.length, 1, stderr)
    await isWhole(t, stage, 'like/conditions')
    writeFileSync(join(source, 'added'), 'another revision')
    const stale = await bobbin.try('push', source, 's3://like/like/conditions', '-m', 'm')
    t.equal(stale.status, 11, 'a parent is asked for as ever')
    rmSync(join(source, 'added'))
  })

  t.test('a server that cannot write a pointer at all is an error, and not asked for ever', async t => {
    proxy.fault(refusal(501, 'NotImplemented'), {
      match: ({ method, url }) => method === 'PUT' && url.includes('latest'),
    })
    const { status, stderr } = await bobbin.try('push', source, 's3://like/like/never', '-m', 'm')
    t.equal(status, 75, stderr)
    t.match(stderr, /NotImplemented \(HTTP 501\)/)
    t.ok(proxy.requests.length < 60, `${proxy.requests.length} requests`)
  })
})

async function isWhole(t: Test, { bobbin, folder }: Stage, name: string): Promise<void> {
  const target = mkdtempSync(join(folder, 'target-'))
  await bobbin.text('install', `s3://like/${name}`, target)
  t.equal((await bobbin.json<{ ok: boolean }>('verify', `s3://like/${name}`, target)).ok, true)
}

t.test('a server without ranges: objects come from the beginning, and a bad link is given up (S109)', async t => {
  const folder = mkdtempSync(join(tmpdir(), 'bobbin-ranges-'))
  t.teardown(() => rmSync(folder, { recursive: true, force: true }))
  const server = await startHeldServer({ hasRanges: false })
  t.teardown(() => server.stop())
  const proxy = await startFaultProxy(server.env.AWS_ENDPOINT_URL!)
  t.teardown(() => proxy.stop())
  const large = noise(20 * MIB, 4)
  const files = {
    chunked: { bytes: large, hashType: 'sha2-256-chunked' as const, physicalKey: server.add('chunked', large) },
    plain: { bytes: large.subarray(1), physicalKey: server.add('plain', large.subarray(1)) },
  }
  const { reference } = await writeRegistry(join(folder, 'registry'), 'no/ranges', files)
  const bobbin = new Bobbin(join(folder, 'cache'), { ...server.env, AWS_ENDPOINT_URL: proxy.endpoint, HOME: folder })
  const isRight = async (key: string, bytes: Buffer) => {
    const target = mkdtempSync(join(folder, 'target-'))
    const { status, stderr } = await bobbin.try('install', reference, target, '--path', key)
    t.equal(status, 0, stderr)
    t.ok(readFileSync(join(target, key)).equals(bytes), key)
  }
  await isRight('chunked', large)
  const ofPlain = ({ url }: ProxiedRequest) => url.includes('/plain')
  for (const kind of ['cut', 'reset'] as const) proxy.fault({ kind, afterBytes: 9 * MIB }, { times: 1, match: ofPlain })
  await isRight('plain', files.plain.bytes)
  proxy.clear()
  proxy.fault({ kind: 'cut', afterBytes: 9 * MIB }, { match: ofPlain })
  const { status, stderr } = await bobbin.try('cat', reference, 'plain')
  t.equal(status, 75, stderr)
  t.match(stderr, /does not serve byte ranges|broke at byte/)
  t.ok(proxy.requests.length < 10, `${proxy.requests.length} requests`)
})
