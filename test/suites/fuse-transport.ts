/**
 * What every `FuseTransport` must do, shown on a real mount of a real daemon. It knows nothing of an
 * adapter but its name: run it for another one by calling `testTransport` with that name.
 */
import { randomInt } from 'node:crypto'
import { constants, readdirSync } from 'node:fs'
import {
  chmod,
  chown,
  cp,
  type FileHandle,
  link,
  mkdir,
  open,
  readdir,
  readFile,
  rename,
  rm,
  rmdir,
  stat,
  statfs,
  symlink,
  truncate,
  unlink,
  utimes,
  writeFile,
} from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import t, { type Test } from 'tap'
import type { DaemonOptions } from '../../daemon/control/daemon.js'
import { HEADER_BYTES } from '../../daemon/index/index-layout.js'
import { systemCode } from '../../daemon/model/index.js'
import type { OpenMode, TransportName } from '../../daemon/mount/transport.js'
import {
  bodyOf,
  cannotMount,
  type Mounted,
  mountsBelow,
  python,
  run,
  type Small,
  small,
  startDaemon,
  type TestDaemon,
  testFolder,
  until,
} from '../support/daemon.js'
import { startHeldServer } from '../support/held-server.js'
import { noise } from '../support/objects.js'
import { type FileContent, type WrittenPackage, type WrittenRow, writeRegistry } from '../support/registry.js'
import { skipTest } from '../support/skips.js'

const MIB = 2 ** 20
const LARGE_FOLDER_FILES = 5000

const NAMES = [
  'plain',
  '.hidden',
  'with spaces  and two',
  `quotes ' " and \` $HOME`,
  'new\nline',
  'back\\slash',
  '100% #?&+;',
  // The same letter, composed and decomposed: two names.
  '\u00e9',
  'e\u0301',
  '\u{1f9f5} bobbin',
  '\u4e2d\u6587',
  'a'.repeat(255),
  '\u{1f9f5}'.repeat(63),
]

const FACTS = [
  ...['hash', 'hash_type', 'physical_key', 'cached', 'verified', 'meta'],
  ...['top_hash', 'package', 'registry', 'message'],
]

const META = { label: 'cat', boxes: [[1, 2, 3, 4]], note: '\u00e9 \u{1f9f5}', long: 'x'.repeat(3000) }

const FILES: Readonly<Record<string, FileContent | Uint8Array | string>> = {
  'hello.txt': { bytes: 'hello, world\n', meta: META },
  'hashed-plainly.bin': { bytes: noise(300_001, 7), hashType: 'SHA256' },
  'too-much-meta': { bytes: 'm', meta: { text: 'y'.repeat(70_000) } },
  empty: '',
  'sizes/1': 'x',
  'sizes/4095': noise(4095, 2),
  'sizes/8MiB-1': noise(8 * MIB - 1, 3),
  'sizes/8MiB': noise(8 * MIB, 4),
  'sizes/8MiB+1': noise(8 * MIB + 1, 5),
  'random.bin': noise(3 * MIB + 12_345, 6),
  'cold.bin': noise(6 * MIB, 8),
  [`deep/${'d/'.repeat(60)}bottom`]: 'bottom\n',
  ...Object.fromEntries(NAMES.map((name, i) => [`names/${name}`, `${i}\n`])),
  ...Object.fromEntries(NAMES.map(name => [`folders/${name}/inside`, 'inside\n'])),
  ...Object.fromEntries(Array.from({ length: LARGE_FOLDER_FILES }, (_, i) => [`large/${i}`, 'same\n'])),
}

/** One package, mounted once, for all tests that only read. */
interface Shared {
  readonly daemon: TestDaemon
  readonly written: WrittenPackage
  readonly mounted: Mounted
  /** The same tree in an ordinary folder. */
  readonly source: string
  readonly keys: readonly string[]
}

