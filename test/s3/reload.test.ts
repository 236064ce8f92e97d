/** A daemon that was started with other credentials and settings than those of the command that asks it now. */
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { CreateBucketCommand, PutObjectCommand } from '@aws-sdk/client-s3'
import t from 'tap'
import { findDaemon } from '../../daemon/control/client.js'
import type { ReloadBody, StatusFacts } from '../../daemon/control/schema.js'
import { cannotMount } from '../support/can-mount.js'
import { Bobbin, runProgram } from '../support/cli.js'
import { noise } from '../support/objects.js'
import { writeRegistry } from '../support/registry.js'
import { s3ClientOf, startS3 } from '../support/s3-server.js'

t.setTimeout(200_000)

const MIB = 2 ** 20
const BUCKET = 'reload'
const NAME = 'ns/pkg'
const files: Readonly<Record<string, Buffer>> = Object.fromEntries(
  Array.from({ length: 4 }, (_, i) => [`f${i}`, noise(MIB, i)]),
)
const SECRET = 'a-secret-that-is-wrong'

async function stage(t: { teardown(end: () => unknown): void }) {
  const server = await startS3('versitygw')
  t.teardown(() => server.stop())
  const folder = mkdtempSync(join(tmpdir(), 'bobbin-reload-'))
  t.teardown(() => rmSync(folder, { recursive: true, force: true }))
  const registry = join(folder, 'registry')
  const placed = Object.entries(files).map(([key, bytes]) => {
    return [key, { bytes, physicalKey: `s3://${BUCKET}/${NAME}/${key}` }] as const
  })
  const written = await writeRegistry(registry, NAME, Object.fromEntries(placed))
  const client = s3ClientOf(server)
  await client.send(new CreateBucketCommand({ Bucket: BUCKET }))
  for (const entry of readdirSync(registry, { recursive: true, withFileTypes: true })) {
    const path = join(entry.parentPath, entry.name)
    const Key = path.slice(registry.length + 1)
    if (entry.isFile()) await client.send(new PutObjectCommand({ Bucket: BUCKET, Key, Body: readFileSync(path) }))
  }
  client.destroy()
  const cache = join(folder, 'cache')
  const mountpoint = join(folder, 'mnt')
  mkdirSync(mountpoint)
  // Not what this machine has; it is taken at the start alone, so it would be named.
  const env = { ...server.env, BOBBIN_FREE_FLOOR: '0', NODE_EXTRA_CA_CERTS: undefined }
  const right = new Bobbin(cache, env)
  const wrong = new Bobbin(cache, { ...env, AWS_SECRET_ACCESS_KEY: SECRET })
  t.teardown(() => right.try('stop', '--force'))
  const read = (name: string) => runProgram('cmp', [join(mountpoint, name), join(registry, NAME, name)])
  return { folder, cache, mountpoint, env, right, wrong, written, read, reference: `s3://${BUCKET}/${NAME}` }
}

t.test(
  'a daemon with other credentials is named, and takes new ones (S131, S132)',
  { skip: cannotMount() },
  async t => {
    const { cache, mountpoint, right, wrong, read, reference, folder, written } = await stage(t)
    // The manifest is in the cache, so that a mount needs nothing of S3.
    await right.text('ls', reference)
    await wrong.text('mount', `${reference}@${written.topHash}`, mountpoint)
    t.match(await read('f0'), { status: 2 }, 'the daemon has the wrong key')

    const other = join(folder, 'other')
    const mounted = await right.try('mount', reference, other, '--mkdir')
    t.equal(mounted.status, 0)
    const said = /has other settings than this command: AWS_SECRET_ACCESS_KEY \(bobbin reload hands yours over\)/
    t.match(mounted.stderr, said)
    t.match(await right.text('status'), said)
    t.match((await right.try('doctor')).stdout, said)
    t.notMatch(await wrong.text('status'), /other settings/, 'not where nothing differs')

    const { mounts } = await right.json<StatusFacts>('reload')
    t.equal(mounts.length, 2, 'mounts stay')
    for (const name of Object.keys(files))
      t.match(await read(name), { status: 0 }, `${name}, in the mount that was there`)
    t.match(await runProgram('cmp', [join(other, 'f0'), join(mountpoint, 'f0')]), { status: 0 })
    t.notMatch(await right.text('status'), /other settings/)
    t.match(await wrong.text('status'), said)
    const log = readFileSync(join(cache, 'daemon.log'), 'utf8')
    t.notOk(log.includes(SECRET), 'no secret in the log')
  },
)

