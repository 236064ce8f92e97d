import { execFileSync, spawnSync } from 'node:child_process'
import {
  appendFileSync,
  chmodSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  readSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  truncateSync,
  utimesSync,
  writeFileSync,
  writeSync,
} from 'node:fs'
import { dirname, join } from 'node:path'
import t, { type Test } from 'tap'
import { HASH_TYPES, type HashType, type ObjectSpec } from '../../../../daemon/model/index.js'
import { createObjectHasher } from '../../../../daemon/model/object-hash.js'
import { findObject, type ObjectStore, objectId, openStore, type StoreOptions } from '../../../../daemon/store/index.js'
import { measureUsage } from '../../../../daemon/store/usage.js'
import { noise, rememberingLog } from '../../../support/objects.js'
import { smallDisk } from '../../../support/small-disk.js'

const ROOMY = { bytesMax: 1e9, freeBytesMin: 0 }

async function specOf(bytes: Uint8Array, type: HashType = 'SHA256'): Promise<ObjectSpec> {
  const hasher = await createObjectHasher(type, bytes.length)
  hasher.update(bytes)
  return {
    physicalKey: { kind: 's3', bucket: 'b', key: 'k', versionId: 'v' },
    size: bytes.length,
    hash: { type, hex: hasher.digest() },
  }
}

/** As the fetcher does it. */
async function put(store: ObjectStore, text: string | Uint8Array, type?: HashType): Promise<ObjectSpec> {
  const bytes = Buffer.from(text)
  const spec = await specOf(bytes, type)
  const reservation = await store.reserve(bytes.length)
  writeSync(reservation.fd, bytes, 0, bytes.length, 0)
  await store.admit(spec, reservation).close()
  return spec
}

async function contentOf(store: ObjectStore, spec: ObjectSpec): Promise<string | undefined> {
  const object = await store.open(spec)
  if (object === undefined) return undefined
  const buffer = Buffer.alloc(object.size + 1)
  const bytes = readSync(object.fd, buffer, 0, buffer.length, 0)
  await object.close()
  return buffer.toString('utf8', 0, bytes)
}

function pathOf(cacheDir: string, spec: ObjectSpec): string {
  const [type, hex] = objectId(spec).split('/')
  return join(cacheDir, 'objects/v1', type!, hex!.slice(0, 2), hex!)
}

/** Stamps see changes from the next tick of the kernel's clock on. */
function nextTick(): Promise<void> {
  return new Promise(resolve => setTimeout(resolve, 12))
}

function overwrite(path: string, text: string | Uint8Array): void {
  chmodSync(path, 0o640)
  writeFileSync(path, text)
}

async function opened(t: Test, options: StoreOptions = {}) {
  const cacheDir = t.testdir()
  const log = rememberingLog()
  const store = await openStore(cacheDir, { ...ROOMY, log, ...options })
  return { cacheDir, store, log }
}

t.test('openStore keeps objects of every hash type over a restart, without hashing them again', async t => {
  const { cacheDir, store } = await opened(t)
  const specs: ObjectSpec[] = []
  for (const type of HASH_TYPES) {
    specs.push(await put(store, 'hello', type), await put(store, '', type))
  }
  await store.close()
  const again = await openStore(cacheDir, {
    ...ROOMY,
    hashFile: async () => t.fail('hashed again') as unknown as string,
  })
  t.match(again.stats(), { objects: 6, bytes: 15, pinnedObjects: 0, refused: 0 })
  for (const spec of specs) {
    t.equal(again.stateOf(spec), 'checked')
    t.equal(await contentOf(again, spec), spec.size === 0 ? '' : 'hello')
    t.equal(statSync(pathOf(cacheDir, spec)).mode & 0o777, 0o440)
  }
})

t.test('openStore hashes objects once, after another boot without a clean end', async t => {
  const { cacheDir, store } = await opened(t)
  const good = await put(store, 'good')
  const bad = await put(store, 'bad!')
  const journal = join(cacheDir, 'objects/v1/journal')
  writeFileSync(journal, readFileSync(journal, 'utf8').replace(/^boot .*$/m, 'boot another-one'))
  const path = pathOf(cacheDir, bad)
  // Lost on the way to the disk: nothing that a stamp could show.
  const { mtime } = statSync(path)
  overwrite(path, 'b\0\0\0')
  utimesSync(path, mtime, mtime)
  const log = rememberingLog()
  const again = await openStore(cacheDir, { ...ROOMY, log })
  t.equal(again.stateOf(good), 'unchecked')
  t.equal(await contentOf(again, good), 'good')
  t.equal(again.stateOf(good), 'checked')
  t.equal(await contentOf(again, bad), undefined)
  t.notOk(existsSync(path))
  t.match(again.stats(), { objects: 1, bytes: 4, refused: 1 })
  const refusal = log.lines.find(({ level }) => level === 'error')
  t.equal(refusal?.fields.expected, bad.hash.hex)
  t.match(refusal?.fields.found, /^[0-9a-f]{64}$/)
  t.not(refusal?.fields.found, bad.hash.hex)
})

