import { readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import type { PhysicalKey, Reading, Source } from '../../../../daemon/model/index.js'
import { type OpenOptions, openPackage } from '../../../../daemon/package/package-cache.js'
import { parseReference } from '../../../../daemon/registry/reference.js'
import { createSource } from '../../../../daemon/source/index.js'
import { writeRegistry } from '../../../support/registry.js'

const FILES = {
  'a/one.txt': { bytes: 'one', meta: { n: 1 } },
  'a/two.txt': { bytes: 'two' },
  'b.bin': { bytes: Buffer.alloc(3000, 7) },
}

/** A real folder source that counts what is asked of it. */
function countingSource(t: Test): Source & { reads: string[]; lists: number } {
  const source = createSource({ ioTimeoutMs: 10_000 })
  t.teardown(() => source.close())
  const counting = {
    reads: [] as string[],
    lists: 0,
    read(key: PhysicalKey, options?: Parameters<Source['read']>[1]): Promise<Reading> {
      if (key.kind === 'file') counting.reads.push(key.path.split('/').slice(-2).join('/'))
      return source.read(key, options)
    },
    list(...args: Parameters<Source['list']>) {
      counting.lists++
      return source.list(...args)
    },
  }
  return counting
}

async function fixture(t: Test, options: Parameters<typeof writeRegistry>[3] = {}) {
  const dir = t.testdir({ registry: {}, cache: {} })
  const cacheDir = join(dir, 'cache')
  const written = await writeRegistry(join(dir, 'registry'), 'ns/pkg', FILES, { message: 'hi', ...options })
  const source = countingSource(t)
  const open = async (more: Partial<OpenOptions> = {}, text = written.reference) => {
    const opened = await openPackage(parseReference(text), { cacheDir, source, ...more })
    t.teardown(() => opened.close())
    return opened
  }
  return { dir, cacheDir, written, source, open, latest: `${written.registry}/ns/pkg` }
}

function filesBelow(folder: string): string[] {
  return readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter(entry => entry.isFile())
    .map(entry => join(entry.parentPath, entry.name))
}

const pathOf = (folder: string, ending: string) => filesBelow(folder).find(path => path.endsWith(ending))!

t.test('openPackage fetches and compiles once, and then asks the registry for nothing (S3)', async t => {
  const { open, source, written, cacheDir } = await fixture(t)
  const opened = await open()
  t.equal(opened.topHash, written.topHash)
  t.equal(opened.timestampMs, written.timestampMs)
  t.equal(opened.index.message, 'hi')
  t.strictSame(
    [...opened.index.entries()].map(({ key, size }) => [key as string, size]),
    [
      ['a/one.txt', 3],
      ['a/two.txt', 3],
      ['b.bin', 3000],
    ],
  )
  t.strictSame(
    ['a', 'b.bin', 'a/one.txt', 'a/two.txt'].map(key => opened.index.find(key)!.ino),
    [2, 3, 4, 5],
    'inode numbers are positions in the breadth-first order',
  )
  const asked = [source.reads.length, source.lists]
  const again = await open()
  t.strictSame([source.reads.length, source.lists], asked)
  t.equal(again.timestampMs, opened.timestampMs)
  t.strictSame(readdirSync(join(cacheDir, 'tmp')), [], 'nothing temporary is left')
  t.ok(
    filesBelow(cacheDir).every(path => (statSync(path).mode & 0o007) === 0),
    'no file of the cache is open to others',
  )
})

t.test('openPackage follows latest, and offline what it was last', async t => {
  const { open, latest, written, dir } = await fixture(t)
  await t.rejects(open({ offline: true }, latest), { code: 'UPSTREAM_UNAVAILABLE', message: /offline/ })
  t.equal((await open({}, latest)).topHash, written.topHash)
  const newer = await writeRegistry(join(dir, 'registry'), 'ns/pkg', { 'c.txt': 'new' }, { timestamp: 1_800_000_000 })
  t.equal((await open({ offline: true }, latest)).topHash, written.topHash)
  t.equal((await open({ offline: true }, `${latest}@${written.topHash.slice(0, 8)}`)).topHash, written.topHash)
  await t.rejects(open({ offline: true }, newer.reference), { code: 'UPSTREAM_UNAVAILABLE' })
  const opened = await open({}, latest)
  t.equal(opened.topHash, newer.topHash)
  t.equal(opened.timestampMs, 1_800_000_000_000)
  await t.rejects(open({ offline: true }, `${latest}@${'0'.repeat(8)}`), { code: 'UPSTREAM_UNAVAILABLE' })
})

t.test('openPackage says which revision is not there, and leaves nothing behind', async t => {
  const { open, latest, cacheDir } = await fixture(t)
  await t.rejects(open({}, `${latest}@${'1'.repeat(64)}`), { code: 'REVISION_NOT_FOUND', message: /1{64}/ })
  await t.rejects(open({}, `${latest}:1234`), { code: 'REVISION_NOT_FOUND' })
  t.strictSame(
    filesBelow(cacheDir).filter(path => /\.(manifest|index)$/.test(path)),
    [],
  )
})

t.test('openPackage uses nothing of a manifest that does not hash to its name (S1)', async t => {
  const { open, written, cacheDir } = await fixture(t)
  writeFileSync(written.manifestPath, readFileSync(written.manifestPath, 'utf8').replace(/"size": ?3/, '"size":4'))
  await t.rejects(open(), { code: 'MANIFEST_CORRUPT', message: new RegExp(written.topHash) })
  t.notOk(readdirSync(cacheDir, { recursive: true, encoding: 'utf8' }).some(path => path.endsWith(written.topHash)))
  t.strictSame(
    filesBelow(cacheDir).filter(path => !path.includes('/names/') && !path.endsWith('/url')),
    [],
  )
})

t.test('openPackage refuses hostile rows, or leaves them out when asked, whichever came first (S2)', async t => {
  const { open, latest, dir } = await fixture(t)
  const { manifestText, fileRow, topHashOf } = await import('../../../support/manifest.js')
  const rows = [fileRow('../../x'), fileRow('sound.txt')]
  const topHash = topHashOf(rows)
  writeFileSync(join(dir, 'registry/.quilt/packages', topHash), manifestText(rows))
  const text = `${latest}@${topHash}`
  await t.rejects(open({}, text), { code: 'PACKAGE_REFUSED', message: /row 2 .*"\.\.\/\.\.\/x"/ })
  const opened = await open({ quarantine: true }, text)
  t.strictSame(
    [...opened.index.entries()].map(({ key }) => key as string),
    ['sound.txt'],
  )
  t.strictSame(
    opened.index.quarantined().map(({ row, key }) => [row, key]),
    [[2, '../../x']],
  )
  await t.rejects(open({}, text), { code: 'PACKAGE_REFUSED' }, 'the cached index of before does not hide it')
})

t.test('openPackage makes a damaged or older index again, from the cached manifest', async t => {
  const { open, source, cacheDir } = await fixture(t)
  await open()
  const path = pathOf(cacheDir, '.index')
  const sound = readFileSync(path)
  const reads = source.reads.length
  for (const damage of [sound.subarray(0, 5000), Buffer.from('nonsense'), withByte(sound, 8, 99)]) {
    writeFileSync(path, damage)
    t.equal((await open()).index.facts.entries, 3)
    t.strictSame(readFileSync(path), sound)
  }
  rmSync(path)
  t.equal((await open()).index.facts.entries, 3)
  t.equal(source.reads.length, reads, 'the registry was not asked')
})

t.test('openPackage fetches the manifest again when the cached one is damaged, too', async t => {
  const { open, source, cacheDir } = await fixture(t)
  await open()
  const manifest = pathOf(cacheDir, '.manifest')
  const sound = readFileSync(manifest)
  for (const damage of [
    sound.subarray(0, 200),
    Buffer.from(sound.toString().replace('"n":1', '"n":2')),
    Buffer.from('x\n'),
  ]) {
    writeFileSync(manifest, damage)
    rmSync(pathOf(cacheDir, '.index'))
    const reads = source.reads.length
    const opened = await open()
    t.equal(opened.index.metadata(opened.index.find('a/one.txt')!.ino)?.replaceAll(' ', ''), '{"n":1}')
    t.equal(source.reads.length, reads + 1)
    t.strictSame(readFileSync(manifest), sound)
  }
})

t.test('OpenedPackage.rebuild mends an index that turns out damaged while it is in use', async t => {
  const { open, cacheDir } = await fixture(t)
  await open()
  const path = pathOf(cacheDir, '.index')
  // Past the header: opening reads nothing there.
  writeFileSync(path, withByte(readFileSync(path), 4096 + 10, 0xff))
  const opened = await open()
  t.throws(() => [...opened.index.entries()], { code: 'INDEX_DAMAGED' })
  await Promise.all([opened.rebuild(), opened.rebuild()])
  t.equal([...opened.index.entries()].length, 3)
})

t.test('openPackage gives up when it is told to, and leaves nothing behind', async t => {
  const { open, cacheDir } = await fixture(t)
  const controller = new AbortController()
  controller.abort()
  await t.rejects(open({ signal: controller.signal }), { code: 'INTERRUPTED' })
  t.strictSame(
    filesBelow(cacheDir).filter(path => /\.(manifest|index)$/.test(path)),
    [],
  )
})

t.test('openPackage may be called by many at once for one revision', async t => {
  const { open } = await fixture(t)
  const opened = await Promise.all(Array.from({ length: 8 }, () => open()))
  t.ok(opened.every(({ index }) => index.facts.entries === 3))
})

function withByte(bytes: Buffer, at: number, value: number): Buffer {
  const changed = Buffer.from(bytes)
  changed[at] = changed[at] === value ? value ^ 1 : value
  return changed
}
