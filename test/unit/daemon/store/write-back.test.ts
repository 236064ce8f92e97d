/** What the store does when the disk loses what was written to it, and what it believes after a power cut. */
import { spawnSync } from 'node:child_process'
import { existsSync, readFileSync, readSync, writeFileSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { findBobbinFuse } from '../../../../daemon/control/bobbin-fuse.js'
import type { ObjectSpec } from '../../../../daemon/model/index.js'
import { createObjectHasher } from '../../../../daemon/model/object-hash.js'
import { type ObjectStore, objectId, objectPath, openStore } from '../../../../daemon/store/index.js'
import { isOrdered } from '../../../../daemon/store/write-order.js'
import { forgetPages, losingDisk } from '../../../support/losing-disk.js'
import { noise, rememberingLog } from '../../../support/objects.js'

const ROOMY = { bytesMax: 1e9, freeBytesMin: 0 }
const SOON = { ...ROOMY, keepsOrder: true, syncAfterMs: 20 }
const NEVER = { ...ROOMY, keepsOrder: true, syncAfterMs: 1e8 }

async function put(store: ObjectStore, bytes: Uint8Array): Promise<ObjectSpec> {
  const hasher = await createObjectHasher('SHA256', bytes.length)
  hasher.update(bytes)
  const spec: ObjectSpec = {
    physicalKey: { kind: 's3', bucket: 'b', key: 'k', versionId: 'v' },
    size: bytes.length,
    hash: { type: 'SHA256', hex: hasher.digest() },
  }
  const reservation = await store.reserve(bytes.length)
  for (let at = 0; at < bytes.length; ) at += writeSync(reservation.fd, bytes, at, bytes.length - at, at)
  await store.admit(spec, reservation).close()
  return spec
}

async function bytesOf(store: ObjectStore, spec: ObjectSpec): Promise<Buffer | undefined> {
  const object = await store.open(spec)
  if (object === undefined) return undefined
  const buffer = Buffer.alloc(object.size)
  readSync(object.fd, buffer, 0, buffer.length, 0)
  await object.close()
  return buffer
}

async function until(condition: () => boolean, what: string): Promise<void> {
  for (let i = 0; i < 3000; i++) {
    if (condition()) return
    await sleep(10)
  }
  throw new Error(`never: ${what}`)
}

function journalOf(cacheDir: string): string {
  return readFileSync(join(cacheDir, 'objects/v1/journal'), 'utf8')
}

/** The journal says that the object's bytes are on the disk. */
function isSynced(cacheDir: string, spec: ObjectSpec): boolean {
  const [, above, below] =
    new RegExp(`^\\+ ${objectId(spec)} [^]*?^mark (.*)$([^]*)`, 'm').exec(journalOf(cacheDir)) ?? []
  return above !== undefined && below!.includes(`synced ${above}`)
}

function bootAgain(cacheDir: string): void {
  const journal = join(cacheDir, 'objects/v1/journal')
  writeFileSync(journal, journalOf(cacheDir).replaceAll(/^boot .*$/gm, 'boot another-one'))
}

const bobbinFuse = findBobbinFuse()
const programs = [
  { name: 'bobbin-fuse', syncProgram: bobbinFuse.path, skip: bobbinFuse.reason ?? false },
  { name: 'sync(1)', syncProgram: undefined, skip: false },
]

for (const { name, syncProgram, skip } of programs) {
  t.test(`ObjectStore serves nothing that the disk has lost, asked by ${name} (S90)`, { skip }, async t => {
    const disk = losingDisk(t, 32)
    if (disk === undefined) return
    const log = rememberingLog()
    const asked: string[] = []
    const letGo = async (ids: readonly string[]) => {
      asked.push(...ids)
      return ids.map(() => 'gone' as const)
    }
    const store = await openStore(disk.path, { ...SOON, syncProgram, log, letGo })
    const kept = noise(300_000, 1)
    const keptSpec = await put(store, kept)
    await until(() => isSynced(disk.path, keptSpec), 'the disk has the first object')
    disk.lose()
    const lost = noise(4_000_000, 2)
    const lostSpec = await put(store, lost)
    await until(() => store.stats().lost > 0, 'the loss is noticed')
    t.equal(store.stats().lost, 1)
    t.equal(store.stateOf(lostSpec), 'absent')
    t.notOk(existsSync(objectPath(disk.path, objectId(lostSpec))), 'whoever opens it by its path finds nothing')
    t.ok(asked.includes(objectId(lostSpec)), 'bobbin-fuse is asked to let go of it')
    t.match(log.lines.find(({ level }) => level === 'error')?.message, /the disk of the cache has lost/)
    forgetPages(objectPath(disk.path, objectId(keptSpec)))
    t.ok((await bytesOf(store, keptSpec))?.equals(kept), 'what the disk had before is kept')
    disk.heal()
    // The journal's own bytes may have been lost as well, which makes a suspect of what comes next.
    for (let tries = 0; tries < 5 && !isSynced(disk.path, lostSpec); tries++) {
      await put(store, lost)
      const isSettled = () => isSynced(disk.path, lostSpec) || store.stateOf(lostSpec) === 'absent'
      await until(isSettled, 'the disk is asked')
    }
    forgetPages(objectPath(disk.path, objectId(lostSpec)))
    t.ok((await bytesOf(store, lostSpec))?.equals(lost))
    await store.close()
  })
}

t.test('the disk that is used here does lose what was written to it, under the same stamp', async t => {
  const disk = losingDisk(t, 32)
  if (disk === undefined) return
  const store = await openStore(disk.path, NEVER)
  disk.lose()
  const bytes = noise(4_000_000, 3)
  const spec = await put(store, bytes)
  t.ok((await bytesOf(store, spec))?.equals(bytes), 'as long as the page cache has it')
  spawnSync('sync', ['-f', disk.path])
  forgetPages(objectPath(disk.path, objectId(spec)))
  t.equal(store.stateOf(spec), 'checked')
  t.notOk((await bytesOf(store, spec))?.equals(bytes), 'this is what the store has to be told of')
})

t.test(
  'ObjectStore is told of a loss that another program was told of before (S90)',
  { skip: bobbinFuse.reason ?? false },
  async t => {
    const disk = losingDisk(t, 32)
    if (disk === undefined) return
    const store = await openStore(disk.path, { ...ROOMY, syncAfterMs: 1500, syncProgram: bobbinFuse.path })
    disk.lose()
    const spec = await put(store, noise(4_000_000, 4))
    t.not(spawnSync('sync', ['-f', disk.path]).status, 0, 'this one is told')
    t.equal(spawnSync('sync', ['-f', disk.path]).status, 0, 'and nobody who comes later')
    await until(() => store.stats().lost > 0, 'the loss is noticed')
    t.equal(store.stateOf(spec), 'absent')
  },
)

t.test('a store is told of what was lost after its last owner was killed (S90)', async t => {
  const disk = losingDisk(t, 32)
  if (disk === undefined) return
  const killed = await openStore(disk.path, NEVER)
  disk.lose()
  const spec = await put(killed, noise(4_000_000, 5))
  const store = await openStore(disk.path, SOON)
  t.equal(store.stateOf(spec), 'checked', 'within one boot the page cache has it')
  await until(() => store.stats().lost > 0, 'the loss is noticed')
  t.equal(store.stateOf(spec), 'absent')
})

t.test('ObjectStore.close does not end well when the disk has lost something', async t => {
  const disk = losingDisk(t, 32)
  if (disk === undefined) return
  const store = await openStore(disk.path, NEVER)
  disk.lose()
  const spec = await put(store, noise(4_000_000, 6))
  await store.close()
  t.notMatch(journalOf(disk.path), /clean$/m)
  t.equal((await openStore(disk.path, NEVER)).stateOf(spec), 'absent')
})

t.test('after another boot, what a sync has covered is believed, and the rest is hashed again (S91)', async t => {
  const cacheDir = t.testdir()
  const store = await openStore(cacheDir, SOON)
  const synced = await put(store, noise(1000, 7))
  await until(() => isSynced(cacheDir, synced), 'the disk has it')
  const journal = journalOf(cacheDir)
  const late = await put(store, noise(1000, 8))
  await until(() => isSynced(cacheDir, late), 'the disk has this one, too')
  // The power goes before the second sync: its last line is lost.
  writeFileSync(join(cacheDir, 'objects/v1/journal'), journalOf(cacheDir).replace(/synced .*\n$/, ''))
  t.ok(journalOf(cacheDir).startsWith(journal))
  bootAgain(cacheDir)
  const again = await openStore(cacheDir, NEVER)
  t.equal(again.stateOf(synced), 'checked')
  t.equal(again.stateOf(late), 'unchecked')
  // Once more, without an end: what was believed is believed again.
  bootAgain(cacheDir)
  const third = await openStore(cacheDir, NEVER)
  t.equal(third.stateOf(synced), 'checked')
  t.equal(third.stateOf(late), 'unchecked')
})

t.test(
  'after another boot, where a deleted file may come back with the bytes of another one, nothing is believed (S91)',
  async t => {
    const cacheDir = t.testdir()
    const store = await openStore(cacheDir, SOON)
    const spec = await put(store, noise(1000, 10))
    await store.close()
    bootAgain(cacheDir)
    const next = await openStore(cacheDir, { ...NEVER, keepsOrder: false })
    t.equal(next.stateOf(spec), 'checked', 'nothing was deleted since the store was closed')
    bootAgain(cacheDir)
    t.equal((await openStore(cacheDir, { ...NEVER, keepsOrder: false })).stateOf(spec), 'unchecked')
  },
)

t.test('isOrdered reads what ext4 tells of itself', async t => {
  t.equal(isOrdered('rw\nbarrier\ndata=ordered\ncommit=5\n'), true)
  t.equal(isOrdered('rw\nbarrier\ndata=journal\n'), true)
  t.equal(isOrdered('rw\nbarrier\ndata=writeback\n'), false)
  t.equal(isOrdered('rw\nnobarrier\ndata=ordered\n'), false)
  t.equal(isOrdered('rw\n'), false)
})

t.test('a sync that had no mark in this journal covers nothing', async t => {
  const cacheDir = t.testdir()
  const store = await openStore(cacheDir, SOON)
  const spec = await put(store, noise(1000, 9))
  await until(() => isSynced(cacheDir, spec), 'the disk has it')
  writeFileSync(join(cacheDir, 'objects/v1/journal'), journalOf(cacheDir).replace(/^mark .*$/m, 'mark another'))
  bootAgain(cacheDir)
  t.equal((await openStore(cacheDir, NEVER)).stateOf(spec), 'unchecked')
})
