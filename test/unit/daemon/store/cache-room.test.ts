import { existsSync, mkdirSync, readdirSync, statSync, utimesSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import t, { type Test } from 'tap'
import { BobbinError, type ObjectSpec } from '../../../../daemon/model/index.js'
import { openPackage } from '../../../../daemon/package/package-cache.js'
import { parseReference } from '../../../../daemon/registry/reference.js'
import { createSource } from '../../../../daemon/source/index.js'
import { unownedRoom } from '../../../../daemon/store/cache-room.js'
import { pruneCompiled } from '../../../../daemon/store/compiled-files.js'
import { openStore, type StoreOptions } from '../../../../daemon/store/index.js'
import { writeEntry } from '../../../support/objects.js'
import { writeRegistry } from '../../../support/registry.js'
import { smallDisk } from '../../../support/small-disk.js'

const MB = 2 ** 20

async function opened(t: Test, options: StoreOptions) {
  const cacheDir = join(t.testdir(), 'cache')
  const store = await openStore(cacheDir, { freeBytesMin: 0, ...options })
  t.teardown(() => store.close())
  const put = async (name: string, bytes: number): Promise<ObjectSpec> => {
    const content = Buffer.alloc(bytes, name)
    const reservation = await store.reserve(bytes)
    writeFileSync(reservation.fd, content)
    const spec = await writeEntry(cacheDir.concat('-origin'), name, content)
    await store.admit(spec, reservation).close()
    return spec
  }
  return { cacheDir, store, put }
}

/** Files as a compiled package has them; used so many minutes ago. */
function writePackage(cacheDir: string, digit: string, bytes: number, minutes: number): string {
  const folder = join(cacheDir, 'packages', 'v1', 'registry', digit.repeat(64))
  mkdirSync(folder, { recursive: true })
  for (const kind of ['index', 'manifest']) writeAt(join(folder, `x.${kind}`), bytes / 2, minutes)
  return folder
}

function writeAt(path: string, bytes: number, minutes: number): string {
  mkdirSync(dirname(path), { recursive: true })
  writeFileSync(path, Buffer.alloc(bytes))
  const usedAt = new Date(Date.now() - minutes * 60_000)
  utimesSync(path, usedAt, usedAt)
  return path
}

t.test(
  'what lies in the cache beside objects counts against the quota, and objects make room for it (S95)',
  async t => {
    const { cacheDir, store, put } = await opened(t, { bytesMax: 12 * MB })
    for (const name of ['a', 'b', 'c', 'd', 'e']) await put(name, 2 * MB)
    writePackage(cacheDir, '1', 2 * MB, 1)
    writeAt(join(cacheDir, 'access', 'x.log'), MB, 0)
    writeAt(join(cacheDir, 'daemon.log'), MB, 0)
    writeAt(join(cacheDir, 'loader', 'v1', 'x.table'), MB, 0)
    await store.settle()
    const { usage, bytes } = store.stats()
    t.match(usage, { packages: 2 * MB, plans: MB, logs: 2 * MB })
    t.ok(bytes + usage.packages + usage.plans + usage.logs <= 12 * MB + MB, 'the first MiB is not counted')

    const hold = store.hold('a plan')
    await t.rejects(hold.grow(4 * MB), { code: 'STORE_FULL', message: /a plan \(4.00 MiB\).*a quarter of its limit/ })
    t.equal(store.stats().bytes, bytes, 'nothing went for what cannot be')
    hold.end()
  },
)

t.test('a hold evicts objects first, and is refused when all of them are in use (S95)', async t => {
  const { store, put } = await opened(t, { bytesMax: 8 * MB })
  const first = await put('a', 4 * MB)
  const second = await put('b', 4 * MB)
  const pin = store.pinNow(second)!
  const hold = store.hold('the package x')
  await hold.grow(1.5 * MB)
  t.equal(store.stateOf(first), 'absent')
  await t.rejects(store.reserve(6 * MB), { code: 'STORE_FULL' }, 'what is held for is not given to an object')
  hold.end()
  pin.release()
})

t.test('compiled files go by last use, and none that was used in the last minutes (S96)', async t => {
  const cacheDir = t.testdir()
  const oldest = writePackage(cacheDir, '1', 1000, 90)
  const table = writeAt(join(cacheDir, 'loader', 'v1', 'x.table'), 1000, 60)
  const newer = writePackage(cacheDir, '2', 1000, 30)
  const used = writePackage(cacheDir, '3', 1000, 1)
  t.equal(await pruneCompiled(cacheDir, 1), 1000)
  t.notOk(existsSync(oldest))
  t.ok(existsSync(table))
  t.equal(await pruneCompiled(cacheDir, 1_000_000), 2000)
  t.notOk(existsSync(table) || existsSync(newer))
  t.strictSame(readdirSync(used).sort(), ['x.index', 'x.manifest'])
  t.ok(existsSync(join(cacheDir, 'loader', 'v1')), "the loader's folder stays")
})

t.test('an object that needs room gets it from packages that nobody uses, when no object can go (S96)', async t => {
  const { cacheDir, store, put } = await opened(t, { bytesMax: 4 * MB })
  const stale = writePackage(cacheDir, '1', 2 * MB, 90)
  const used = writePackage(cacheDir, '2', 2 * MB, 1)
  await store.settle()
  await put('a', 2 * MB)
  t.notOk(existsSync(stale))
  t.ok(existsSync(used))
})

t.test('an open package is marked as used (S96)', async t => {
  const folder = t.testdir()
  const { reference } = await writeRegistry(join(folder, 'registry'), 'a/b', { x: 'one' })
  const source = createSource({ ioTimeoutMs: 5000 })
  t.teardown(() => source.close())
  const cacheDir = join(folder, 'cache')
  const open = () => openPackage(parseReference(reference), { cacheDir, source })
  const first = await open()
  first.close()
  for (const path of [first.indexPath, first.manifestPath]) utimesSync(path, 1, 1)
  const again = await open()
  t.teardown(() => again.close())
  while (statSync(again.indexPath).mtimeMs < 2000) await new Promise(resolve => setTimeout(resolve, 10))
  t.equal(await pruneCompiled(cacheDir, 1_000_000), 0, 'so it stays')
})

t.test('a package that the disk has no room for is refused before it is written, and leaves nothing (S95)', async t => {
  const disk = smallDisk(t, 8)
  if (disk === undefined) return
  const { reference } = await writeRegistry(join(t.testdir(), 'registry'), 'a/b', {
    x: { bytes: 'one', meta: 'm'.repeat(900_000) },
  })
  const source = createSource({ ioTimeoutMs: 5000 })
  t.teardown(() => source.close())
  writeFileSync(join(disk, 'limits.json'), JSON.stringify({ limitBytes: 100 * MB, freeBytesMin: 7 * MB }))
  const open = openPackage(parseReference(reference), { cacheDir: disk, source })
  const error = await open.then(
    () => undefined,
    (error: unknown) => error,
  )
  t.ok(error instanceof BobbinError)
  t.match(error, { code: 'STORE_FULL', message: /no room for the package [0-9a-f]{64} .*7.00 MiB stay free/ })
  t.strictSame(readdirSync(join(disk, 'tmp')), [])
})

t.test('what a killed process was writing is deleted by the daemon that runs (S97)', async t => {
  const { cacheDir, store } = await opened(t, { bytesMax: 100 * MB })
  const dead = writeAt(join(cacheDir, 'tmp', '999999999-1.index'), MB, 20)
  const fresh = writeAt(join(cacheDir, 'tmp', '999999999-2.index'), MB, 0)
  const ours = writeAt(join(cacheDir, 'tmp', `${process.pid}-3.index`), MB, 20)
  const table = writeAt(join(cacheDir, 'loader', 'v1', 'x.table.999999999.new.inos'), MB, 20)
  await store.settle()
  t.notOk(existsSync(dead) || existsSync(table))
  t.ok(existsSync(fresh) && existsSync(ours))
  t.equal(store.stats().usage.underWay, 2 * MB)
})

t.test('without a daemon, its last limits hold, and what is set holds before them (S95)', async t => {
  const cacheDir = t.testdir()
  await unownedRoom(cacheDir).hold('x').grow(MB)
  const store = await openStore(cacheDir, { bytesMax: 8 * MB, freeBytesMin: 0 })
  await store.close()
  await t.rejects(
    unownedRoom(cacheDir)
      .hold('x')
      .grow(3 * MB),
    { code: 'STORE_FULL', message: /may take 2.00 MiB/ },
  )
  await unownedRoom(cacheDir, { limitBytes: 100 * MB })
    .hold('x')
    .grow(3 * MB)
  await t.rejects(
    unownedRoom(cacheDir, { freeBytesMin: 2 ** 50 })
      .hold('x')
      .grow(MB),
    { code: 'STORE_FULL' },
  )
})
