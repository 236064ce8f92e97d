/** Leases of a real daemon: what a loader in another process asks it to have here, and to keep. */
import { readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import type { LeaseBody } from '../../daemon/control/schema.js'
import { cannotMount, type Small, small, startDaemon, testFolder, until } from '../support/daemon.js'
import { startHeldServer } from '../support/held-server.js'
import { noise } from '../support/objects.js'
import { writeRegistry } from '../support/registry.js'

t.setTimeout(600_000)

const OBJECT_BYTES = 10_000
const FILES = 20
/** Of the n-th file: the root is 1, and its files follow in order. */
const inoOf = (n: number) => n + 2

const files = Object.fromEntries(
  Array.from({ length: FILES }, (_, i) => [`f${String(i).padStart(3, '0')}`, noise(OBJECT_BYTES, i)]),
)
const names = Object.keys(files)

function leasing(t: Test, options: Parameters<typeof startDaemon>[1] = {}): Promise<Small> {
  return small(t, files, options)
}

function bodyOf({ written }: Pick<Small, 'written'>, lease: string, numbers: readonly number[]): LeaseBody {
  const { registry, name, topHash } = written
  return { owner: 'me', lease, registry, package: name, topHash, inos: numbers.map(inoOf), priority: 'demand' }
}

function range(from: number, to: number): number[] {
  return Array.from({ length: to - from }, (_, i) => from + i)
}

/** Where the store keeps the n-th file, by the manifest's hash. */
function pathOf({ daemon, written }: Small, n: number): string {
  const hex = hexOf(written, n)
  return join(daemon.cacheDir, 'objects/v1/sha2-256-chunked', hex.slice(0, 2), hex)
}

function hexOf(written: Small['written'], n: number): string {
  return Buffer.from(written.rows.find(row => row.logical_key === names[n])!.hash.value, 'base64').toString('hex')
}

t.test('a lease has every object in the store, counts it as in use, and holds no descriptor', async t => {
  const made = await leasing(t)
  const { client, process } = made.daemon
  const fds = () => readdirSync(`/proc/${process.pid}/fd`).length
  t.same(await client.leaseObjects(bodyOf(made, 'l1', [0])), { failed: [] })
  const before = fds()
  t.same(await client.leaseObjects(bodyOf(made, 'l2', range(0, FILES))), { failed: [] })
  t.ok(fds() < before + FILES, `${fds()} descriptors, ${before} before`)
  for (const [n, name] of names.entries()) t.ok(readFileSync(pathOf(made, n)).equals(files[name]!))
  await client.renewOwner({ owner: 'me', facts: { pid: 1, socket: '/s' } })
  const status = await client.status()
  t.match(status.loader, {
    owners: [{ owner: 'me', pid: 1, socket: '/s', leases: 2, bytes: (FILES + 1) * OBJECT_BYTES }],
    leasedBytes: (FILES + 1) * OBJECT_BYTES,
  })
  t.equal(status.cache.pinnedBytes, FILES * OBJECT_BYTES)
  await client.releaseObjects({ owner: 'me', leases: [{ lease: 'l2' }, { lease: 'nobody-knows' }] })
  t.match(await client.status(), { cache: { pinnedBytes: OBJECT_BYTES }, loader: { leasedBytes: OBJECT_BYTES } })
})

for (const transport of ['fuse-native', 'native'] as const) {
  const skip = cannotMount()
  t.test(`what is leased is not evicted while others read a mount (${transport})`, { skip }, async t => {
    const made = await leasing(t, { transport, cacheBytesMax: 12 * OBJECT_BYTES })
    const { daemon } = made
    const leased = range(0, 5)
    t.same(await daemon.client.leaseObjects(bodyOf(made, 'l1', leased)), { failed: [] })
    const { path } = await daemon.mount(made.written, 'mnt')
    for (const name of names) t.ok((await readFile(join(path, name))).equals(files[name]!), name)
    for (const n of leased) t.ok(readFileSync(pathOf(made, n)).equals(files[names[n]!]!))
    const { cache } = await daemon.client.status()
    t.ok(cache.evictions > 0, `${cache.evictions} evictions`)
    t.ok(cache.bytes <= 12 * OBJECT_BYTES)
  })
}

t.test('released with distances, what is needed last goes first', async t => {
  const made = await leasing(t, { cacheBytesMax: 10 * OBJECT_BYTES })
  const { client } = made.daemon
  await client.leaseObjects(bodyOf(made, 'l1', range(0, 10)))
  // The first one is needed last.
  const distances = range(0, 10).map(n => (100 - n) * OBJECT_BYTES)
  await client.releaseObjects({ owner: 'me', leases: [{ lease: 'l1', distances }] })
  await client.leaseObjects(bodyOf(made, 'l2', range(10, 13)))
  const { found } = await client.findObjects({
    owner: 'me',
    lease: 'l3',
    ids: range(0, 10).map(n => `sha2-256-chunked/${hexOf(made.written, n)}`),
  })
  t.same(
    found.map(object => object !== null),
    [false, false, false, true, true, true, true, true, true, true],
  )
})

t.test('a lease that does not fit fails at once for what has no room, and holds the rest', async t => {
  const made = await leasing(t, { cacheBytesMax: 10 * OBJECT_BYTES })
  const { client } = made.daemon
  const { failed } = await client.leaseObjects(bodyOf(made, 'l1', range(0, FILES)))
  t.equal(failed.length, 10)
  for (const { code } of failed) t.equal(code, 'STORE_FULL')
  await client.releaseObjects({ owner: 'me', leases: [{ lease: 'l1' }] })
  t.same(await client.leaseObjects(bodyOf(made, 'l2', range(10, FILES))), { failed: [] })
})

t.test('a lease says for each object why it could not be had', async t => {
  const folder = testFolder(t)
  const written = await writeRegistry(join(folder, 'registry'), 'test/small', files)
  writeFileSync(written.paths.get(names[3]!)!, noise(OBJECT_BYTES, 77))
  const daemon = await startDaemon(t, { folder })
  const { failed } = await daemon.client.leaseObjects(bodyOf({ written }, 'l1', range(0, 5)))
  t.match(failed, [{ ino: inoOf(3), code: 'OBJECT_CORRUPT', detail: new RegExp(names[3]!) }])
  t.match(await daemon.client.status(), { cache: { pinnedBytes: 4 * OBJECT_BYTES } })
})

t.test('a caller that goes away before the answer leaves no pin and no fetch', async t => {
  const server = await startHeldServer()
  t.teardown(() => server.stop())
  const folder = testFolder(t)
  const content = Object.fromEntries(
    names.map((name, n) => [
      name,
      { bytes: files[name]!, ...(n >= 10 && { physicalKey: server.add(name, files[name]!) }) },
    ]),
  )
  const written = await writeRegistry(join(folder, 'registry'), 'test/small', content)
  const { client } = await startDaemon(t, { folder, env: { ...server.env } })
  server.hold()
  const controller = new AbortController()
  const lease = client.leaseObjects(bodyOf({ written }, 'l1', range(0, FILES)), controller.signal)
  lease.catch(() => {})
  await until('what is near is here', async () => (await client.status()).cache.pinnedBytes >= 10 * OBJECT_BYTES)
  await until('the others are asked for', () => server.waiting === 10)
  controller.abort()
  await t.rejects(lease)
  await until('all is let go', async () => {
    const { cache, fetch } = await client.status()
    return cache.pinnedBytes === 0 && fetch.inFlight === 0
  })
  await until('the connections are closed', () => server.waiting === 0)
})

t.test('objects are found by their ids, checked, and kept while they are leased', async t => {
  const made = await leasing(t)
  const { client } = made.daemon
  await client.leaseObjects(bodyOf(made, 'l1', [0, 1]))
  await client.releaseObjects({ owner: 'me', leases: [{ lease: 'l1' }] })
  const ids = [0, 1, 2].map(n => `sha2-256-chunked/${hexOf(made.written, n)}`)
  writeFileSync(pathOf(made, 1), noise(OBJECT_BYTES, 99), { flag: 'r+' })
  const { found } = await client.findObjects({ owner: 'me', lease: 'l2', ids })
  t.same(found, [{ id: ids[0], size: OBJECT_BYTES }, null, null], 'the second was changed on disk')
  t.match(await client.status(), { cache: { pinnedBytes: OBJECT_BYTES } })
  const bad = { owner: 'me', lease: 'l3', ids: [ids[0]!, '../../etc/passwd'] }
  await t.rejects(client.findObjects(bad), { code: 'INVALID_ARGUMENT' })
  await client.releaseObjects({ owner: 'me', leases: [{ lease: 'l2' }] })
  t.match(await client.status(), { cache: { pinnedBytes: 0 } })
})

t.test('leases are gone with a daemon that was killed, and renew tells', async t => {
  const made = await leasing(t)
  await made.daemon.client.leaseObjects(bodyOf(made, 'l1', range(0, 3)))
  t.same(await made.daemon.client.renewOwner({ owner: 'me' }), { leases: 1 })
  made.daemon.process.kill('SIGKILL')
  await made.daemon.ended
  const { client } = await startDaemon(t, { folder: made.daemon.folder })
  t.same(await client.renewOwner({ owner: 'me' }), { leases: 0 })
  t.same(await client.leaseObjects(bodyOf(made, 'l1', range(0, 3))), { failed: [] })
  t.match(await client.status(), { fetch: { objects: 0 }, cache: { pinnedBytes: 3 * OBJECT_BYTES } })
})
