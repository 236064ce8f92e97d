/** Copies of packages between buckets: what a killed one leaves, and buckets that one server does not have both. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { CreateBucketCommand, ListMultipartUploadsCommand } from '@aws-sdk/client-s3'
import t, { type Test } from 'tap'
import { startBucketRouter } from '../support/bucket-router.js'
import { Bobbin } from '../support/cli.js'
import { startFaultProxy } from '../support/fault-proxy.js'
import { noise } from '../support/objects.js'
import { bobbinPath } from '../support/parts.js'
import { type S3Server, s3ClientOf, startS3 } from '../support/s3-server.js'

const MIB = 2 ** 20
const FILES = { 'a/small': 'small', large: noise(17 * MIB) }

t.setTimeout(600_000)

function fixture(t: Test, server: S3Server, endpoint: string) {
  const folder = mkdtempSync(join(tmpdir(), 'bobbin-copies-'))
  t.teardown(() => rmSync(folder, { recursive: true, force: true }))
  const dir = join(folder, 'source')
  for (const [key, bytes] of Object.entries(FILES)) {
    mkdirSync(dirname(join(dir, key)), { recursive: true })
    writeFileSync(join(dir, key), bytes)
  }
  const own = { HOME: folder, XDG_DATA_HOME: join(folder, 'data'), XDG_CONFIG_HOME: join(folder, 'config') }
  const env = { ...server.env, ...own, AWS_ENDPOINT_URL: endpoint }
  return { dir, env, bobbin: new Bobbin(join(folder, 'cache'), env) }
}

async function makeBucket(server: S3Server, bucket: string): Promise<void> {
  const client = s3ClientOf(server)
  await client.send(new CreateBucketCommand({ Bucket: bucket }))
  client.destroy()
}

async function uploadsIn(server: S3Server, bucket: string): Promise<(string | undefined)[]> {
  const client = s3ClientOf(server)
  const { Uploads = [] } = await client.send(new ListMultipartUploadsCommand({ Bucket: bucket }))
  client.destroy()
  return Uploads.map(({ Key }) => Key)
}

t.test('the upload that a killed copy has left is ended by the next copy (S195)', async t => {
  const server = await startS3('versitygw')
  t.teardown(() => server.stop())
  const proxy = await startFaultProxy(server.endpoint)
  t.teardown(() => proxy.stop())
  for (const bucket of ['first', 'second']) await makeBucket(server, bucket)
  const { dir, env, bobbin } = fixture(t, server, proxy.endpoint)
  await bobbin.text('push', dir, 's3://first/ki/lled', '-m', 'm')
  const isSecondPart = ({ method, url }: { method: string; url: string }) =>
    method === 'PUT' && url.includes('partNumber=2')
  proxy.clear()
  proxy.fault({ kind: 'stall' }, { match: isSecondPart })
  const child = spawn(process.execPath, [bobbinPath, 'copy', 's3://first/ki/lled', 's3://second'], {
    env: { PATH: process.env.PATH, ...env, BOBBIN_CACHE: bobbin.cacheDir },
    stdio: 'ignore',
  })
  while (!proxy.requests.some(isSecondPart)) {
    t.equal(child.exitCode, null)
    await new Promise(resolve => setTimeout(resolve, 20))
  }
  child.kill('SIGKILL')
  await once(child, 'exit')
  t.strictSame(await uploadsIn(server, 'second'), ['ki/lled/large'], 'it has left an upload')
  t.match(await bobbin.try('resolve', 's3://second/ki/lled'), { status: 10 }, 'and no package')
  proxy.clear()
  await bobbin.text('copy', 's3://first/ki/lled', 's3://second')
  t.strictSame(await uploadsIn(server, 'second'), [])
  t.strictSame(readdirSync(join(bobbin.cacheDir, 'uploads')), [], 'no note is left of what was ended')
  t.match(await bobbin.try('verify', 's3://second/ki/lled', dir), { status: 0 })
})

t.test('where a server cannot copy from the other bucket, this machine does (S196)', async t => {
  const [here, there] = await Promise.all([startS3('versitygw'), startS3('versitygw', { region: 'eu-central-1' })])
  t.teardown(() => Promise.all([here.stop(), there.stop()]))
  const router = await startBucketRouter(bucket => (bucket === 'there' ? there : here).endpoint)
  t.teardown(() => router.stop())
  await makeBucket(here, 'here')
  await makeBucket(there, 'there')
  const { dir, bobbin } = fixture(t, here, router.endpoint)
  const { topHash } = await bobbin.json<{ topHash: string }>('push', dir, 's3://here/re/gion', '-m', 'm')
  const copied = await bobbin.try('copy', 's3://here/re/gion', 's3://there', '--json')
  t.equal(copied.status, 0, copied.stderr)
  t.equal(JSON.parse(copied.stdout || '{}').topHash, topHash)
  t.match(await bobbin.try('verify', `s3://there/re/gion@${topHash}`, dir), { status: 0 })
  const listed = await bobbin.rows<{ physicalKey: string | null }>('ls', '-R', '-l', 's3://there/re/gion')
  const rows = listed.filter(({ physicalKey }) => physicalKey !== null)
  t.ok(rows.length === 2 && rows.every(({ physicalKey }) => physicalKey!.startsWith('s3://there/re/gion/')))
  t.strictSame(await uploadsIn(there, 'there'), [])
})
