/**
 * Commands and mounts over a network that misbehaves, in front of a real S3 server: silence in the
 * middle of a body, bits that flip, servers that are dead, elsewhere, or not to be asked.
 */
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { createServer, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { CreateBucketCommand, PutObjectCommand } from '@aws-sdk/client-s3'
import t, { type Test } from 'tap'
import { cannotMount } from '../support/can-mount.js'
import { Bobbin, type Outcome, runProgram } from '../support/cli.js'
import { type FaultProxy, type ProxiedRequest, startFaultProxy } from '../support/fault-proxy.js'
import { noise } from '../support/objects.js'
import { writeRegistry } from '../support/registry.js'
import { type S3Server, s3ClientOf, startS3 } from '../support/s3-server.js'

const MIB = 2 ** 20
/** Three chunks. */
const LARGE = noise(17 * MIB)
const FILES = { 'a.txt': 'a', 'b.txt': 'b', large: LARGE, 'sound.bin': noise(1000) }
const IO_TIMEOUT = ['--io-timeout', '2s']
/** The time-out twice (an answer, then a body), the start of a process, and a slow machine. */
const BOUND_MS = 10_000

const isOf = (part: string) => (request: ProxiedRequest) => decodeURIComponent(request.url).includes(part)

interface Stage {
  readonly folder: string
  readonly proxy: FaultProxy
  readonly reference: string
  readonly env: Readonly<Record<string, string>>
}

/** A server behind a proxy, with one package of `FILES`. All that a test starts ends with it. */
async function setStage(t: Test, server: S3Server, bucket: string): Promise<Stage> {
  const folder = mkdtempSync(join(tmpdir(), 'bobbin-network-'))
  const proxy = await startFaultProxy(server.endpoint)
  t.teardown(async () => {
    await proxy.stop()
    rmSync(folder, { recursive: true, force: true })
  })
  const reference = await push(server, bucket, join(folder, 'registry'))
  const env = { ...server.env, HOME: folder, XDG_DATA_HOME: folder, XDG_CONFIG_HOME: folder }
  return { folder, proxy, reference, env: { ...env, AWS_ENDPOINT_URL: proxy.endpoint } }
}

async function push(server: S3Server, bucket: string, folder: string): Promise<string> {
  const client = s3ClientOf(server)
  const name = 'net/work'
  const files = Object.fromEntries(
    Object.entries(FILES).map(([key, bytes]) => [key, { bytes, physicalKey: `s3://${bucket}/${name}/${key}` }]),
  )
  const { topHash } = await writeRegistry(folder, name, files, { message: 'mmmmmmmmmmmmmmmm' })
  await client.send(new CreateBucketCommand({ Bucket: bucket }))
  for (const entry of readdirSync(folder, { recursive: true, withFileTypes: true })) {
    const path = join(entry.parentPath, entry.name)
    const Key = path.slice(folder.length + 1)
    if (entry.isFile()) await client.send(new PutObjectCommand({ Bucket: bucket, Key, Body: readFileSync(path) }))
  }
  client.destroy()
  return `s3://${bucket}/${name}@${topHash}`
}

let caches = 0

/** With a cache of its own, whose daemon ends with the test. */
function newBobbin(t: Test, { folder, env }: Stage, more: Readonly<Record<string, string>> = {}): Bobbin {
  const bobbin = new Bobbin(join(folder, `cache-${caches++}`), { ...env, ...more })
  t.teardown(() => bobbin.try('stop', '--force'))
  return bobbin
}

async function mount(t: Test, bobbin: Bobbin, { folder, reference }: Stage, ...flags: string[]): Promise<string> {
  const mountpoint = mkdtempSync(join(folder, 'mount-'))
  await bobbin.text('mount', reference, mountpoint, ...flags)
  t.teardown(() => bobbin.try('umount', mountpoint, '--force'))
  return mountpoint
}

async function timed<T>(work: Promise<T>): Promise<{ readonly outcome: T; readonly tookMs: number }> {
  const start = performance.now()
  return { outcome: await work, tookMs: performance.now() - start }
}

const read = (...path: string[]) =>
  runProgram('cat', [join(...path)], { env: { ...process.env, LC_ALL: 'C' }, timeoutMs: 60_000 })

function isEio(t: Test, { status, stdout, stderr }: Outcome): void {
  t.equal(status, 1)
  t.equal(stdout, '', 'no byte, and no zeros')
  t.match(stderr, /Input\/output error/)
}

/** Compared by cmp, in its own process. */
async function isLarge(t: Test, { folder }: Stage, path: string): Promise<void> {
  const { status, stdout, stderr } = await runProgram('cmp', [path, join(folder, 'registry/net/work/large')])
  t.equal(status, 0, stdout + stderr)
}

const fetchCounts = async (bobbin: Bobbin) =>
  (await bobbin.json<{ fetch: { objects: number; refetches: number; refused: number } }>('status')).fetch

t.test('a network that misbehaves', { timeout: 900_000 }, async t => {
  const server = await startS3('versitygw')
  t.teardown(() => server.stop())
  const stage = await setStage(t, server, 'net')
  const { proxy, reference, folder } = stage
  t.afterEach(() => proxy.clear())

  t.test('cat of a body that stops in the middle is 75 within the time-out, without a byte (S5, S10)', async t => {
    const bobbin = newBobbin(t, stage)
    await bobbin.text('resolve', reference)
    // Each chunk gets some bytes, then silence.
    proxy.fault({ kind: 'stall', afterBytes: 100_000 }, { times: 3, match: isOf('/large') })
    proxy.fault({ kind: 'stall' }, { match: isOf('/large') })
    const { outcome, tookMs } = await timed(bobbin.try('cat', reference, 'large', ...IO_TIMEOUT))
    t.equal(outcome.status, 75, outcome.stderr)
    t.match(outcome.stderr, /large: .*s3:\/\/net\/net\/work\/large/)
    t.equal(outcome.stdout, '')
    t.ok(tookMs < BOUND_MS, `took ${tookMs} ms`)
    t.strictSame(readdirSync(join(bobbin.cacheDir, 'tmp')), [])
  })

  t.test('a body that stops once is continued', async t => {
    const bobbin = newBobbin(t, stage)
    await bobbin.text('resolve', reference)
    const target = mkdtempSync(join(folder, 'target-'))
    for (const kind of ['stall', 'reset', 'cut'] as const)
      proxy.fault({ kind, afterBytes: 1_000_000 }, { times: 1, match: isOf('/large') })
    await bobbin.text('install', reference, target, ...IO_TIMEOUT)
    await isLarge(t, stage, join(target, 'large'))
    t.equal((await bobbin.json<{ ok: boolean }>('verify', reference, target)).ok, true)
  })

  t.test('install from a server that falls silent is 75, and goes on where it was (S10, S20)', async t => {
    const bobbin = newBobbin(t, stage)
    const target = mkdtempSync(join(folder, 'target-'))
    // Bytes on every connection would be progress.
    proxy.fault({ kind: 'stall', afterBytes: 100_000 }, { times: 3, match: isOf('/large') })
    proxy.fault({ kind: 'stall' }, { match: isOf('/large') })
    const { outcome, tookMs } = await timed(bobbin.try('install', reference, target, ...IO_TIMEOUT))
    t.equal(outcome.status, 75, outcome.stderr)
    t.ok(tookMs < 2 * BOUND_MS, `took ${tookMs} ms`)
    t.notOk(readdirSync(target).some(name => name === 'large' || name.startsWith('.bobbin-')))
    const complete = readdirSync(target).length
    proxy.clear()
    t.match(await bobbin.json('install', reference, target), { files: 4, fetched: 4 - complete, reused: complete })
    await isLarge(t, stage, join(target, 'large'))
  })

  t.test(
    'through the mount, silence is EIO for its reader alone, and passes (S9, S10)',
    { skip: cannotMount() },
    async t => {
      const bobbin = newBobbin(t, stage)
      const mountpoint = await mount(t, bobbin, stage, ...IO_TIMEOUT)
      proxy.fault({ kind: 'stall', afterBytes: 100_000 }, { times: 3, match: isOf('/large') })
      proxy.fault({ kind: 'stall' }, { match: isOf('/large') })
      const silent = timed(read(mountpoint, 'large'))
      const other = await timed(read(mountpoint, 'a.txt'))
      t.equal(other.outcome.stdout, 'a')
      const { outcome, tookMs } = await silent
      isEio(t, outcome)
      t.ok(tookMs < BOUND_MS, `took ${tookMs} ms`)
      t.ok(other.tookMs < tookMs, `the other reader did not wait: ${other.tookMs} ms`)
      proxy.clear()
      await isLarge(t, stage, join(mountpoint, 'large'))
    },
  )

  t.test(
    'a bit that flips once is fetched again, one that flips always is refused (S6)',
    { skip: cannotMount() },
    async t => {
      const bobbin = newBobbin(t, stage)
      const mountpoint = await mount(t, bobbin, stage)
      proxy.fault({ kind: 'flip', atByte: 123_456 }, { match: isOf('/large') })
      isEio(t, await read(mountpoint, 'large'))
      const { objects, refetches, refused } = await fetchCounts(bobbin)
      // A large file opens before it is here; when the kernel's readahead fails, the read itself asks once more.
      t.ok(refused === 1 || refused === 2, `refused ${refused} times`)
      t.same({ objects, refetches }, { objects: 0, refetches: refused }, 'each time after one more try')
      const log = readFileSync(join(bobbin.cacheDir, 'daemon.log'), 'utf8')
      t.match(log, /"key":"large".*hashes to [0-9a-f]{64}, the manifest says [0-9a-f]{64}/)
      t.equal((await read(mountpoint, 'a.txt')).stdout, 'a', 'the others go on')

      proxy.clear()
      proxy.fault({ kind: 'flip', atByte: 123_456 }, { times: 1, match: isOf('/large') })
      await isLarge(t, stage, join(mountpoint, 'large'))
      t.match(await fetchCounts(bobbin), { objects: 2, refetches: refetches + 1, refused })
      proxy.clear()
      await isLarge(t, stage, join(mountpoint, 'large'))
      t.equal(proxy.requests.length, 0, 'now it is cached')
    },
  )

  t.test('install refuses the file whose bits flip, keeps the others, and mends it (S6, S20)', async t => {
    const bobbin = newBobbin(t, stage)
    const target = mkdtempSync(join(folder, 'target-'))
    proxy.fault({ kind: 'flip', atByte: 0 }, { match: isOf('/b.txt') })
    const { status, stderr } = await bobbin.try('install', reference, target)
    t.equal(status, 13, stderr)
    t.match(stderr, /b\.txt: .*hashes to .*the manifest says/)
    t.notOk(readdirSync(target).some(name => name === 'b.txt' || name.startsWith('.bobbin-')))
    proxy.clear()
    await bobbin.text('install', reference, target)
    t.match(await bobbin.json('verify', reference, target), { ok: true, files: 4 })
  })

  t.test('a manifest whose bits flip is 13, and is not kept (S1)', async t => {
    const bobbin = newBobbin(t, stage)
    const manifest = isOf('/.quilt/packages/')
    const path = join(folder, 'registry/.quilt/packages', reference.split('@')[1]!)
    // A letter of the message: the row is well-formed, and only the hash can tell.
    proxy.fault({ kind: 'flip', atByte: readFileSync(path, 'utf8').indexOf('mmmm') }, { match: manifest })
    const { status, stdout, stderr } = await bobbin.try('ls', reference)
    t.equal(status, 13, stderr)
    t.equal(stdout, '')
    proxy.clear()
    t.equal((await bobbin.text('ls', reference)).trimEnd(), 'a.txt\nb.txt\nlarge\nsound.bin')
  })

  t.test('--offline asks nobody: what is cached works, the rest is 75 and EIO', { skip: cannotMount() }, async t => {
    const bobbin = newBobbin(t, stage)
    const warming = await mount(t, bobbin, stage)
    t.equal((await read(warming, 'a.txt')).stdout, 'a')
    await isLarge(t, stage, join(warming, 'large'))
    const latest = reference.split('@')[0]!
    await bobbin.text('resolve', latest)
    await bobbin.text('umount', warming)
    await bobbin.text('stop')
    proxy.clear()

    const mountpoint = await mount(t, bobbin, stage, '--offline')
    t.equal((await read(mountpoint, 'a.txt')).stdout, 'a')
    await isLarge(t, stage, join(mountpoint, 'large'))
    isEio(t, await read(mountpoint, 'b.txt'))
    t.equal(await bobbin.text('cat', latest, 'a.txt', '--offline'), 'a', 'what latest was is remembered')
    const target = mkdtempSync(join(folder, 'target-'))
    t.match(await bobbin.json('install', latest, target, '--offline', '--path', 'large'), { fetched: 0, reused: 1 })
    t.match(await bobbin.try('cat', latest, 'b.txt', '--offline'), { status: 75, stdout: '', stderr: /offline/ })
    const cold = newBobbin(t, stage)
    for (const verb of ['resolve', 'ls', 'log'])
      t.match(await cold.try(verb, latest, '--offline'), { status: 75, stderr: /offline/ }, verb)
    t.match(await cold.try('mount', reference, mkdtempSync(join(folder, 'mount-')), '--offline'), { status: 75 })
    t.equal(proxy.requests.length, 0)
  })

  t.test(
    'a server that is not there, or never answers, is 75 within the time-out (S10)',
    { skip: cannotMount() },
    async t => {
      const sockets = new Set<Socket>()
      const silent = createServer(socket => sockets.add(socket.on('error', () => {})))
      await new Promise<void>(resolve => silent.listen(0, '127.0.0.1', resolve))
      const { port } = silent.address() as { port: number }
      const endpoint = { AWS_ENDPOINT_URL: `http://127.0.0.1:${port}` }
      const bobbin = newBobbin(t, stage, endpoint)
      for (const what of ['never answers', 'is not there']) {
        for (const verb of ['resolve', 'log'])
          await t.test(`${verb}: ${what}`, async t => {
            const { outcome, tookMs } = await timed(bobbin.try(verb, reference.split('@')[0]!, ...IO_TIMEOUT))
            t.equal(outcome.status, 75, outcome.stderr)
            t.match(outcome.stderr, /s3:\/\/net/)
            t.ok(tookMs < BOUND_MS, `took ${tookMs} ms`)
          })
        for (const socket of sockets) socket.destroy()
        await new Promise(resolve => silent.close(resolve))
      }
      const mounting = await bobbin.try('mount', reference, mkdtempSync(join(folder, 'mount-')), ...IO_TIMEOUT)
      t.equal(mounting.status, 75, mounting.stderr)
      t.match(await bobbin.try('status'), { status: 1, stderr: /no daemon runs/ }, 'none was started for it')
    },
  )
})

for (const kind of ['versitygw', 'minio'] as const) {
  t.test(`a bucket in another region is found there, on ${kind}`, async t => {
    const server = await startS3(kind, { region: 'eu-central-1' })
    t.teardown(() => server.stop())
    const stage = await setStage(t, server, 'far')
    const bobbin = newBobbin(t, stage, { AWS_REGION: 'us-east-1', AWS_DEFAULT_REGION: 'us-east-1' })
    t.equal(await bobbin.text('cat', stage.reference, 'a.txt'), 'a')
    const target = join(stage.folder, 'target')
    mkdirSync(target)
    t.match(await bobbin.json('install', stage.reference, target), { files: 4 })
    const regions = stage.proxy.requests.map(
      ({ headers }) => /\/([a-z]+-[a-z]+-\d)\/s3\//.exec(String(headers.authorization))?.[1],
    )
    t.ok(regions.includes('us-east-1'), 'it asked where it was told')
    t.ok(regions.filter(region => region === 'eu-central-1').length >= 6, 'and then where it was sent')
  })
}