export function testTransport(name: TransportName, openMode?: OpenMode): void {
  t.setTimeout(200_000)
  const skip = cannotMount()
  const options = { transport: name, openMode }
  const label = openMode === undefined ? name : `${name}, ${openMode}`
  const test = (title: string, body: (t: Test) => Promise<void>) => t.test(`${label}: ${title}`, { skip }, body)
  if (skip !== false) return void test('a mount', async () => {})

  t.test(`${label}: a mounted package`, { skip, timeout: 180_000 }, async t => {
    const folder = testFolder(t)
    const written = await writeRegistry(join(folder, 'registry'), 'test/all', FILES, {
      message: 'all of it',
      userMeta: { license: 'none', numbers: [1, 2, 3] },
      directoryMeta: { sizes: { about: 'sizes' } },
    })
    const daemon = await startDaemon(t, { folder, ...options })
    const mounted = await daemon.mount(written, 'mnt')
    const source = join(folder, 'registry', 'test', 'all')
    await testReading(t, { daemon, written, mounted, source, keys: Object.keys(FILES) }, options)
  })

  test('files with much metadata are copied with their attributes (S99)', async t => {
    const meta = (bytes: number) => ({ bytes: `${bytes}\n`, meta: { polygons: 'p'.repeat(bytes) } })
    const { daemon, written } = await small(
      t,
      { 'd/5000': meta(5000), 'd/70000': meta(70_000), 'd/1MB': meta(1e6) },
      options,
    )
    const { path } = await daemon.mount(written, 'mnt')
    const copies = {
      cp: 'cp -r --preserve=all,xattr "$0" "$1"',
      tar: 'mkdir "$1" && tar --xattrs --xattrs-include="*" -C "$0" -c . | tar --xattrs --xattrs-include="*" -C "$1" -x',
      copytree: 'python3 -c "import shutil, sys; shutil.copytree(sys.argv[1], sys.argv[2])" "$0" "$1"',
      rsync: 'rsync -aX "$0/" "$1"',
    }
    for (const [program, script] of Object.entries(copies)) {
      const copy = join(daemon.folder, program)
      t.match(await run('bash', ['-o', 'pipefail', '-c', script, path, copy]), { status: 0, stderr: '' }, program)
      t.match(await run('diff', ['-r', path, copy]), { status: 0, stderr: '' }, program)
      // A fact about the original would be wrong of the copy once somebody edits that.
      t.same(
        await python('import os, sys, json; print(json.dumps(os.listxattr(sys.argv[1])))', join(copy, 'd/1MB')),
        [],
      )
    }
  })

  test('a mount that lists attributes names what it answers, and nothing that no program can read (S170)', async t => {
    const { daemon, written } = await small(
      t,
      { 'd/f': { bytes: 'f', meta: META }, 'd/much': { bytes: 'much', meta: { long: 'x'.repeat(70_000) } } },
      options,
    )
    const { path, facts } = await daemon.mount(written, 'mnt', { listAttributes: true })
    t.equal(facts.listsAttributes, true)
    const listed = (key: string) =>
      python<string[]>(
        `
import os, sys, json
names = os.listxattr(sys.argv[1])
for name in names: os.getxattr(sys.argv[1], name)
print(json.dumps(sorted(name.removeprefix('user.quilt.') for name in names)))`,
        join(path, key),
      )
    const look = async () => {
      const facts = ['cached', 'hash', 'hash_type', 'physical_key', 'verified']
      t.same(await listed('d/f'), [...facts, 'meta'].sort())
      t.same(await listed('d/much'), facts, 'metadata of more than 64 KiB cannot be read, so it is not named')
      t.same(await listed('d'), [])
      t.match(await listed(''), ['package', 'registry', 'top_hash'].sort())
      // 300 bytes of values, which any filesystem takes.
      const copied = await run('cp', ['--preserve=xattr', join(path, 'd/f'), join(daemon.folder, 'copy')])
      t.match(copied, { status: 0, stderr: '' })
    }
    await look()
    t.match((await daemon.client.status()).mounts, [{ mountpoint: path, listsAttributes: true }])
    const other = await daemon.mount(written, 'other')
    t.equal(other.facts.listsAttributes, false)
    await t.rejects(daemon.client.mount({ ...bodyOf(written, path) }), { code: 'ALREADY_MOUNTED' })
    if (options.transport !== 'native') return
    daemon.process.kill('SIGUSR2')
    await until('it has replaced itself', () => daemon.log().includes('was replaced in place'))
    await look()
    process.kill((await daemon.client.status()).daemon.pid, 'SIGKILL')
    await until('another daemon goes on', async () => {
      const status = await daemon.client.status().catch(() => undefined)
      return (status?.link?.daemonsStarted ?? 0) > 1
    })
    t.match(
      (await daemon.client.status()).mounts.find(({ mountpoint }) => mountpoint === path),
      { listsAttributes: true },
    )
  })

  test('owner, group and mode are what the mount was given (S12)', async t => {
    const { daemon, written } = await small(t, { 'd/f': 'x' }, options)
    const { path } = await daemon.mount(written, 'mnt', { uid: 1234, gid: 2345, umask: 0o027 })
    for (const [key, mode] of [
      ['', 0o040550],
      ['d', 0o040550],
      ['d/f', 0o100440],
    ] as const) {
      const stats = await stat(join(path, key))
      t.match(stats, { uid: 1234, gid: 2345, mode }, `of ${key || 'the root'}`)
    }
    t.equal(await readFile(join(path, 'd/f'), 'utf8'), 'x', 'root reads all the same')
  })

  test('another user reads when others may enter, and not when they may not', async t => {
    if (process.getuid?.() !== 0) return skipTest(t, 'needs root, to become another user')
    const { daemon, written } = await small(t, { f: 'x' }, options)
    await chmod(daemon.folder, 0o755)
    const read = (path: string) =>
      run('setpriv', ['--reuid=65534', '--regid=65534', '--clear-groups', 'cat', join(path, 'f')])
    const open = await daemon.mount(written, 'open', { allowOther: true })
    t.equal((await read(open.path)).stdout.toString(), 'x')
    const closed = await daemon.mount(written, 'closed', { allowOther: false })
    t.match(await read(closed.path), { status: 1, stderr: /Permission denied/ })
    t.equal(await readFile(join(closed.path, 'f'), 'utf8'), 'x')
  })

  test('two mounts of one daemon share objects (S8)', async t => {
    const { daemon, written, registry } = await small(t, { 'a.bin': noise(MIB), 'b.bin': 'b' }, options)
    const other = await writeRegistry(registry, 'test/other', { 'renamed.bin': noise(MIB), c: 'c' })
    const one = await daemon.mount(written, 'one')
    const two = await daemon.mount(other, 'two')
    t.same(await readFile(join(one.path, 'a.bin')), noise(MIB))
    t.same(await readFile(join(two.path, 'renamed.bin')), noise(MIB))
    const { fetch, mounts } = await daemon.client.status()
    t.match(fetch, { objects: 1, hits: 1 })
    t.same(mounts.map(({ mountpoint }) => mountpoint).sort(), [one.path, two.path].sort())
    t.equal((await stat(join(two.path, 'renamed.bin'))).ino > 0, true)
  })

  test('inode numbers and times are the same in every mount (S3)', async t => {
    const files = { 'a/b/c': 'c', 'a/b/d': 'd', z: 'z' }
    const first = await small(t, files, options)
    const second = await small(t, files, options)
    const look = async ({ daemon, written }: Small) => {
      const { path } = await daemon.mount(written, 'mnt')
      return Promise.all(
        ['', 'a', 'a/b', 'a/b/c', 'a/b/d', 'z'].map(async key => {
          const { ino, mode, mtimeMs, ctimeMs, atimeMs, size } = await stat(join(path, key))
          return { ino, mode, mtimeMs, ctimeMs, atimeMs, size }
        }),
      )
    }
    t.equal(first.written.topHash, second.written.topHash)
    t.same(await look(first), await look(second))
  })

  test('an object with wrong bytes is EIO for that file alone, and is read once it is right (S6)', async t => {
    const { daemon, written } = await small(
      t,
      { good: 'good', bad: 'right bytes', long: 'long', short: 'short' },
      options,
    )
    const { path } = await daemon.mount(written, 'mnt')
    await writeFile(written.paths.get('bad')!, 'wrong bytes')
    await writeFile(written.paths.get('long')!, 'longer')
    await writeFile(written.paths.get('short')!, 'sh')
    for (const key of ['bad', 'long', 'short']) await t.rejects(readFile(join(path, key)), { code: 'EIO' }, key)
    t.equal(await readFile(join(path, 'good'), 'utf8'), 'good')
    t.match(daemon.log(), hashOfEntry(written, 'bad'), 'the log has the hash that was expected')
    t.match((await daemon.client.status()).cache, { objects: 1 }, 'nothing wrong was kept')
    await writeFile(written.paths.get('bad')!, 'right bytes')
    t.equal(await readFile(join(path, 'bad'), 'utf8'), 'right bytes')
  })

  test('an object that is gone is an error, and is read once it is back (S10)', async t => {
    const { daemon, written } = await small(t, { here: 'here', gone: 'gone' }, options)
    const { path } = await daemon.mount(written, 'mnt')
    await rm(written.paths.get('gone')!)
    await t.rejects(readFile(join(path, 'gone')), { code: 'EIO' })
    t.equal((await stat(join(path, 'gone'))).size, 4, 'its attributes are known all the same')
    await writeFile(written.paths.get('gone')!, 'gone')
    t.equal(await readFile(join(path, 'gone'), 'utf8'), 'gone')
  })

  const fullStore = async (t: Test) => {
    const files = { a: noise(3 * MIB, 1), b: noise(3 * MIB, 2) }
    const { daemon, written } = await small(t, files, { ...options, cacheBytesMax: 5 * MIB })
    const { path } = await daemon.mount(written, 'mnt')
    const a = await open(join(path, 'a'))
    await t.rejects(readFile(join(path, 'b')), { code: 'ENOSPC' })
    t.same(await readAll(a), files.a, 'what is open stays readable')
    await a.close()
    // The kernel tells of the close when it likes.
    await until('b has room', () =>
      readFile(join(path, 'b')).then(
        bytes => bytes.equals(files.b),
        error => systemCode(error) !== 'ENOSPC',
      ),
    )
    t.same(await readFile(join(path, 'b')), files.b)
    const { cache } = await daemon.client.status()
    t.ok(cache.bytes <= 5 * MIB)
  }
  // Without opens, nobody knows what is open.
  if (openMode !== 'none') test('a full store is ENOSPC, and reads again when what was open is closed (S16)', fullStore)

  test('df has free what the cache could take, also when that is full (S102)', async t => {
    const files = { a: noise(3 * MIB, 1), b: noise(3 * MIB, 2) }
    const { daemon, written } = await small(t, files, { ...options, cacheBytesMax: 5 * MIB })
    const { path } = await daemon.mount(written, 'mnt')
    for (const key of ['a', 'b']) {
      const { stdout } = await run('df', ['--block-size=1', '--output=used,avail,pcent', path])
      t.match(
        stdout.toString().split('\n')[1]?.trim().split(/\s+/),
        [`${6 * MIB}`, `${5 * MIB}`, '55%'],
        `before ${key}`,
      )
      await readFile(join(path, key))
    }
    t.ok((await daemon.client.status()).cache.bytes > 2 * MIB, 'it holds one of them, which gives way to others')
  })

  test('a byte that was flipped in the cache is never read (S7)', async t => {
    const bytes = noise(MIB, 9)
    const { daemon, written } = await small(t, { f: bytes }, options)
    const first = await daemon.mount(written, 'first')
    t.same(await readFile(join(first.path, 'f')), bytes)
    await daemon.client.unmount(first.path, false)
    await flipCachedByte(daemon, 4711)
    // Another mount has nothing of it in the kernel's page cache.
    const second = await daemon.mount(written, 'second')
    t.same(await readFile(join(second.path, 'f')), bytes)
    t.match((await daemon.client.status()).fetch, { objects: 2 }, 'it was fetched again')
    await daemon.client.unmount(second.path, false)
    await flipCachedByte(daemon, 0)
    await rm(written.paths.get('f')!)
    const third = await daemon.mount(written, 'third')
    await t.rejects(readFile(join(third.path, 'f')), { code: 'EIO' }, 'and when it cannot be, it is an error')
  })

  test('readers that wait for a fetch hold up nobody else', async t => {
    const server = await startHeldServer()
    t.teardown(() => server.stop())
    const cold = Object.fromEntries(
      Array.from({ length: 48 }, (_, i) => {
        const bytes = noise(50_000, 100 + i)
        return [`cold/${i}`, { bytes, physicalKey: server.add(`cold ${i}`, bytes) }]
      }),
    )
    const { daemon, written } = await small(
      t,
      { warm: noise(200_000), 'warm-too': 'w', ...cold },
      { ...options, env: server.env, ioTimeoutMs: 60_000 },
    )
    const { path } = await daemon.mount(written, 'mnt')
    await readFile(join(path, 'warm'))
    server.hold()
    // In processes of their own: this one's threads are few.
    const readers = Object.keys(cold).map(key => run('cat', [join(path, key)]))
    await until('the fetches wait', () => server.waiting >= 10)
    const startedAt = Date.now()
    t.same(await readFile(join(path, 'warm')), noise(200_000))
    t.equal((await readdir(join(path, 'cold'))).length, 48)
    t.equal((await stat(join(path, 'cold', '7'))).size, 50_000)
    const status = await daemon.client.status()
    t.ok(status.fetch.inFlight + status.fetch.queued >= 40, 'nearly all of them are waiting')
    t.ok(Date.now() - startedAt < 3000, `${Date.now() - startedAt} ms`)
    server.release()
    const ran = await Promise.all(readers)
    for (const [i, { status, stdout }] of ran.entries()) {
      if (status !== 0 || !stdout.equals(noise(50_000, 100 + i))) t.fail(`cold/${i} was read wrongly`)
    }
    t.equal((await daemon.client.status()).fetch.errors, 0)
  })

  test('a source that says nothing is EIO within the time-out (S10)', async t => {
    const server = await startHeldServer()
    t.teardown(() => server.stop())
    const bytes = noise(1000)
    const { daemon, written } = await small(
      t,
      { warm: 'w', dead: { bytes, physicalKey: server.add('dead', bytes) } },
      { ...options, env: server.env, ioTimeoutMs: 1000 },
    )
    const { path } = await daemon.mount(written, 'mnt')
    server.hold()
    const startedAt = Date.now()
    await t.rejects(readFile(join(path, 'dead')), { code: 'EIO' })
    t.ok(Date.now() - startedAt < 20_000, `after ${Date.now() - startedAt} ms`)
    t.equal(await readFile(join(path, 'warm'), 'utf8'), 'w')
    server.release()
    t.same(await readFile(join(path, 'dead')), bytes, 'and it works again')
  })

  test('a busy mount is not unmounted, unless it is forced: then open files last (S14)', async t => {
    const bytes = noise(20 * MIB)
    const { daemon, written } = await small(t, { f: bytes, g: 'g' }, options)
    const { path } = await daemon.mount(written, 'mnt')
    const file = await open(join(path, 'f'))
    await t.rejects(daemon.client.unmount(path, false), { code: 'ALREADY_MOUNTED', message: /in use/ })
    t.equal(await readFile(join(path, 'g'), 'utf8'), 'g', 'it still is a mount')
    await daemon.client.unmount(path, true)
    t.same(mountsBelow(daemon.folder), [])
    t.same(await readdir(path), [], 'the folder below is there again')
    t.ok((await readAll(file)).equals(bytes), 'most of which the kernel has to ask for now')
    await file.close()
    await until('nothing is pinned', async () => (await daemon.client.status()).cache.pinnedBytes === 0)
    await t.rejects(daemon.client.unmount(path, false), { code: 'NOT_MOUNTED' })
    const again = await daemon.mount(written, 'mnt')
    t.equal((await stat(join(again.path, 'f'))).size, bytes.length)
  })

  test('a mount that somebody else unmounts is noticed, and the daemon goes on (S14)', async t => {
    const { daemon, written } = await small(t, { f: 'f' }, options)
    const { path } = await daemon.mount(written, 'mnt')
    const other = await daemon.mount(written, 'other')
    const command = process.getuid?.() === 0 ? ['umount'] : ['fusermount3', '-u']
    t.equal((await run(command[0]!, [...command.slice(1), path])).status, 0)
    await until('it is noticed', async () => (await daemon.client.status()).mounts.length === 1)
    t.equal(await readFile(join(other.path, 'f'), 'utf8'), 'f')
    await daemon.mount(written, 'mnt')
    t.equal(await readFile(join(path, 'f'), 'utf8'), 'f')
  })

  test('SIGTERM unmounts everything, busy or not, and ends the daemon well', async t => {
    const { daemon, written } = await small(t, { f: noise(MIB) }, options)
    const idle = await daemon.mount(written, 'idle')
    const busy = await daemon.mount(written, 'busy')
    const file = await open(join(busy.path, 'f'))
    await file.read(Buffer.alloc(1), 0, 1, 0)
    daemon.process.kill('SIGTERM')
    t.equal(await daemon.ended, 0)
    t.same(mountsBelow(daemon.folder), [])
    t.same(readdirSync(idle.path), [])
    await file.close().catch(() => {})
    const next = await startDaemon(t, { folder: daemon.folder, ...options })
    await next.mount(written, 'idle')
    t.same(await readFile(join(idle.path, 'f')), noise(MIB))
    t.match((await next.client.status()).fetch, { objects: 0, hits: 1 }, 'and the cache is still good')
  })

  test('a mountpoint is refused when it is missing, not empty, no folder or mounted on', async t => {
    const { daemon, written } = await small(t, { f: 'f' }, options)
    const refuse = (name: string, code: string) =>
      t.rejects(daemon.client.mount(bodyOf(written, join(daemon.folder, name))), { code }, name.slice(0, 20))
    await refuse('missing', 'MOUNTPOINT_UNUSABLE')
    await writeFile(join(daemon.folder, 'file'), '')
    await refuse('file', 'MOUNTPOINT_UNUSABLE')
    await mkdir(join(daemon.folder, 'full', 'x'), { recursive: true })
    await refuse('full', 'MOUNTPOINT_UNUSABLE')
    const { path } = await daemon.mount(written, 'mnt')
    await refuse('mnt', 'ALREADY_MOUNTED')
    t.equal((await daemon.client.status()).mounts.length, 1)
    t.equal(await readFile(join(path, 'f'), 'utf8'), 'f')
    await symlink(path, join(daemon.folder, 'link'))
    await refuse('link', 'ALREADY_MOUNTED')
    await refuse('mnt/below', 'MOUNTPOINT_UNUSABLE')
    await refuse('long/'.repeat(300), 'MOUNTPOINT_UNUSABLE')
  })

  test('a mountpoint may have spaces, quotes, commas and letters of any kind', async t => {
    const { daemon, written } = await small(t, { f: 'f' }, options)
    for (const name of ['two words', `a,b\\c'"`, 'caf\u00e9 \u{1f9f5}', 'new\nline']) {
      const { path, facts } = await daemon.mount(written, name)
      t.equal(facts.mountpoint, path)
      t.equal(await readFile(join(path, 'f'), 'utf8'), 'f')
      await daemon.client.unmount(path, false)
      t.same(mountsBelow(daemon.folder), [])
    }
  })

  test('a mount that is covered by another one lives on below it', async t => {
    if (process.getuid?.() !== 0) return skipTest(t, 'needs root')
    const { daemon, written } = await small(t, { f: 'f' }, options)
    const { path } = await daemon.mount(written, 'mnt')
    const file = await open(join(path, 'f'))
    t.equal((await run('mount', ['-t', 'tmpfs', 'cover', path])).status, 0)
    // Longer than it takes to look at the mount table again.
    await sleep(1500)
    t.equal((await daemon.client.status()).mounts.length, 1)
    t.equal((await readAll(file)).toString(), 'f')
    await file.close()
    await t.rejects(daemon.client.unmount(path, false), { code: 'ALREADY_MOUNTED', message: /tmpfs/ })
    t.equal((await run('umount', [path])).status, 0)
    t.equal(await readFile(join(path, 'f'), 'utf8'), 'f')
  })

  test('a package index that was damaged is made again, and nobody notices', async t => {
    const { daemon, written } = await small(t, { 'd/f': 'f' }, options)
    const { path } = await daemon.mount(written, 'mnt')
    t.equal(await readFile(join(path, 'd/f'), 'utf8'), 'f')
    await daemon.client.unmount(path, false)
    const index = await onlyFile(join(daemon.cacheDir, 'packages'), /\.index$/)
    const bytes = await readFile(index)
    // Past the header, which is looked at when the index is opened.
    bytes.fill(0xff, HEADER_BYTES, HEADER_BYTES + 50)
    await writeFile(index, bytes)
    await daemon.mount(written, 'mnt')
    t.same(await readdir(path), ['d'])
    t.equal(await readFile(join(path, 'd/f'), 'utf8'), 'f')
    t.match(daemon.log(), /the package index is damaged/)
  })

  test('mounting and unmounting many times leaves nothing', async t => {
    const { daemon, written } = await small(t, { f: 'f' }, options)
    const descriptors = () => readdirSync(`/proc/${daemon.process.pid}/fd`).length
    let before = 0
    for (let i = 0; i < 30; i++) {
      const { path } = await daemon.mount(written, 'mnt')
      t.equal(await readFile(join(path, 'f'), 'utf8'), 'f')
      await daemon.client.unmount(path, false)
      if (i === 9) before = descriptors()
    }
    await until(`there are no more descriptors than ${before}`, () => descriptors() <= before + 1)
    t.same(mountsBelow(daemon.folder), [])
  })
}

