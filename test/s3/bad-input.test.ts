/** What goes wrong against a real S3 server: the documented exit code, a message that helps, nothing left behind, and never a hang. */
import { createHash } from 'node:crypto'
import { mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { CreateBucketCommand, DeleteObjectCommand, PutBucketPolicyCommand, PutObjectCommand } from '@aws-sdk/client-s3'
import t, { type Test } from 'tap'
import { systemCode } from '../../daemon/model/index.js'
import { Bobbin, runProgram } from '../support/cli.js'
import { startFaultProxy } from '../support/fault-proxy.js'
import { manifestText, type Row, topHashOf } from '../support/manifest.js'
import { s3ClientOf, startS3 } from '../support/s3-server.js'

const BUCKET = 'registry'
let fresh = 0

/** One server for all: each test has its own package and cache. */
const folder = mkdtempSync(join(tmpdir(), 'bobbin-bad-'))
const server = await startS3('minio')
const client = s3ClientOf(server)
await client.send(new CreateBucketCommand({ Bucket: BUCKET }))
t.teardown(async () => {
  client.destroy()
  await server.stop()
  rmSync(folder, { recursive: true, force: true })
})

const put = (Key: string, Body: string | Buffer, Bucket = BUCKET) =>
  client.send(new PutObjectCommand({ Bucket, Key, Body }))

/** A package of small files, as quilt3 would push it to an unversioned bucket. */
async function push(
  name: string,
  files: Readonly<Record<string, string>>,
  options: { readonly bucket?: string; readonly rows?: readonly Row[] } = {},
) {
  const bucket = options.bucket ?? BUCKET
  const rows: Row[] = [...(options.rows ?? [])]
  for (const [key, content] of Object.entries(files)) {
    await put(`${name}/${key}`, content, bucket)
    const inner = createHash('sha256').update(content).digest()
    const hash = { type: 'sha2-256-chunked', value: createHash('sha256').update(inner).digest('base64') }
    rows.push({
      logical_key: key,
      physical_keys: [`s3://${bucket}/${name}/${key}`],
      size: Buffer.byteLength(content),
      hash,
      meta: {},
    })
  }
  const topHash = topHashOf(rows)
  await put(`.quilt/packages/${topHash}`, manifestText(rows), bucket)
  await put(`.quilt/named_packages/${name}/1700000000`, topHash, bucket)
  await put(`.quilt/named_packages/${name}/latest`, topHash, bucket)
  return { topHash, reference: `s3://${bucket}/${name}`, rows }
}

function newBobbin(t: Test, env: Readonly<Record<string, string | undefined>> = server.env): Bobbin {
  const home = join(folder, `home-${fresh++}`)
  mkdirSync(home)
  const bobbin = new Bobbin(join(home, 'cache'), {
    HOME: home,
    XDG_DATA_HOME: home,
    XDG_CACHE_HOME: home,
    XDG_CONFIG_HOME: home,
    ...env,
  })
  t.teardown(() => bobbin.try('stop', '--force'))
  return bobbin
}

/** The command ends so, says so, and leaves no temporary file. */
async function ends(t: Test, bobbin: Bobbin, status: number, message: RegExp, ...args: string[]): Promise<void> {
  const outcome = await bobbin.try(...args)
  t.equal(outcome.status, status, `${args.join(' ')}: ${outcome.stderr}`)
  t.match(outcome.stderr, message)
  t.strictSame(temporaries(bobbin), [])
}

function temporaries(bobbin: Bobbin): string[] {
  try {
    return readdirSync(join(bobbin.cacheDir, 'tmp'))
  } catch (error) {
    // Nothing was ever written.
    if (systemCode(error) === 'ENOENT') return []
    throw error
  }
}

const WITHOUT_KEYS = { AWS_ACCESS_KEY_ID: undefined, AWS_SECRET_ACCESS_KEY: undefined }

t.test('what is not there is 10, and the message names it', async t => {
  const { reference, topHash } = await push('bad/names', { 'a.txt': 'a' })
  const bobbin = newBobbin(t)
  await ends(t, bobbin, 10, /nowhere/, 'resolve', 's3://nowhere/ns/name')
  await ends(t, bobbin, 10, /no package bad\/nope/, 'resolve', `s3://${BUCKET}/bad/nope`)
  await ends(t, bobbin, 10, /1111111/, 'resolve', `${reference}@${'1'.repeat(64)}`)
  await ends(t, bobbin, 10, /1111111/, 'resolve', `${reference}@1111111`)
  await ends(t, bobbin, 10, /1234/, 'resolve', `${reference}:1234`)
  await ends(t, bobbin, 10, /b\.txt/, 'cat', reference, 'b.txt')
  const twin = topHash.slice(0, 8) + '0'.repeat(56)
  await put(`.quilt/packages/${twin}`, 'x')
  const prefix = `${reference}@${topHash.slice(0, 8)}`
  await ends(t, bobbin, 10, new RegExp(topHash), 'resolve', prefix)
  await ends(t, bobbin, 10, new RegExp(twin), 'resolve', prefix)
  await client.send(new DeleteObjectCommand({ Bucket: BUCKET, Key: `.quilt/packages/${twin}` }))
})

t.test('many names, revisions and files bring no warning of Node.js', async t => {
  const bucket = 'many'
  await client.send(new CreateBucketCommand({ Bucket: bucket }))
  const numbers = Array.from({ length: 30 }, (_, i) => i)
  const files = Object.fromEntries(numbers.map(i => [`${i}.txt`, `file ${i}`]))
  for (const i of numbers) await push(`many/p${i}`, { 'a.txt': `${i}` }, { bucket })
  for (const i of numbers) {
    const { topHash } = await push('many/revised', { 'a.txt': `revision ${i}` }, { bucket })
    await put(`.quilt/named_packages/many/revised/${1_700_000_001 + i}`, topHash, bucket)
  }
  const { reference } = await push('many/files', files, { bucket })
  const bobbin = newBobbin(t)
  const target = join(folder, 'many')
  for (const words of [
    ['packages', '-l', `s3://${bucket}`],
    ['packages', '--json', `s3://${bucket}`],
    ['log', `s3://${bucket}/many/revised`],
    ['ls', '-l', reference],
    ['diff', reference, `s3://${bucket}/many/p1`],
    ['install', reference, target],
    ['verify', reference, target],
    ['push', target, `s3://${bucket}/many/again`, '-m', 'again'],
  ]) {
    const { status, stderr } = await bobbin.try(...words)
    t.equal(status, 0, `${words[0]}: ${stderr}`)
    t.notMatch(stderr, /MaxListeners/, words.join(' '))
  }
  const { stdout } = await bobbin.try('packages', '-l', `s3://${bucket}`)
  t.equal(stdout.trimEnd().split('\n').length, 33)
})

t.test('credentials that are missing or wrong are 12, and a public bucket needs none', async t => {
  const { reference } = await push('bad/denied', { 'a.txt': 'a' })
  const { AWS_ENDPOINT_URL, AWS_REGION } = server.env
  await ends(
    t,
    newBobbin(t, { AWS_ENDPOINT_URL, AWS_REGION, ...WITHOUT_KEYS }),
    12,
    /no credentials/,
    'resolve',
    reference,
  )
  const wrong = { ...server.env, AWS_SECRET_ACCESS_KEY: 'wrong' }
  await ends(t, newBobbin(t, wrong), 12, /denied/, 'resolve', reference)

  await client.send(new CreateBucketCommand({ Bucket: 'public' }))
  const open = (Action: string, Resource: string) => ({
    Effect: 'Allow',
    Principal: { AWS: ['*'] },
    Action: [Action],
    Resource: [Resource],
  })
  const Policy = JSON.stringify({
    Version: '2012-10-17',
    Statement: [open('s3:GetObject', 'arn:aws:s3:::public/*'), open('s3:ListBucket', 'arn:aws:s3:::public')],
  })
  await client.send(new PutBucketPolicyCommand({ Bucket: 'public', Policy }))
  const shared = await push('bad/public', { 'a.txt': 'for all' }, { bucket: 'public' })
  const bobbin = newBobbin(t, { AWS_ENDPOINT_URL, AWS_REGION, ...WITHOUT_KEYS })
  t.equal(await bobbin.text('cat', shared.reference, 'a.txt'), 'for all')
  t.equal(
    await newBobbin(t, wrong).text('cat', shared.reference, 'a.txt'),
    'for all',
    'wrong ones do not stand in the way',
  )

  const login = newBobbin(t, { AWS_ENDPOINT_URL, AWS_REGION, ...WITHOUT_KEYS })
  const home = join(login.cacheDir, '..')
  mkdirSync(join(home, 'Quilt'))
  writeFileSync(
    join(home, 'Quilt/credentials.json'),
    JSON.stringify({
      access_key: server.accessKey,
      secret_key: server.secretKey,
      token: null,
      expiry_time: '2099-01-01T00:00:00+00:00',
    }),
  )
  t.equal(await login.text('cat', reference, 'a.txt'), 'a', "quilt3's login is enough")
})

t.test('an object that is gone, changed or short fails alone, and never shows a byte (S5, S9)', async t => {
  const files = {
    'changed.txt': 'the right text',
    'gone.txt': 'here today',
    'short.txt': 'a long text',
    'sound.txt': 'sound',
  }
  const { reference, topHash } = await push('bad/objects', files)
  await put('bad/objects/changed.txt', 'the wrong text')
  await put('bad/objects/short.txt', 'a long')
  await client.send(new DeleteObjectCommand({ Bucket: BUCKET, Key: 'bad/objects/gone.txt' }))
  const bobbin = newBobbin(t)
  await ends(t, bobbin, 13, /changed\.txt.*hashes to/, 'cat', reference, 'changed.txt')
  await ends(t, bobbin, 13, /short\.txt.*6.*11|short\.txt.*11.*6/, 'cat', reference, 'short.txt')
  await ends(t, bobbin, 10, /gone\.txt/, 'cat', reference, 'gone.txt')
  for (const key of ['changed.txt', 'short.txt', 'gone.txt'])
    t.equal((await bobbin.try('cat', reference, key)).stdout, '')

  const mountpoint = mkdtempSync(join(folder, 'mount-'))
  await bobbin.text('mount', reference, mountpoint)
  const read = (key: string) => runProgram('cat', [join(mountpoint, key)])
  for (const key of ['changed.txt', 'short.txt', 'gone.txt']) {
    const { status, stdout, stderr } = await read(key)
    t.equal(status, 1)
    t.equal(stdout, '', 'no byte, and no zeros')
    t.match(stderr, /Input\/output error/)
  }
  t.equal((await read('sound.txt')).stdout, 'sound')
  // What was wrong is mended, and the same mount goes on.
  await put('bad/objects/changed.txt', 'the right text')
  t.equal((await read('changed.txt')).stdout, 'the right text')
  await bobbin.text('umount', mountpoint)

  const target = mkdtempSync(join(folder, 'target-'))
  await ends(t, bobbin, 10, /gone\.txt/, 'install', `${reference}@${topHash}`, target, '--path', 'gone.txt')
  t.strictSame(readdirSync(target), [])
})

t.test('manifests that are wrong or hostile are 13 or 15, and nothing of them is used (S1, S2)', async t => {
  const { reference, topHash, rows } = await push('bad/manifest', { 'a.txt': 'a', 'b.txt': 'b' })
  const text = manifestText(rows)
  const key = `.quilt/packages/${topHash}`
  await put(key, text.replace('"size":1', '"size":2'))
  await ends(t, newBobbin(t), 13, new RegExp(topHash), 'ls', reference)
  await put(key, text.slice(0, -30))
  await ends(t, newBobbin(t), 15, /row 3/, 'ls', reference)
  await put(key, text.slice(0, text.lastIndexOf('{"logical_key"')))
  await ends(t, newBobbin(t), 13, /changed or cut/, 'ls', reference)

  const passwd: Row = { ...rows[0]!, logical_key: 'passwd', physical_keys: ['file:///etc/passwd'] }
  const local = await push('bad/local', { 'a.txt': 'a' }, { rows: [passwd] })
  await ends(t, newBobbin(t), 15, /row 2.*"passwd".*file:\/\//, 'ls', local.reference)
  const climbing = await push(
    'bad/climbing',
    { 'a.txt': 'a' },
    { rows: [{ ...rows[0]!, logical_key: '../../escaped' }] },
  )
  const target = mkdtempSync(join(folder, 'target-'))
  const bobbin = newBobbin(t)
  await ends(t, bobbin, 15, /row 2.*escaped/, 'install', climbing.reference, target)
  const { status, stderr } = await bobbin.try('install', climbing.reference, target, '--quarantine')
  t.equal(status, 0)
  t.match(stderr, /left out 1 row/)
  t.strictSame(readdirSync(target), ['a.txt'])
})

t.test('a dead or stalling network is 75 within the time-out, and the cache goes on (S10)', async t => {
  const { reference, topHash } = await push('bad/network', { 'a.txt': 'a', 'b.txt': 'b' })
  const proxy = await startFaultProxy(server.endpoint)
  t.teardown(() => proxy.stop())
  const bobbin = newBobbin(t, { ...server.env, AWS_ENDPOINT_URL: proxy.endpoint })
  const target = mkdtempSync(join(folder, 'target-'))
  t.equal(await bobbin.text('cat', `${reference}@${topHash}`, 'a.txt'), 'a')

  for (const fault of ['stall', 'reset'] as const) {
    proxy.fault({ kind: fault })
    const start = Date.now()
    await ends(t, bobbin, 75, /./, 'cat', `${reference}@${topHash}`, 'b.txt', '--io-timeout', '2s')
    t.ok(Date.now() - start < 15_000, `${fault}: an error, not a hang`)
    proxy.clear()
  }
  t.equal(
    await bobbin.text('cat', `${reference}@${topHash}`, 'b.txt'),
    'b',
    'the same command works when the network does',
  )

  await bobbin.text('install', `${reference}@${topHash}`, target)
  await proxy.stop()
  await ends(t, bobbin, 75, /./, 'resolve', `${reference}:latest`, '--io-timeout', '2s')
  t.equal((await bobbin.json<{ topHash: string }>('resolve', `${reference}@${topHash}`)).topHash, topHash)
  await ends(t, newBobbin(t), 75, /offline/, 'resolve', `${reference}@${topHash}`, '--offline')
  t.equal((await bobbin.json<{ ok: boolean }>('verify', `${reference}@${topHash}`, target, '--offline')).ok, true)
})

t.test('a bit that flips on the way is fetched once more (S6)', async t => {
  const { reference } = await push('bad/flips', { 'a.txt': 'x'.repeat(5000) })
  const proxy = await startFaultProxy(server.endpoint)
  t.teardown(() => proxy.stop())
  const bobbin = newBobbin(t, { ...server.env, AWS_ENDPOINT_URL: proxy.endpoint })
  await bobbin.text('resolve', reference)
  const isObject = ({ url }: { url: string }) => url.includes('a.txt')
  proxy.fault({ kind: 'flip', atByte: 100 }, { times: 1, match: isObject })
  t.equal(await bobbin.text('cat', reference, 'a.txt'), 'x'.repeat(5000))
  proxy.fault({ kind: 'flip', atByte: 100 }, { times: 2, match: isObject })
  await ends(t, bobbin, 13, /hashes to .*the manifest says/, 'cat', reference, 'a.txt')
  t.equal(await bobbin.text('cat', reference, 'a.txt'), 'x'.repeat(5000))
})