t.test('openStore trusts nothing of an earlier boot after a second unclean end', async t => {
  const { cacheDir, store } = await opened(t)
  const spec = await put(store, 'old')
  const journal = join(cacheDir, 'objects/v1/journal')
  writeFileSync(journal, readFileSync(journal, 'utf8').replace(/^boot .*$/m, 'boot another-one'))
  await openStore(cacheDir, ROOMY)
  // Killed here, and started again within the same boot.
  const third = await openStore(cacheDir, ROOMY)
  t.equal(third.stateOf(spec), 'unchecked')
})

t.test('openStore trusts objects within one boot, also after a kill', async t => {
  const { cacheDir, store } = await opened(t)
  const spec = await put(store, 'x')
  const again = await openStore(cacheDir, ROOMY)
  t.equal(again.stateOf(spec), 'checked')
})

t.test('openStore walks the folders when the journal is gone, and hashes what it finds', async t => {
  const { cacheDir, store } = await opened(t)
  const specs = [
    await put(store, 'one'),
    await put(store, 'three', 'sha2-256-chunked'),
    await put(store, '', 'CRC64NVME'),
  ]
  await store.close()
  rmSync(join(cacheDir, 'objects/v1/journal'))
  writeFileSync(join(cacheDir, 'objects/v1/sha256/rubbish'), 'x')
  const again = await openStore(cacheDir, ROOMY)
  t.match(again.stats(), { objects: 3, bytes: 8 })
  for (const spec of specs) {
    t.equal(again.stateOf(spec), 'unchecked')
    t.type(await contentOf(again, spec), 'string')
  }
})

t.test('openStore survives a journal that is cut at any byte, or has any byte changed', async t => {
  const { cacheDir, store } = await opened(t)
  const first = await put(store, 'first')
  const second = await put(store, 'second', 'sha2-256-chunked')
  const gone = await put(store, 'gone')
  rmSync(pathOf(cacheDir, gone))
  t.equal(await contentOf(store, gone), undefined)
  const path = join(cacheDir, 'objects/v1/journal')
  const journal = readFileSync(path)
  const changes = [
    ...Array.from(journal, (_, at) => journal.subarray(0, at)),
    ...Array.from(journal, (byte, at) =>
      Buffer.concat([journal.subarray(0, at), Buffer.of(byte ^ 1), journal.subarray(at + 1)]),
    ),
    Buffer.from('\0\xff garbage\n\n- \n+ sha256/../../x 1 2\nclean\n', 'latin1'),
  ]
  let wrong = 0
  for (const damaged of changes) {
    writeFileSync(path, damaged)
    const again = await openStore(cacheDir, ROOMY)
    const isRight = (await contentOf(again, first)) === 'first' && (await contentOf(again, second)) === 'second'
    const { objects, bytes } = again.stats()
    if (!isRight || objects !== 2 || bytes !== 11 || (await contentOf(again, gone)) !== undefined) wrong++
  }
  t.equal(wrong, 0, `in ${changes.length} damaged journals`)
})

t.test('openStore never takes a changed object for a checked one, whatever the journal says', async t => {
  const { cacheDir, store } = await opened(t)
  const spec = await put(store, 'right')
  await store.close()
  await nextTick()
  overwrite(pathOf(cacheDir, spec), 'wrong')
  const journal = readFileSync(join(cacheDir, 'objects/v1/journal'))
  for (let at = 0; at <= journal.length; at += 7) {
    writeFileSync(join(cacheDir, 'objects/v1/journal'), journal.subarray(0, at))
    overwrite(pathOf(cacheDir, spec), 'wrong')
    const again = await openStore(cacheDir, ROOMY)
    t.equal(await contentOf(again, spec), undefined)
    mkdirSync(dirname(pathOf(cacheDir, spec)), { recursive: true })
    writeFileSync(pathOf(cacheDir, spec), 'wrong')
  }
})