async function testReading(
  t: Test,
  shared: Shared,
  options: Pick<DaemonOptions, 'transport' | 'openMode'>,
): Promise<void> {
  const { daemon, written, mounted, source, keys } = shared
  const root = mounted.path

  await t.test('it says what it is', async t => {
    t.match(mounted.facts, {
      mountpoint: root,
      registry: written.registry,
      package: 'test/all',
      topHash: written.topHash,
      transport: options.transport,
      ...(options.openMode !== undefined && { openMode: options.openMode }),
      entries: keys.length,
      bytes: keys.reduce((sum, key) => sum + bytesOf(key).length, 0),
    })
    const [mount] = mountsBelow(daemon.folder)
    t.equal(mount?.type, 'fuse.bobbin')
  })

  await t.test('names are exactly those of the package, byte for byte (S4)', async t => {
    const expected = NAMES.map(name => Buffer.from(name)).sort(Buffer.compare)
    for (const folder of ['names', 'folders']) {
      const found = await readdir(join(root, folder), { encoding: 'buffer' })
      t.same(found.sort(Buffer.compare), expected, folder)
    }
    t.same((await readdir(root)).sort(), topLevel(keys).sort())
    for (const [i, name] of NAMES.entries()) {
      t.equal(await readFile(join(root, 'names', name), 'utf8'), `${i}\n`, JSON.stringify(name))
      t.equal(await readFile(join(root, 'folders', name, 'inside'), 'utf8'), 'inside\n')
    }
  })

  await t.test('attributes are those of the package and its revision (S3, S12)', async t => {
    for (const key of ['hello.txt', 'empty', 'sizes/8MiB+1', 'names/.hidden']) {
      const stats = await stat(join(root, key))
      const size = bytesOf(key).length
      t.match(
        stats,
        {
          size,
          mode: 0o100444,
          nlink: 1,
          blocks: Math.ceil(size / 512),
          uid: process.getuid?.(),
          gid: process.getgid?.(),
        },
        key,
      )
      t.ok(stats.blksize >= 128 * 1024, 'reads are worth their while')
      for (const time of [stats.mtimeMs, stats.atimeMs, stats.ctimeMs]) t.equal(time, written.timestampMs)
    }
    for (const key of ['', 'sizes', 'deep/d']) {
      const stats = await stat(join(root, key))
      t.match(stats, { mode: 0o040555, mtimeMs: written.timestampMs }, key || 'the root')
    }
  })

  await t.test('inode numbers are the places in breadth-first order (S3)', async t => {
    const expected = inodesOf(keys)
    t.equal((await stat(root)).ino, 1)
    const found = await python<[string, number, number][]>(
      `
import os, sys, json
rows = []
for folder, _, _ in os.walk(sys.argv[1]):
    for entry in os.scandir(folder):
        rows.append([os.path.relpath(entry.path, sys.argv[1]), entry.inode(), entry.stat().st_ino])
print(json.dumps(rows))`,
      root,
    )
    t.equal(found.length, expected.size)
    const wrong = found.filter(([path, listed, own]) => listed !== expected.get(path) || own !== expected.get(path))
    t.same(wrong.slice(0, 5), [])
  })

  await t.test('a folder of 5,000 lists all, each with its type', async t => {
    const found = await readdir(join(root, 'large'), { withFileTypes: true })
    t.equal(found.length, LARGE_FOLDER_FILES)
    t.equal(new Set(found.map(({ name }) => name)).size, LARGE_FOLDER_FILES)
    t.ok(found.every(entry => entry.isFile()))
  })

  await t.test('a file is exactly as long as its entry, at every edge of a chunk (S9)', async t => {
    for (const key of [
      'empty',
      'sizes/1',
      'sizes/4095',
      'sizes/8MiB-1',
      'sizes/8MiB',
      'sizes/8MiB+1',
      'hashed-plainly.bin',
    ]) {
      t.ok((await readFile(join(root, key))).equals(bytesOf(key)), key)
    }
  })

  await t.test('concurrent readers of a cold object share one fetch (S5, S8)', async t => {
    const before = (await daemon.client.status()).fetch.objects
    const readers = await Promise.all(Array.from({ length: 8 }, () => run('cat', [join(root, 'cold.bin')])))
    for (const { stdout } of readers) t.ok(stdout.equals(bytesOf('cold.bin')))
    t.equal((await daemon.client.status()).fetch.objects - before, 1)
  })

  await t.test('reads at any offset give the bytes there, short only at the end (S9)', async t => {
    const bytes = bytesOf('random.bin')
    const file = await open(join(root, 'random.bin'))
    try {
      const edges = [0, 1, 4096, 131_072, bytes.length - 1, bytes.length, bytes.length + 1, bytes.length + 10 * MIB]
      const tries = [...edges, ...Array.from({ length: 300 }, () => randomInt(bytes.length + 1000))]
      for (const position of tries) {
        const length = randomInt(1, 400_000)
        const { bytesRead, buffer } = await file.read(Buffer.alloc(length, 0xaa), 0, length, position)
        const expected = bytes.subarray(position, position + length)
        if (bytesRead !== expected.length || !buffer.subarray(0, bytesRead).equals(expected)) {
          t.fail(`${length} bytes at ${position}: got ${bytesRead}`)
        }
      }
    } finally {
      await file.close()
    }
  })

  await t.test('mmap, sendfile, copy_file_range and seek work as on any disk', async t => {
    const found = await python<Record<string, boolean>>(
      `
import os, sys, json, mmap, tempfile, hashlib
path, reference = sys.argv[1:]
expected = open(reference, 'rb').read()
found = {}
with open(path, 'rb') as f:
    m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)
    found['mmap'] = m[:] == expected and m[1000003:1000103] == expected[1000003:1000103]
    m.close()
    m = mmap.mmap(f.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
    found['private mmap'] = m[-10:] == expected[-10:]
    m.close()
def copied(copy):
    with tempfile.TemporaryFile() as out, open(path, 'rb') as f:
        done = 0
        while done < len(expected):
            n = copy(f, out, done)
            if n == 0: break
            done += n
        out.seek(0)
        return out.read() == expected
found['sendfile'] = copied(lambda f, out, done: os.sendfile(out.fileno(), f.fileno(), done, 1 << 20))
def ranges(f, out, done):
    try: return os.copy_file_range(f.fileno(), out.fileno(), 1 << 20, done, done)
    except OSError: return os.pwrite(out.fileno(), os.pread(f.fileno(), 1 << 20, done), done)
found['copy_file_range'] = copied(ranges)
with open(path, 'rb') as f:
    found['seek'] = f.seek(0, os.SEEK_END) == len(expected) and f.seek(5) == 5 and f.read(5) == expected[5:10]
print(json.dumps(found))`,
      join(root, 'random.bin'),
      join(source, 'random.bin'),
    )
    t.same(found, { mmap: true, 'private mmap': true, sendfile: true, copy_file_range: true, seek: true })
  })

  await t.test('find, ls, du, md5sum, cp and diff see the folder it was made from', async t => {
    const listings = [
      ['find', ['.', '-mindepth', '1', '(', '-type', 'd', '-printf', '%P/\\0', '-o', '-printf', '%P %s\\0', ')']],
      ['sh', ['-c', 'ls -RU1 . | LC_ALL=C sort']],
      ['sh', ['-c', 'find . -type f -print0 | LC_ALL=C sort -z | du --apparent-size -b -c --files0-from=- | tail -1']],
      ['sh', ['-c', 'find . -type f -print0 | LC_ALL=C sort -z | xargs -0 md5sum']],
    ] as const
    for (const [command, args] of listings) {
      const [here, there] = await Promise.all([root, source].map(cwd => run(command, args, { cwd })))
      const lines = ({ stdout }: { stdout: Buffer }) => stdout.toString('latin1').split('\0').sort()
      t.equal(here!.status, 0, here!.stderr.slice(0, 300))
      t.same(lines(here!), lines(there!), `${command} ${args.join(' ')}`)
    }
    const copy = join(daemon.folder, 'copy')
    await cp(join(root, 'folders'), copy, { recursive: true })
    t.match(await run('diff', ['-r', join(source, 'folders'), copy]), { status: 0, stderr: '' })
    t.match(await run('diff', ['-r', root, source]), { status: 0, stderr: '' })
  })

  await t.test('facts are extended attributes, by name, and none is listed (S13) (S99)', async t => {
    const attributes = (key: string) =>
      python<Record<string, string>>(
        `
import os, sys, json
path = sys.argv[1]
def value(name):
    try: return os.getxattr(path, name).decode()
    except OSError as error: return None if error.errno == 61 else 'errno ' + str(error.errno)
assert os.listxattr(path) == []
names = ['user.quilt.' + name for name in '${FACTS.join(' ')}'.split()]
print(json.dumps({name: value(name) for name in names if value(name) is not None}))`,
        join(root, key),
      )
    const prefixed = (values: object) =>
      Object.fromEntries(Object.entries(values).map(([name, value]) => [`user.quilt.${name}`, value]))
    t.same(
      await attributes('hello.txt'),
      prefixed({
        hash: entryOf(written, 'hello.txt').hash.value,
        hash_type: 'sha2-256-chunked',
        physical_key: entryOf(written, 'hello.txt').physical_keys[0],
        cached: 'true',
        verified: 'true',
        meta: JSON.stringify(META),
      }),
    )
    t.match(
      await attributes('hashed-plainly.bin'),
      prefixed({ hash: entryOf(written, 'hashed-plainly.bin').hash.value, hash_type: 'SHA256' }),
    )
    t.same(
      await attributes(''),
      prefixed({
        top_hash: written.topHash,
        package: 'test/all',
        registry: written.registry,
        meta: JSON.stringify({ license: 'none', numbers: [1, 2, 3] }),
        message: 'all of it',
      }),
    )
    t.same(await attributes('sizes'), prefixed({ meta: '{"about":"sizes"}' }))
    t.same(await attributes('names'), {})
    t.match(await attributes('too-much-meta'), prefixed({ meta: 'errno 7' }), 'E2BIG')
  })

  await t.test('attributes answer a small buffer with ERANGE, and a missing name with ENODATA', async t => {
    const found = await python<unknown>(
      `
import ctypes, os, sys, json
libc = ctypes.CDLL(None, use_errno=True)
def call(function, *args):
    buffer = ctypes.create_string_buffer(args[-1] or 1)
    n = getattr(libc, function)(*args[:-1], buffer, args[-1])
    return n if n >= 0 else -ctypes.get_errno()
path = sys.argv[1].encode()
full = call('getxattr', path, b'user.quilt.hash', 0)
names = call('listxattr', path, 0)
print(json.dumps([full, call('getxattr', path, b'user.quilt.hash', full), call('getxattr', path, b'user.quilt.hash', full - 1),
  names, call('listxattr', path, 5),
  call('getxattr', path, b'user.none', 100), call('getxattr', path, b'security.capability', 100), call('getxattr', path, b'user.quilt.nothing', 0)]))`,
      join(root, 'hello.txt'),
    )
    t.same(found, [44, 44, -34, 0, 0, -61, -61, -61])
  })

  await t.test('cached and verified say whether the bytes are here (S13)', async t => {
    const folder = await small(t, { f: 'f' }, options)
    const { path } = await folder.daemon.mount(folder.written, 'mnt')
    const look = () =>
      python<string[]>(
        `
import os, sys, json
print(json.dumps([os.getxattr(sys.argv[1], 'user.quilt.' + name).decode() for name in ('cached', 'verified')]))`,
        join(path, 'f'),
      )
    t.same(await look(), ['false', 'false'])
    await readFile(join(path, 'f'))
    t.same(await look(), ['true', 'true'])
  })

  await t.test('whatever would write is EROFS (S11)', async t => {
    await refuseWrites(t, root)
  })

  await t.test('whatever would write is EROFS also after root has remounted it for writing (S11)', async t => {
    if (process.getuid?.() !== 0) return skipTest(t, 'needs root')
    const { status } = await run('mount', ['-o', 'remount,rw', root])
    if (status !== 0) return void t.pass('the kernel refuses that')
    try {
      await refuseWrites(t, root)
    } finally {
      await run('mount', ['-o', 'remount,ro', root])
    }
  })

  await t.test('names that are not there are ENOENT, and files are no folders', async t => {
    const code = async (work: Promise<unknown>) =>
      work.then(
        () => 'nothing',
        error => systemCode(error),
      )
    t.equal(await code(stat(join(root, 'no such'))), 'ENOENT')
    t.equal(await code(stat(join(root, 'no', 'such'))), 'ENOENT')
    t.equal(await code(stat(join(root, 'HELLO.TXT'))), 'ENOENT', 'case is not folded')
    t.equal(await code(stat(Buffer.concat([Buffer.from(`${root}/`), Buffer.from([0xff, 0xfe])]))), 'ENOENT')
    t.equal(await code(stat(join(root, 'hello.txt', 'x'))), 'ENOTDIR')
    t.equal(await code(readdir(join(root, 'hello.txt'))), 'ENOTDIR')
    t.equal(await code(readFile(join(root, 'sizes'))), 'EISDIR')
    t.ok(['ENOENT', 'ENAMETOOLONG'].includes((await code(stat(join(root, 'a'.repeat(256))))) ?? ''))
  })

  await t.test('statfs counts entries and bytes, and what the cache could take is free', async t => {
    const { bsize, blocks, bfree, bavail, files, ffree } = await statfs(root)
    const bytes = keys.reduce((sum, key) => sum + bytesOf(key).length, 0)
    t.equal(blocks - bfree, Math.ceil(bytes / bsize))
    t.match({ bavail, ffree }, { bavail: bfree, ffree: 0 })
    t.ok(bfree > 0)
    t.equal(files, inodesOf(keys).size + 1)
    const [nameMax, isReadOnly] = await python<[number, boolean]>(
      'import os, sys, json; s = os.statvfs(sys.argv[1]); print(json.dumps([s.f_namemax, bool(s.f_flag & os.ST_RDONLY)]))',
      root,
    )
    t.equal(nameMax, 255)
    t.equal(isReadOnly, true)
  })

  await t.test('it is not in use when all is read', async t => {
    await until('nothing is pinned', async () => (await daemon.client.status()).cache.pinnedBytes === 0)
    await daemon.client.unmount(root, false)
    t.same(mountsBelow(daemon.folder), [])
  })
}

