import { execFileSync, spawn, spawnSync } from 'node:child_process'
import {
  existsSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  statSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { hostname } from 'node:os'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { Fetcher } from '../../../../daemon/fetch/fetcher.js'
import { type InstallOptions, installPackage } from '../../../../daemon/folder/install.js'
import { type Entry, HASH_TYPES, type LogicalKey } from '../../../../daemon/model/index.js'
import { openStore } from '../../../../daemon/store/index.js'
import { Workers } from '../../../../daemon/work/workers.js'
import { noise, rememberingLog, writeEntry } from '../../../support/objects.js'
import { smallDisk } from '../../../support/small-disk.js'

const MiB = 2 ** 20
const sourceConfig = { ioTimeoutMs: 30_000 }

interface Installing {
  readonly source: string
  readonly dest: string
  readonly cacheDir: string
}

function folders(t: Test): Installing {
  const folder = t.testdir({ source: {} })
  return { source: join(folder, 'source'), dest: join(folder, 'dest'), cacheDir: join(folder, 'cache') }
}

function install(entries: Iterable<Entry> | AsyncIterable<Entry>, dest: string, options: Partial<InstallOptions> = {}) {
  return installPackage(entries, dest, { sourceConfig, ...options })
}

/** All files, hidden ones too. */
function filesIn(dir: string): string[] {
  return readdirSync(dir, { recursive: true, withFileTypes: true })
    .filter(entry => !entry.isDirectory())
    .map(entry => join(entry.parentPath, entry.name).slice(dir.length + 1))
    .sort()
}

async function sampleEntries(source: string): Promise<Entry[]> {
  return [
    await writeEntry(source, 'a.txt', 'hello'),
    await writeEntry(source, 'empty', '', 'sha2-256-chunked'),
    await writeEntry(source, 'deep/er/b.bin', noise(9 * MiB), 'sha2-256-chunked'),
    await writeEntry(source, 'deep/c d "é" 😀.bin', noise(100_000), 'CRC64NVME'),
    await writeEntry(source, 'deep/new\nline', 'x'),
  ]
}

t.test('installPackage writes every entry, checked, and nothing else', async t => {
  const { source, dest } = folders(t)
  const entries = await sampleEntries(source)
  const bytes = entries.reduce((sum, entry) => sum + entry.size, 0)
  t.same(await install(entries, dest), { files: 5, bytes, fetched: 5, reused: 0 })
  t.same(filesIn(dest), filesIn(source))
  for (const { key } of entries) t.ok(readFileSync(join(dest, key)).equals(readFileSync(join(source, key))), key)
  t.equal(statSync(join(dest, 'a.txt')).mode & 0o777, 0o666 & ~process.umask())
})

t.test('installPackage goes on where it was: right files stay, others are replaced', async t => {
  const { source, dest } = folders(t)
  const entries = await sampleEntries(source)
  await install(entries, dest, { timestampMs: 1_600_000_000_000 })
  const kept = statSync(join(dest, 'deep/er/b.bin')).ino
  t.equal(statSync(join(dest, 'a.txt')).mtimeMs, 1_600_000_000_000)
  writeFileSync(join(dest, 'a.txt'), 'hellO')
  truncateSync(join(dest, 'deep/new\nline'), 0)
  rmSync(join(dest, 'empty'))
  t.match(await install(entries, dest), { files: 5, fetched: 3, reused: 2 })
  t.equal(statSync(join(dest, 'deep/er/b.bin')).ino, kept)
  for (const { key } of entries) t.ok(readFileSync(join(dest, key)).equals(readFileSync(join(source, key))), key)
})

t.test('installPackage takes from the cache what is there and right', async t => {
  const { source, dest, cacheDir } = folders(t)
  const entries = await sampleEntries(source)
  const workers = new Workers(sourceConfig)
  const store = await openStore(cacheDir, { bytesMax: 1e9, freeBytesMin: 0 })
  const fetcher = new Fetcher({ store, workers })
  const paths: string[] = []
  for (const entry of entries) {
    const object = await fetcher.open(entry)
    paths.push(object.path)
    await object.close()
  }
  await workers.close()
  for (const { key } of entries.slice(1)) rmSync(join(source, key))
  rmSync(paths[0]!)
  writeFileSync(paths[0]!, 'hellO')
  const log = rememberingLog()
  t.match(await install(entries, dest, { cacheDir, log }), { files: 5, fetched: 1, reused: 4 })
  t.equal(readFileSync(join(dest, 'a.txt'), 'utf8'), 'hello')
  t.ok(readFileSync(join(dest, 'deep/er/b.bin')).equals(noise(9 * MiB)))
  t.match(log.lines, [{ level: 'warn', fields: { key: 'a.txt' } }])
  t.equal(statSync(join(dest, 'deep/er/b.bin')).mode & 0o777, 0o666 & ~process.umask())
})

t.test('installPackage refuses wrong bytes, and keeps what is complete (S20)', async t => {
  const { source, dest } = folders(t)
  for (const type of HASH_TYPES) {
    const good = await writeEntry(source, 'good', 'good')
    const bad = await writeEntry(source, 'dir/bad', noise(9 * MiB), type)
    const bytes = noise(9 * MiB)
    bytes[9_000_000]! ^= 4
    writeFileSync(join(source, 'dir/bad'), bytes)
    async function* entries() {
      yield good
      while (!existsSync(join(dest, 'good'))) await new Promise(resolve => setTimeout(resolve, 5))
      yield bad
    }
    await t.rejects(install(entries(), dest), { code: 'OBJECT_CORRUPT', message: /^dir\/bad: / })
    t.same(filesIn(dest), ['good'])
    t.same(readdirSync(dest).sort(), ['dir', 'good'])
  }
})

t.test('installPackage leaves nothing half when it is interrupted', async t => {
  const { source, dest } = folders(t)
  const entry = await writeEntry(source, 'x', noise(1000))
  const controller = new AbortController()
  function* endless() {
    for (let i = 0; ; i++) yield { ...entry, key: `d${i % 7}/${i}` as LogicalKey }
  }
  const onProgress = ({ files }: { files: number }) => {
    if (files === 200) controller.abort()
  }
  await t.rejects(install(endless(), dest, { signal: controller.signal, onProgress }), { code: 'INTERRUPTED' })
  const files = filesIn(dest)
  t.ok(files.length >= 200 && files.length < 300, `${files.length} files`)
  for (const file of files) if (!readFileSync(join(dest, file)).equals(noise(1000))) t.fail(file)
  t.notOk(readdirSync(dest).some(name => name.startsWith('.bobbin')))
})

t.test('installPackage removes what a killed one of this machine has left, and nothing else (S119)', async t => {
  const { source, dest } = folders(t)
  const dead = spawnSync('true').pid
  const machine = hostname().replace(/[^A-Za-z0-9.]/g, '')
  const stale = join(dest, `.bobbin-${machine}-${dead}-0123456789ab`)
  const alive = join(dest, `.bobbin-${machine}-${process.ppid}-0123456789ab`)
  const elsewhere = join(dest, `.bobbin-${machine}x-${dead}-0123456789ab`)
  for (const path of [stale, alive, elsewhere]) mkdirSync(path, { recursive: true })
  writeFileSync(join(stale, '1'), 'half')
  await install([await writeEntry(source, 'x', 'x')], dest)
  t.same(readdirSync(dest).sort(), [alive, elsewhere].map(path => path.slice(dest.length + 1)).concat('x'))
})

t.test('installPackage goes on after a kill (S20)', async t => {
  const { source, dest } = folders(t)
  const entries = await Promise.all(
    Array.from({ length: 300 }, (_, i) => writeEntry(source, `f${i}`, noise(50_000, i))),
  )
  const module = new URL('../../../../daemon/folder/install.js', import.meta.url).href
  const script = `import { installPackage } from ${JSON.stringify(module)}
    import { readFileSync } from 'node:fs'
    const entries = JSON.parse(readFileSync(0, 'utf8'))
    await installPackage(entries, process.argv[1], { sourceConfig: { ioTimeoutMs: 1000 },
      onProgress: ({ files }) => files === 100 && process.kill(process.pid, 'SIGKILL') })`
  const child = spawn(process.execPath, ['--input-type=module', '-e', script, dest], {
    stdio: ['pipe', 'inherit', 'inherit'],
  })
  child.stdin.end(JSON.stringify(entries))
  const [, signal] = await new Promise<[number, string]>(resolve =>
    child.once('exit', (...args) => resolve(args as never)),
  )
  t.equal(signal, 'SIGKILL')
  const { files, fetched } = await install(entries, dest)
  t.equal(files, 300)
  t.ok(fetched <= 200, `${fetched} fetched again`)
  t.same(filesIn(dest), filesIn(source))
  for (const { key } of entries) if (!readFileSync(join(dest, key)).equals(readFileSync(join(source, key)))) t.fail(key)
})

t.test('installPackage writes nothing through symbolic links in the destination (S19)', async t => {
  const { source, dest } = folders(t)
  const outside = join(dest, '../outside')
  mkdirSync(outside)
  mkdirSync(dest)
  symlinkSync(outside, join(dest, 'dir'))
  writeFileSync(join(outside, 'target'), 'untouched')
  symlinkSync(join(outside, 'target'), join(dest, 'file'))
  const inLink = await writeEntry(source, 'dir/sub/x', 'x')
  await t.rejects(install([inLink], dest), { code: 'NOT_A_DIRECTORY', message: /dest\/dir is a symbolic link/ })
  const atLink = await writeEntry(source, 'file', 'overwritten')
  await t.rejects(install([atLink], dest), { code: 'LOCAL_IO', message: /dest\/file is there and is a symbolic link/ })
  t.same(readdirSync(outside), ['target'])
  t.equal(readFileSync(join(outside, 'target'), 'utf8'), 'untouched')
  t.equal(readlinkSync(join(dest, 'file')), join(outside, 'target'))
})

t.test('installPackage follows a link that is the destination itself', async t => {
  const { source, dest } = folders(t)
  mkdirSync(`${dest}-real`)
  symlinkSync(`${dest}-real`, dest)
  await install([await writeEntry(source, 'x', 'x')], dest)
  t.same(filesIn(`${dest}-real`), ['x'])
  t.ok(lstatSync(dest).isSymbolicLink())
})

t.test('installPackage says what is in the way', async t => {
  const { source, dest } = folders(t)
  mkdirSync(join(dest, 'folder'), { recursive: true })
  writeFileSync(join(dest, 'file'), 'mine')
  execFileSync('mkfifo', [join(dest, 'fifo')])
  const inFolder = await writeEntry(source, 'folder', 'x')
  await t.rejects(install([inFolder], dest), { code: 'IS_A_DIRECTORY', message: /dest\/folder: move it away/ })
  const underFile = await writeEntry(source, 'file/x', 'x')
  await t.rejects(install([underFile], dest), { code: 'NOT_A_DIRECTORY', message: /dest\/file is no folder/ })
  const atFifo = await writeEntry(source, 'fifo', 'x')
  await t.rejects(install([atFifo], dest), { code: 'LOCAL_IO', message: /no regular file/ })
  await t.rejects(install([atFifo], join(dest, 'file')), { code: 'NOT_A_DIRECTORY', message: /not a folder/ })
  t.equal(readFileSync(join(dest, 'file'), 'utf8'), 'mine')
  t.same(readdirSync(dest).sort(), ['fifo', 'file', 'folder'])
})

t.test('installPackage says that the disk is full, keeps what is complete, and goes on when there is room', async t => {
  const disk = smallDisk(t, 8)
  if (disk === undefined) return
  const { source } = folders(t)
  const entries = [
    await writeEntry(source, 'small', noise(10_000)),
    await writeEntry(source, 'large', noise(12 * MiB), 'sha2-256-chunked'),
  ]
  const dest = join(disk, 'dest')
  await install(entries.slice(0, 1), dest)
  await t.rejects(install(entries, dest), {
    code: 'STORE_FULL',
    message: /^large \(12\.0 MiB\): the disk of .*make room/,
  })
  t.same(filesIn(dest), ['small'])
  t.same(readdirSync(dest), ['small'])
  spawnSync('mount', ['-o', 'remount,size=32m', disk])
  t.match(await install(entries, dest), { files: 2, fetched: 1, reused: 1 })
  t.ok(readFileSync(join(dest, 'large')).equals(noise(12 * MiB)))
})

t.test('installPackage takes entries as there is place for them', async t => {
  const { source, dest } = folders(t)
  const entry = await writeEntry(source, 'x', 'x')
  let taken = 0
  let most = 0
  let files = 0
  function* many() {
    for (let i = 0; i < 2000; i++) {
      most = Math.max(most, ++taken - files)
      yield { ...entry, key: `${i}` as LogicalKey }
    }
  }
  const onProgress = (progress: { files: number }) => {
    files = progress.files
  }
  t.match(await install(many(), dest, { onProgress }), { files: 2000 })
  t.ok(most <= 40, `${most} entries at once`)
})