t.test('openStore removes temporary files of the dead and leaves those of the living', async t => {
  const dead = spawnSync('true').pid
  const cacheDir = t.testdir({
    tmp: {
      [`${dead}-1.object`]: 'x',
      [`${process.ppid}-1.object`]: 'also the last owner’s: it had our parent’s pid',
      [`${dead}-2.evicted`]: 'x',
      [`${dead}-abc.manifest`]: 'x',
      [`${process.ppid}-abc.manifest`]: 'somebody compiles a package',
      unrelated: 'not ours',
    },
  })
  await openStore(cacheDir, ROOMY)
  t.same(readdirSync(join(cacheDir, 'tmp')).sort(), [`${process.ppid}-abc.manifest`, 'unrelated'].sort())
})

t.test('openStore deletes nothing in a folder tmp that somebody had before it was a cache (S119)', async t => {
  const dead = spawnSync('true').pid
  const names = [`${dead}-photos`, `${dead}-results.csv`, `${dead}-my.object`, 'model.object', `${dead}-abc.index.tar`]
  const cacheDir = t.testdir({ tmp: Object.fromEntries(names.map(name => [name, { a: 'x' }])) })
  const file = join(cacheDir, 'tmp', `${dead}-notes.txt`)
  writeFileSync(file, 'x')
  // As old as what nobody writes to any more.
  utimesSync(file, 1, 1)
  await openStore(cacheDir, ROOMY)
  await measureUsage(cacheDir)
  t.same(readdirSync(join(cacheDir, 'tmp')).sort(), [...names, `${dead}-notes.txt`].sort())
})

t.test('ObjectStore.open catches a byte that was changed in a cached file (S7)', async t => {
  const { cacheDir, store, log } = await opened(t)
  const spec = await put(store, 'abcdef')
  await nextTick()
  const path = pathOf(cacheDir, spec)
  const { mtime, atime } = statSync(path)
  overwrite(path, 'abcdeF')
  utimesSync(path, atime, mtime)
  t.equal(store.openNow(spec), undefined)
  t.equal(await contentOf(store, spec), undefined)
  t.match(store.stats(), { objects: 0, bytes: 0, refused: 1, pinnedObjects: 0 })
  t.match(log.lines.at(-1), { level: 'error', fields: { expected: spec.hash.hex } })
})

t.test('ObjectStore.open catches it also while somebody else has the object open', async t => {
  const { cacheDir, store } = await opened(t)
  const spec = await put(store, 'abcdef')
  const reader = (await store.open(spec))!
  await nextTick()
  overwrite(pathOf(cacheDir, spec), 'abcdeF')
  t.equal(await store.open(spec), undefined)
  await put(store, 'abcdef')
  t.equal(await contentOf(store, spec), 'abcdef')
  await reader.close()
  t.match(store.stats(), { objects: 1, bytes: 6, pinnedBytes: 0, pinnedObjects: 0 })
})

t.test('ObjectStore.open hashes an object that was touched, and goes on with it', async t => {
  const { cacheDir, store } = await opened(t)
  const spec = await put(store, 'same')
  await nextTick()
  utimesSync(pathOf(cacheDir, spec), 1, 1)
  t.equal(await contentOf(store, spec), 'same')
  t.ok(store.openNow(spec), 'and does not hash it a second time')
})

t.test('ObjectStore.open hashes once for many callers', async t => {
  const cacheDir = t.testdir()
  const store = await openStore(cacheDir, ROOMY)
  const spec = await put(store, 'shared')
  await store.close()
  rmSync(join(cacheDir, 'objects/v1/journal'))
  let hashings = 0
  const again = await openStore(cacheDir, {
    ...ROOMY,
    hashFile: async () => {
      hashings++
      await nextTick()
      return spec.hash.hex
    },
  })
  const objects = await Promise.all(Array.from({ length: 20 }, () => again.open(spec)))
  t.equal(hashings, 1)
  t.equal(again.stats().pinnedObjects, 1)
  for (const object of objects) await object!.close()
  t.equal(again.stats().pinnedObjects, 0)
})