async function refuseWrites(t: Test, root: string): Promise<void> {
  const file = join(root, 'hello.txt')
  const fresh = join(root, 'fresh')
  const close = async (handle: Promise<FileHandle>) => (await handle).close()
  const attempts: Record<string, () => Promise<unknown>> = {
    'open for writing': () => close(open(file, constants.O_WRONLY)),
    'open for both': () => close(open(file, constants.O_RDWR)),
    'open to append': () => close(open(file, constants.O_WRONLY | constants.O_APPEND)),
    'open to truncate': () => close(open(file, constants.O_RDONLY | constants.O_TRUNC)),
    create: () => writeFile(fresh, ''),
    mkdir: () => mkdir(fresh),
    rmdir: () => rmdir(join(root, 'sizes')),
    unlink: () => unlink(file),
    rename: () => rename(file, fresh),
    chmod: () => chmod(file, 0o777),
    chown: () => chown(file, 1, 1),
    utimes: () => utimes(file, 1, 1),
    truncate: () => truncate(file, 0),
    link: () => link(file, fresh),
    symlink: () => symlink('hello.txt', fresh),
  }
  for (const [what, attempt] of Object.entries(attempts)) await t.rejects(attempt(), { code: 'EROFS' }, what)
  const found = await python<Record<string, string>>(
    `
import errno, os, stat, sys, json
file, fresh = sys.argv[1:]
def outcome(call):
    try: call()
    except OSError as error: return errno.errorcode[error.errno]
    return 'done'
print(json.dumps({
  'setxattr': outcome(lambda: os.setxattr(file, 'user.x', b'x')),
  'removexattr': outcome(lambda: os.removexattr(file, 'user.quilt.hash')),
  'mknod': outcome(lambda: os.mknod(fresh, stat.S_IFREG | 0o644)),
  'mkfifo': outcome(lambda: os.mkfifo(fresh))}))`,
    file,
    fresh,
  )
  t.same(found, { setxattr: 'EROFS', removexattr: 'EROFS', mknod: 'EROFS', mkfifo: 'EROFS' })
  t.equal(await readFile(file, 'utf8'), 'hello, world\n')
}

