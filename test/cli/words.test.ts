/** A cause each, and the words and the exit code that a person gets for it: what is wrong, and advice that this version can take. */
import { closeSync, mkdirSync, openSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import t, { type Test } from 'tap'
import { progressLines } from '../../cli/progress.js'
import { BobbinError } from '../../daemon/model/index.js'
import { refusalAdvice } from '../../daemon/source/refusal-advice.js'
import { LOWER_FLOOR, RAISE_LIMIT } from '../../daemon/store/cache-room.js'
import { openStore } from '../../daemon/store/index.js'
import { cannotMount } from '../support/can-mount.js'
import { Bobbin, runProgram } from '../support/cli.js'
import { testFolder } from '../support/daemon.js'
import { noise } from '../support/objects.js'
import { bobbinPath } from '../support/parts.js'
import { writeRegistry } from '../support/registry.js'
import { smallDisk } from '../support/small-disk.js'

async function fixture(t: Test, cacheDir?: string) {
  const folder = testFolder(t)
  const registry = join(folder, 'registry')
  const files = {
    'a/one.txt': { bytes: 'one', meta: { n: 1 } },
    'a/two.txt': { bytes: 'two' },
    b: { bytes: noise(300_000, 1) },
  }
  const written = await writeRegistry(registry, 'ns/pkg', files, { message: 'm' })
  const bobbin = new Bobbin(cacheDir ?? join(folder, 'cache'), {
    BOBBIN_CONFIG: undefined,
    HOME: folder,
    XDG_CONFIG_HOME: folder,
  })
  t.teardown(() => bobbin.try('stop', '--force'))
  return { folder, registry, written, bobbin, latest: `${registry}/ns/pkg` }
}

t.test('advice names only options that there are', async t => {
  const { bobbin } = await fixture(t)
  for (const verb of ['mount', 'daemon']) {
    const help = await bobbin.text(verb, '--help')
    for (const advice of [RAISE_LIMIT, LOWER_FLOOR])
      for (const [flag = ''] of advice.matchAll(/--[a-z-]+/g)) t.match(help, flag, `bobbin ${verb} has ${flag}`)
  }
})

t.test('a refusal of S3 gets the advice that fits its code (S161)', async t => {
  const refused = (name: string) => refusalAdvice(Object.assign(new Error(name), { name, Code: name }), 'GetObject')
  t.match(refused('AccessDenied'), /these credentials need s3:GetObject/)
  t.match(refused('SignatureDoesNotMatch'), /the secret key does not belong to this access key/)
  t.match(refused('InvalidAccessKeyId'), /does not know the access key/)
  t.match(refused('ExpiredToken'), /has expired: log in again/)
  t.match(refused('InvalidToken'), /AWS_SESSION_TOKEN/)
  for (const code of ['SignatureDoesNotMatch', 'InvalidAccessKeyId', 'ExpiredToken', 'InvalidToken'])
    t.notMatch(refused(code), 's3:GetObject', `${code} is not a matter of rights`)
})

t.test('a full store says how much of it is open, bobbin-fuse included (S161)', async t => {
  const store = await openStore(join(testFolder(t), 'cache'), {
    bytesMax: 1000,
    freeBytesMin: 0,
    openElsewhere: async () => 190 * 2 ** 20,
  })
  t.teardown(() => store.close())
  const full = await store.reserve(5000).catch(error => error)
  t.ok(full instanceof BobbinError)
  t.match(full, { code: 'STORE_FULL', message: '190 MiB of it in open files' })
  t.match(full.message, RAISE_LIMIT)
})

t.test('what cannot be unmounted, and why (S161)', async t => {
  const { bobbin, folder } = await fixture(t)
  const { status, stderr } = await bobbin.try('umount', join(folder, 'nodir'))
  t.equal(status, 10)
  t.match(stderr, /not mounted: there is no such folder/)
  t.notMatch(stderr, '--mkdir')
})

t.test('a cache on a full disk is never called a bug (S161)', async t => {
  const disk = smallDisk(t, 2)
  if (disk === undefined) return
  const { bobbin, latest } = await fixture(t, join(disk, 'cache'))

  await bobbin.text('resolve', latest)
  const ballast = openSync(join(disk, 'ballast'), 'w')
  try {
    for (;;) writeFileSync(ballast, Buffer.alloc(4096))
  } catch {
    // Full.
  } finally {
    closeSync(ballast)
  }
  const { status, stdout } = await bobbin.try('ls', latest, '-R')
  t.strictSame({ status, stdout }, { status: 0, stdout: 'a/one.txt\na/two.txt\nb\n' }, 'what is cached is read')
  rmSync(join(disk, 'cache', 'packages'), { recursive: true })
  const fill = openSync(join(disk, 'ballast2'), 'w')
  try {
    for (;;) writeFileSync(fill, Buffer.alloc(512))
  } catch {
    // Full again.
  } finally {
    closeSync(fill)
  }
  const full = await bobbin.try('ls', latest, '-R')
  t.equal(full.status, 1)
  t.notMatch(full.stderr, 'this is a bug')
  t.match(full.stderr, /no space left|no room/)
})

t.test('output that cannot be written is an error (S162)', async t => {
  const { bobbin, latest } = await fixture(t)
  await bobbin.text('resolve', latest)
  for (const words of [
    ['ls', latest, '-R'],
    ['ls', latest, '--json'],
    ['cat', latest, 'b'],
    ['resolve', latest],
  ]) {
    const { status, stderr } = await runProgram(
      'bash',
      ['-c', '"$@" > /dev/full', 'sh', process.execPath, bobbinPath, ...words],
      {
        env: { ...process.env, BOBBIN_CACHE: bobbin.cacheDir },
      },
    )
    t.equal(status, 1, words.join(' '))
    t.match(stderr, /^bobbin: cannot .*no space left on the device\n$/, words.join(' '))
  }
})

t.test('a prefix is taken from the cache while the registry is away, and said (S160)', async t => {
  const folder = testFolder(t)
  // Nobody listens there.
  const env = {
    AWS_ENDPOINT_URL: 'http://127.0.0.1:9',
    AWS_ACCESS_KEY_ID: 'k',
    AWS_SECRET_ACCESS_KEY: 's',
    BOBBIN_CONFIG: undefined,
    HOME: folder,
  }
  const { bobbin: local, written, registry } = await fixture(t)
  await local.text('resolve', `${registry}/ns/pkg`)
  const away = new Bobbin(local.cacheDir, env)
  const cached = join(local.cacheDir, 'packages/v1')
  const { createHash } = await import('node:crypto')
  const { cpSync, readdirSync } = await import('node:fs')
  const id = createHash('sha256').update('s3://bucket').digest('hex').slice(0, 16)
  const [only = ''] = readdirSync(cached)
  cpSync(join(cached, only), join(cached, id), { recursive: true })
  const prefix = written.topHash.slice(0, 10)
  const { status, stdout, stderr } = await away.try('resolve', `s3://bucket/ns/pkg@${prefix}`, '--io-timeout', '1s')
  t.strictSame({ status, stdout }, { status: 0, stdout: `${written.topHash}\n` }, stderr)
  t.match(stderr, `${prefix} is taken for ${written.topHash}`)
  const other = await away.try('resolve', 's3://bucket/ns/pkg@0123456789', '--io-timeout', '1s')
  t.equal(other.status, 75, 'what is not cached is not guessed')
})

t.test('without a terminal that draws, progress is a line now and then (S162)', async t => {
  const written: string[] = []
  const progress = progressLines(line => written.push(line), 50)
  for (let done = 0; written.length < 2; done++) {
    progress.update('fetch', done * 2 ** 20, 2 ** 40)
    await sleep(5)
  }
  t.match(written, [/^bobbin: fetch: [\d.]+ (?:B|KiB|MiB|GiB) of [\d.]+ TiB\n$/, /of [\d.]+ TiB\n$/])
  const often: string[] = []
  const slow = progressLines(line => often.push(line))
  for (let done = 0; done < 100; done++) slow.update('fetch', done, 100)
  t.strictSame(often, [], 'work that is soon over says nothing')
})

t.test('push names the empty folders that it leaves out (S162)', async t => {
  const { bobbin, folder, registry } = await fixture(t)
  mkdirSync(join(folder, 'data/full'), { recursive: true })
  mkdirSync(join(folder, 'data/void/inner'), { recursive: true })
  writeFileSync(join(folder, 'data/full/x'), 'x')
  const { status, stderr } = await bobbin.try('push', join(folder, 'data'), `${registry}/ns/other`, '-m', 'm')
  t.equal(status, 0, stderr)
  t.match(stderr, 'left out "void/inner/": an empty folder')
})

t.test('filter without --push lists what fits, as ls does (S162)', async t => {
  const { bobbin, latest } = await fixture(t)
  t.equal(await bobbin.text('filter', latest, '--where', "starts_with(key, 'a/')"), 'a/one.txt\na/two.txt\n')
  t.strictSame(
    await bobbin.rows('filter', latest, '--where', 'meta.n == `1`'),
    await bobbin.rows('ls', latest, 'a/one.txt'),
  )
  const none = await bobbin.try('filter', latest, '--where', 'size > `10000000`')
  t.match(none, { status: 0, stdout: '', stderr: /no entry fits/ })
})

t.test('umount and stop give a document with --json (S162)', { skip: cannotMount() }, async t => {
  const { bobbin, latest, folder } = await fixture(t)
  t.strictSame(await bobbin.json('stop'), { cache: bobbin.cacheDir, pid: null, stopped: false })
  const mountpoint = join(folder, 'mnt')
  await bobbin.text('mount', latest, mountpoint, '--mkdir', '--cache-limit', '100MiB')
  const { cache, daemon } = await bobbin.json<{
    cache: { limitBytes: number }
    daemon: { supervisorPid: number | null; pid: number }
  }>('status')
  t.equal(cache.limitBytes, 100 * 2 ** 20, 'the daemon that mount has started has the limit')
  t.strictSame(await bobbin.json('umount', mountpoint), { mountpoint, unmounted: true })
  t.strictSame(await bobbin.json('stop'), {
    cache: bobbin.cacheDir,
    pid: daemon.supervisorPid ?? daemon.pid,
    stopped: true,
  })
})