for (const [what, replace] of Object.entries({
  'a symbolic link': path => symlinkSync('/etc/passwd', path),
  'a dangling link': path => symlinkSync('/nowhere', path),
  'a fifo': path => void execFileSync('mkfifo', [path]),
  'a folder': path => {
    mkdirSync(path)
    writeFileSync(join(path, 'inside'), 'x')
  },
  'a short file': path => writeFileSync(path, 'obj'),
  'a long file': path => writeFileSync(path, 'object and more'),
  'an empty file': path => writeFileSync(path, ''),
  nothing: () => {},
} satisfies Record<string, (path: string) => void>)) {
  t.test(`ObjectStore.open neither follows nor waits for ${what} in place of an object`, async t => {
    for (const isRestarted of [false, true]) {
      const { cacheDir, store } = await opened(t)
      const spec = await put(store, 'object')
      const path = pathOf(cacheDir, spec)
      await nextTick()
      rmSync(path)
      replace(path)
      if (isRestarted) rmSync(join(cacheDir, 'objects/v1/journal'))
      const now = isRestarted ? await openStore(cacheDir, ROOMY) : store
      t.equal(await contentOf(now, spec), undefined)
      t.throws(() => readFileSync(path), { code: 'ENOENT' })
      t.match(now.stats(), { objects: 0, bytes: 0, pinnedBytes: 0 })
      replace(path)
      await put(now, 'object')
      t.equal(await contentOf(now, spec), 'object', 'and it can be admitted over it')
      rmSync(path)
    }
    t.match(readFileSync('/etc/passwd', 'utf8'), /root/)
  })
}

t.test('ObjectStore.open refuses a manifest that lies about a size, and keeps the object', async t => {
  const { store } = await opened(t)
  const spec = await put(store, 'eleven bytes')
  await t.rejects(store.open({ ...spec, size: 5 }), { code: 'OBJECT_CORRUPT', message: /says 5 bytes.*has 12/ })
  t.equal(await contentOf(store, spec), 'eleven bytes')
  t.equal(store.stats().pinnedObjects, 0)
})

t.test('objectId keeps CRC64NVME objects private to their address, version and size', async t => {
  const { store } = await opened(t)
  const spec = await put(store, 'forgeable', 'CRC64NVME')
  const others: ObjectSpec[] = [
    { ...spec, size: 8 },
    { ...spec, physicalKey: { kind: 's3', bucket: 'b', key: 'other', versionId: 'v' } },
    { ...spec, physicalKey: { kind: 's3', bucket: 'b', key: 'k', versionId: 'w' } },
    { ...spec, physicalKey: { kind: 's3', bucket: 'b', key: 'k' } },
    { ...spec, hash: { type: 'CRC64NVME', hex: '0000000000000001' } },
  ]
  for (const other of others) t.equal(await store.open(other), undefined)
  t.equal(await contentOf(store, spec), 'forgeable')
  const proven = await put(store, 'forgeable')
  t.equal(objectId(proven), objectId({ ...proven, physicalKey: { kind: 'file', path: '/elsewhere' } }))
})

t.test('ObjectStore.reserve evicts the least recently used, never what is open', async t => {
  const { cacheDir, store } = await opened(t, { bytesMax: 100 })
  const [a, b, c] = [
    await put(store, 'a'.repeat(40)),
    await put(store, 'b'.repeat(40)),
    await put(store, 'c'.repeat(20)),
  ]
  t.equal(await contentOf(store, a), 'a'.repeat(40), 'a is used now')
  const open = (await store.open(b))!
  const d = await put(store, 'd'.repeat(15))
  t.same(
    [a, b, c, d].map(spec => store.stateOf(spec)),
    ['checked', 'checked', 'absent', 'checked'],
  )
  t.notOk(existsSync(pathOf(cacheDir, c)))
  await put(store, 'e'.repeat(40))
  t.same(
    [a, b, d].map(spec => store.stateOf(spec)),
    ['absent', 'checked', 'checked'],
  )
  t.match(store.stats(), { bytes: 95, limitBytes: 100, pinnedBytes: 40, pinnedObjects: 1, evictions: 2 })
  await t.rejects(store.reserve(61), { code: 'STORE_FULL', message: /61 bytes.*100 B.*40 B.*--cache-limit/ })
  t.match(store.stats(), { bytes: 95, evictions: 2 }, 'what cannot fit drives nothing out')
  await open.close()
  ;(await store.reserve(100)).discard()
  t.match(store.stats(), { bytes: 0, objects: 0, reservedBytes: 0 })
  t.same(readdirSync(join(cacheDir, 'tmp')), [])
})

t.test('ObjectStore.reserve keeps the order of use over a restart', async t => {
  const { cacheDir, store } = await opened(t, { bytesMax: 30 })
  const [a, b, c] = [
    await put(store, 'a'.repeat(10)),
    await put(store, 'b'.repeat(10)),
    await put(store, 'c'.repeat(10)),
  ]
  await contentOf(store, a)
  await store.close()
  const again = await openStore(cacheDir, { bytesMax: 30, freeBytesMin: 0 })
  await put(again, 'd'.repeat(15))
  t.same(
    [a, b, c].map(spec => again.stateOf(spec)),
    ['checked', 'absent', 'absent'],
  )
})