function bytesOf(key: string): Buffer {
  const file = FILES[key]!
  return Buffer.from((typeof file === 'object' && 'bytes' in file ? file.bytes : file) as Uint8Array)
}

function topLevel(keys: readonly string[]): string[] {
  return [...new Set(keys.map(key => key.split('/')[0]!))]
}

/** By path, without the root, which has 1: level by level, in each folder by the bytes of the names. */
function inodesOf(keys: readonly string[]): Map<string, number> {
  const children = new Map<string, Set<string>>()
  for (const key of keys) {
    const parts = key.split('/')
    for (let i = 0; i < parts.length; i++) {
      const folder = parts.slice(0, i).join('/')
      if (!children.has(folder)) children.set(folder, new Set())
      children.get(folder)!.add(parts[i]!)
    }
  }
  const inodes = new Map<string, number>()
  let level = ['']
  for (let next = 2; level.length > 0; ) {
    const below: string[] = []
    for (const folder of level) {
      const names = [...children.get(folder)!].sort((a, b) => Buffer.compare(Buffer.from(a), Buffer.from(b)))
      for (const name of names) {
        const path = folder === '' ? name : `${folder}/${name}`
        inodes.set(path, next++)
        if (children.has(path)) below.push(path)
      }
    }
    level = below
  }
  return inodes
}