t.test('a daemon takes settings anew (S132)', { skip: cannotMount() }, async t => {
  const { cache, mountpoint, env, right, read, reference } = await stage(t)
  await right.text('ls', reference)
  const offline = new Bobbin(cache, { ...env, BOBBIN_OFFLINE: '1' })
  await offline.text('mount', reference, mountpoint)
  t.match(await read('f0'), { status: 2 }, 'offline')
  t.match(await right.text('status'), /other settings than this command: offline \(/)
  await right.text('reload', '--io-timeout', '20s')
  for (const name of Object.keys(files)) t.match(await read(name), { status: 0 }, name)
  t.match(await right.text('status'), /other settings than this command: io-timeout \(/)

  const lower = new Bobbin(cache, { ...env, BOBBIN_CACHE_LIMIT: '2MiB' })
  t.match(await lower.text('status'), /this command: cache-limit, io-timeout \(/)
  const { cache: store } = await lower.json<StatusFacts>('reload')
  t.equal(store.limitBytes, 2 * MIB)
  t.ok(store.bytes <= 2 * MIB, 'evicted down to it')
  t.equal((await right.json<StatusFacts>('reload')).cache.limitBytes, 2 * MIB, 'a limit that nobody names stays')
  for (const name of Object.keys(files)) t.match(await read(name), { status: 0 }, `${name}, fetched again`)

  const elsewhere = new Bobbin(cache, { ...env, BOBBIN_TRANSPORT: 'fuse-native' })
  t.match(await elsewhere.text('reload'), /transport \(only a new daemon takes yours: bobbin stop, then mount again\)/)
  const none = new Bobbin(join(cache, '..', 'none'), env)
  t.match(await none.try('reload'), { status: 1, stderr: /no daemon runs for / })
})

t.test('only names that matter are taken, and no value is told (S132)', { skip: cannotMount() }, async t => {
  const { cache, mountpoint, env, right, written, reference } = await stage(t)
  await right.text('mount', `${reference}@${written.topHash}`, mountpoint)
  const client = findDaemon(cache)!
  const taken: ReloadBody['environment'] = { AWS_PROFILE: 'mine', AWS_SECRET_ACCESS_KEY: SECRET }
  const others = { NODE_OPTIONS: '--require=/tmp/x', LD_PRELOAD: '/tmp/x.so', PATH: '/tmp', BOBBIN_FUSE: '/tmp/x' }
  await client.reload({ environment: { ...taken, ...others }, ioTimeoutMs: 30_000, offline: false })
  const { salt, digests } = await client.surroundings()
  const names = ['AWS_PROFILE', 'AWS_SECRET_ACCESS_KEY', 'free-floor', 'io-timeout', 'offline']
  t.same(Object.keys(digests).sort(), names, 'others are not taken, and what was not sent is gone')
  t.ok(Object.values(digests).every(digest => /^[0-9a-f]{64}$/.test(digest)))
  t.notOk(JSON.stringify({ salt, digests }).includes(SECRET))
  t.notOk(readFileSync(join(cache, 'daemon.log'), 'utf8').includes(SECRET))
  const same = new Bobbin(join(cache, '..', 'second'), env)
  t.teardown(() => same.try('stop', '--force'))
  const other = join(cache, '..', 'third')
  await same.text('mount', `${reference}@${written.topHash}`, other, '--mkdir')
  const second = await findDaemon(join(cache, '..', 'second'))!.surroundings()
  t.not(second.salt, salt, 'each daemon has a salt of its own')
})