t.test('ObjectStore.reserve never goes over the quota, whoever asks at once (S16)', async t => {
  const { store } = await opened(t, { bytesMax: 100 })
  let most = 0
  await Promise.all(
    Array.from({ length: 50 }, async (_, i) => {
      const bytes = noise(1 + ((i * 7) % 40), i)
      const spec = await specOf(bytes)
      const reservation = await store.reserve(bytes.length)
      writeSync(reservation.fd, bytes, 0, bytes.length, 0)
      await nextTick()
      const { bytes: held, reservedBytes } = store.stats()
      most = Math.max(most, held + reservedBytes)
      await store.admit(spec, reservation).close()
    }),
  )
  t.ok(most > 60 && most <= 100, `at most ${most} of 100 bytes`)
})

t.test('ObjectStore.reserve waits for other fetches, and stops waiting when it is interrupted', async t => {
  const { store } = await opened(t, { bytesMax: 100 })
  const first = await store.reserve(80)
  const controller = new AbortController()
  const interrupted = store.reserve(50, { signal: controller.signal })
  controller.abort()
  await t.rejects(interrupted, { code: 'INTERRUPTED' })
  const second = store.reserve(50)
  await nextTick()
  t.equal(store.stats().reservedBytes, 80)
  first.discard()
  ;(await second).discard()
  t.equal(store.stats().reservedBytes, 0)
})

t.test('ObjectStore.reserve keeps the floor of free space (S16)', async t => {
  const disk = smallDisk(t, 8)
  if (disk === undefined) return
  const store = await openStore(disk, { bytesMax: 1e9, freeBytesMin: 4 * 2 ** 20 })
  const first = await put(store, noise(2 * 2 ** 20, 1))
  t.equal(store.stats().evictions, 0)
  const second = await put(store, noise(2.5 * 2 ** 20, 2))
  t.equal(store.stateOf(first), 'absent')
  t.equal(store.stateOf(second), 'checked')
  await t.rejects(store.reserve(5 * 2 ** 20), { code: 'STORE_FULL', message: /--free-floor/ })
})

t.test('ObjectStore goes on when the disk is too full for its journal', async t => {
  const disk = smallDisk(t, 2)
  if (disk === undefined) return
  const log = rememberingLog()
  const store = await openStore(disk, { ...ROOMY, log })
  const spec = await put(store, 'small')
  t.throws(() => writeFileSync(join(disk, 'filler'), Buffer.alloc(4e6)), { code: 'ENOSPC' })
  const journal = join(disk, 'objects/v1/journal')
  // Fill the journal's last page, so that its next line needs a new one.
  appendFileSync(journal, ' '.repeat(4096 - (statSync(journal).size % 4096)))
  t.equal(await contentOf(store, spec), 'small')
  rmSync(pathOf(disk, spec))
  t.equal(await contentOf(store, spec), undefined)
  rmSync(join(disk, 'filler'))
  const again = await put(store, 'again')
  await store.close()
  t.equal(await contentOf(await openStore(disk, ROOMY), again), 'again')
})

t.test('ObjectStore.admit refuses a file of another length', async t => {
  const { cacheDir, store } = await opened(t)
  const spec = await specOf(Buffer.from('four'))
  const reservation = await store.reserve(4)
  writeSync(reservation.fd, 'fou')
  t.throws(() => store.admit(spec, reservation), { code: 'LOCAL_IO' })
  t.match(store.stats(), { objects: 0, reservedBytes: 0 })
  t.same(readdirSync(join(cacheDir, 'tmp')), [])
})

t.test('ObjectStore rewrites its journal when most of it is dead lines', async t => {
  const { cacheDir, store } = await opened(t, { bytesMax: 10 })
  for (let i = 0; i < 5200; i++) await put(store, `object${i % 9}`.padEnd(8))
  t.ok(statSync(join(cacheDir, 'objects/v1/journal')).size < 10_100 * 140)
  t.equal((await openStore(cacheDir, ROOMY)).stats().objects, 1)
})

t.test('findObject finds an object of the right size, and nothing else', async t => {
  const { cacheDir, store } = await opened(t)
  const spec = await put(store, 'found')
  const path = pathOf(cacheDir, spec)
  t.equal(findObject(cacheDir, spec), path)
  t.equal(findObject(cacheDir, await specOf(Buffer.from('absent'))), undefined)
  t.equal(findObject(join(cacheDir, 'nowhere'), spec), undefined)
  truncateSync(path, 2)
  t.equal(findObject(cacheDir, spec), undefined)
  renameSync(path, `${path}x`)
  symlinkSync(`${path}x`, path)
  t.equal(findObject(cacheDir, spec), undefined)
})