function entryOf(written: WrittenPackage, key: string): WrittenRow {
  const row = written.rows.find(({ logical_key }) => logical_key === key)
  if (row === undefined) throw new Error(`no row ${key}`)
  return row
}

/** As the log spells it: hex. */
function hashOfEntry(written: WrittenPackage, key: string): RegExp {
  return new RegExp(Buffer.from(entryOf(written, key).hash.value, 'base64').toString('hex'))
}

async function readAll(file: FileHandle): Promise<Buffer> {
  const { size } = await file.stat()
  const buffer = Buffer.alloc(size)
  for (let done = 0; done < size; ) {
    const { bytesRead } = await file.read(buffer, done, size - done, done)
    if (bytesRead === 0) return buffer.subarray(0, done)
    done += bytesRead
  }
  return buffer
}

/** There is one object in the cache. */
async function flipCachedByte(daemon: TestDaemon, at: number): Promise<void> {
  const path = await onlyFile(join(daemon.cacheDir, 'objects', 'v1'), /^[0-9a-f]{64}/)
  await chmod(path, 0o600)
  const bytes = await readFile(path)
  bytes[at]! ^= 1
  await writeFile(path, bytes)
}

async function onlyFile(folder: string, pattern: RegExp): Promise<string> {
  const found = (await readdir(folder, { recursive: true, withFileTypes: true })).filter(
    entry => entry.isFile() && pattern.test(entry.name),
  )
  if (found.length !== 1) throw new Error(`${found.length} files below ${folder} are like ${pattern}`)
  return join(found[0]!.parentPath, found[0]!.name)
}
