/** bobbin-fuse outlives its daemon, and itself: what readers notice of that, which is nothing. */
import { type ChildProcess, spawn } from 'node:child_process'
import { readdirSync, readFileSync, readlinkSync } from 'node:fs'
import { open, readFile, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import t, { type Test } from 'tap'
import { wholeAccessLog } from '../support/access-log.js'
import { cannotMount, mountsBelow, run, small, type startDaemon, type TestDaemon, until } from '../support/daemon.js'
import { type HeldServer, startHeldServer } from '../support/held-server.js'
import { noise } from '../support/objects.js'
import type { FileContent } from '../support/registry.js'
import { skipTest } from '../support/skips.js'

t.setTimeout(600_000)

const MIB = 2 ** 20
const skip = cannotMount()
const test = (title: string, body: (t: Test) => Promise<void>) => t.test(title, { skip }, body)

/** Some files that are here, and some that come from a server which can be held. */
async function withServer(
  t: Test,
  cold: Readonly<Record<string, Uint8Array>>,
  options: Parameters<typeof startDaemon>[1] = {},
) {
  const server = await startHeldServer()
  t.teardown(() => server.stop())
  const files: Record<string, FileContent | Uint8Array> = { 'warm.bin': noise(3 * MIB, 1), 'other.bin': noise(MIB, 2) }
  for (const [key, bytes] of Object.entries(cold)) files[key] = { bytes, physicalKey: server.add(key, bytes) }
  const made = await small(t, files, { transport: 'native', env: server.env, ...options })
  const mounted = await made.daemon.mount(made.written, 'mnt')
  return { ...made, ...mounted, server }
}

async function daemonPid(daemon: TestDaemon): Promise<number> {
  return (await daemon.client.status()).daemon.pid
}

async function killDaemon(daemon: TestDaemon): Promise<number> {
  const pid = await daemonPid(daemon)
  process.kill(pid, 'SIGKILL')
  return pid
}

async function waitsFor(server: HeldServer): Promise<void> {
  await until('the server is asked', () => server.waiting > 0)
}

test('a killed daemon is started again: warm readers notice nothing, cold ones wait for the next (S22)', async t => {
  const { daemon, path, server } = await withServer(t, { 'cold.bin': noise(500_000, 3) })
  const warm = await open(join(path, 'warm.bin'))
  t.same((await warm.read(Buffer.alloc(10), 0, 10, 5)).buffer, noise(3 * MIB, 1).subarray(5, 15))
  server.hold()
  const cold = run('cat', [join(path, 'cold.bin')])
  await waitsFor(server)
  const before = await killDaemon(daemon)
  t.same((await warm.read(Buffer.alloc(10), 0, 10, 2 * MIB)).buffer, noise(3 * MIB, 1).subarray(2 * MIB, 2 * MIB + 10))
  t.same(await readFile(join(path, 'warm.bin')), noise(3 * MIB, 1), 'opened with no daemon alive')
  await waitsFor(server)
  server.release()
  t.same((await cold).stdout, noise(500_000, 3))
  const status = await daemon.client.status()
  t.not(status.daemon.pid, before)
  t.equal(status.daemon.supervisorPid, daemon.process.pid)
  t.match(status.mounts, [{ mountpoint: path, transport: 'native' }], 'the next daemon has the mount')
  await warm.close()
  await daemon.client.unmount(path, false)
  t.same(mountsBelow(daemon.folder), [])
})

test('readers that wait are asked for again and again, as often as the daemon dies', async t => {
  const cold = Object.fromEntries(Array.from({ length: 20 }, (_, i) => [`cold/${i}`, noise(100_000, 10 + i)]))
  const { daemon, path, server } = await withServer(t, cold, { ioTimeoutMs: 60_000 })
  server.hold()
  const readers = Object.keys(cold).map(key => run('cat', [join(path, key)]))
  for (let i = 0; i < 3; i++) {
    await until('the server is asked', () => server.waiting >= 15)
    await killDaemon(daemon)
    await until('it has gone', () => server.waiting === 0)
  }
  server.release()
  for (const [i, { stdout, status }] of (await Promise.all(readers)).entries()) {
    if (status !== 0 || !stdout.equals(noise(100_000, 10 + i))) t.fail(`cold/${i} was read wrongly`)
  }
})

test('it replaces itself in place: handles, waiting readers and the daemon stay (S23)', async t => {
  const { daemon, path, server } = await withServer(t, { 'cold.bin': noise(500_000, 3) }, { ioTimeoutMs: 60_000 })
  const warm = await open(join(path, 'warm.bin'))
  await warm.read(Buffer.alloc(10), 0, 10, 0)
  server.hold()
  const cold = run('cat', [join(path, 'cold.bin')])
  await waitsFor(server)
  const before = await daemonPid(daemon)
  for (let i = 1; i <= 3; i++) {
    daemon.process.kill('SIGUSR2')
    await until('it has replaced itself', () => daemon.log().split('was replaced in place').length === i + 1)
    t.same((await warm.read(Buffer.alloc(10), 0, 10, MIB)).buffer, noise(3 * MIB, 1).subarray(MIB, MIB + 10))
    t.same(await readFile(join(path, 'other.bin')), noise(MIB, 2))
    const again = await open(join(path, 'warm.bin'))
    t.equal((await again.read(Buffer.alloc(10), 0, 10, 0)).bytesRead, 10, 'a file that is open, opened once more')
    await again.close()
  }
  t.equal(await daemonPid(daemon), before, 'the same daemon')
  server.release()
  t.same((await cold).stdout, noise(500_000, 3), 'who waited got its bytes')
  await warm.close()
  await until('nothing is open', async () => (await daemon.client.status()).cache.pinnedBytes === 0)
  await daemon.client.unmount(path, false)
  t.equal(daemon.log().includes('cannot'), false)
})

test('a reader that waits can be killed, and a child that ends does not disturb it (S24)', async t => {
  const { path, server, daemon } = await withServer(t, { 'cold.bin': noise(500_000, 3) }, { ioTimeoutMs: 60_000 })
  server.hold()
  const killed = spawn('cat', [join(path, 'cold.bin')], { stdio: 'ignore' })
  const script = `
import os, signal, subprocess, sys, threading
signal.signal(signal.SIGCHLD, lambda *_: None)
threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGCHLD)).start()
# Not Python's own open, which tries again after EINTR.
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
fd = libc.open(sys.argv[1].encode(), 0)
print(fd >= 0, ctypes.get_errno())`
  const disturbed = run('python3', ['-c', script, join(path, 'cold.bin')])
  await waitsFor(server)
  await sleep(500)
  const startedAt = Date.now()
  killed.kill('SIGKILL')
  await new Promise(resolve => killed.once('close', resolve))
  t.ok(Date.now() - startedAt < 3000, `it ended after ${Date.now() - startedAt} ms`)
  const interrupted = spawn('cat', [join(path, 'cold.bin')], { stdio: 'ignore' })
  await sleep(300)
  interrupted.kill('SIGINT')
  await new Promise(resolve => interrupted.once('close', resolve))
  server.release()
  t.equal((await disturbed).stdout.toString().trim(), 'True 0')
  t.match((await daemon.client.status()).fetch, { objects: 1, inFlight: 0 })
})

test('a fetch that nobody waits for any more is given up', async t => {
  const { path, server, daemon } = await withServer(t, { 'cold.bin': noise(500_000, 3) }, { ioTimeoutMs: 60_000 })
  server.hold()
  const reader = spawn('cat', [join(path, 'cold.bin')], { stdio: 'ignore' })
  await waitsFor(server)
  reader.kill('SIGKILL')
  await until('it is given up', async () => (await daemon.client.status()).fetch.inFlight === 0)
  server.release()
  t.same(await readFile(join(path, 'cold.bin')), noise(500_000, 3))
})

test('a daemon that says nothing any more is killed, and its readers are served by the next (S10)', async t => {
  const { path, server, daemon } = await withServer(t, { 'cold.bin': noise(500_000, 3) }, { ioTimeoutMs: 6000 })
  const pid = await daemonPid(daemon)
  process.kill(pid, 'SIGSTOP')
  const startedAt = Date.now()
  const { stdout } = await run('cat', [join(path, 'cold.bin')])
  t.ok(stdout.equals(noise(500_000, 3)))
  t.ok(Date.now() - startedAt < 15_000, `${Date.now() - startedAt} ms`)
  t.match(daemon.log(), /it does not answer/)
  t.equal(server.requests.get('cold.bin'), 1)
})

test('a daemon that never comes back is EIO within the deadline, and hits go on (S10)', async t => {
  const files = { 'warm.bin': noise(MIB, 1), 'cold.bin': noise(MIB, 2) }
  const { daemon, written } = await small(t, files, { transport: 'native', ioTimeoutMs: 5000 })
  const { path } = await daemon.mount(written, 'mnt')
  await readFile(join(path, 'warm.bin'))
  // Whatever is started from now on ends at once.
  const loop = setInterval(() => {
    for (const child of children(daemon.process)) {
      try {
        process.kill(child, 'SIGKILL')
      } catch {
        // It was faster.
      }
    }
  }, 20)
  t.teardown(() => clearInterval(loop))
  await until('it was killed', () => daemon.log().includes('is started again'))
  const startedAt = Date.now()
  const { status, stderr } = await run('cat', [join(path, 'cold.bin')])
  t.equal(status, 1)
  t.match(stderr, /Input\/output error/)
  t.ok(Date.now() - startedAt < 20_000, `after ${Date.now() - startedAt} ms`)
  t.same(await readFile(join(path, 'warm.bin')), noise(MIB, 1))
  clearInterval(loop)
  t.same((await run('cat', [join(path, 'cold.bin')])).stdout, noise(MIB, 2), 'and it works again')
})

function children(parent: ChildProcess): number[] {
  return readFileSync(`/proc/${parent.pid}/task/${parent.pid}/children`, 'utf8').split(' ').filter(Boolean).map(Number)
}

test('a large file opens when it is here, and keeps its inode number (S108)', async t => {
  const bytes = noise(12 * MIB, 4)
  const { path, server } = await withServer(t, { 'large.bin': bytes }, { ioTimeoutMs: 60_000 })
  server.hold()
  const before = await stat(join(path, 'large.bin'))
  let isOpen = false
  const opening = open(join(path, 'large.bin')).then(file => {
    isOpen = true
    return file
  })
  await waitsFor(server)
  t.notOk(isOpen)
  server.release()
  const file = await opening
  t.same((await file.read(Buffer.alloc(100), 0, 100, 5 * MIB)).buffer, bytes.subarray(5 * MIB, 5 * MIB + 100))
  t.equal((await file.stat()).ino, before.ino)
  await file.close()
  t.ok((await readFile(join(path, 'large.bin'))).equals(bytes))
})

test('an object leaves the store only when nobody has it open, and its space comes free (S16)', async t => {
  const files = Object.fromEntries(Array.from({ length: 6 }, (_, i) => [`${i}`, noise(2 * MIB, i)]))
  const { daemon, written } = await small(t, files, { transport: 'native', cacheBytesMax: 5 * MIB })
  const { path } = await daemon.mount(written, 'mnt')
  const kept = await open(join(path, '0'))
  for (const key of Object.keys(files)) t.same(await readFile(join(path, key)), files[key])
  t.same((await kept.read(Buffer.alloc(10), 0, 10, MIB)).buffer, files['0']!.subarray(MIB, MIB + 10))
  const { cache } = await daemon.client.status()
  t.ok(cache.bytes <= 5 * MIB)
  t.equal(cache.pinnedBytes, 2 * MIB)
  t.ok(cache.evictions >= 3)
  const descriptors = readdirSync(`/proc/${daemon.process.pid}/fd`)
    .map(fd => readlinkSync(`/proc/${daemon.process.pid}/fd/${fd}`))
    .filter(target => target.includes('/objects/') && target.endsWith('(deleted)'))
  t.same(descriptors, [], 'nothing that was deleted is held')
  await kept.close()
})

test('opens and first reads are in the access log of the mount (S26)', async t => {
  const { daemon, written } = await small(
    t,
    { a: 'aaaa', 'd/b': 'bb', c: 'c' },
    { transport: 'native', openMode: 'cached' },
  )
  const { path } = await daemon.mount(written, 'mnt')
  const startedAt = BigInt(Date.now()) * 1_000_000n
  for (const key of ['d/b', 'a', 'd/b']) await readFile(join(path, key))
  const inodes = await Promise.all(['a', 'd/b'].map(async key => (await stat(join(path, key))).ino))
  await daemon.client.status()
  const folder = join(daemon.cacheDir, 'access')
  const [name] = readdirSync(folder)
  const { facts, records } = wholeAccessLog(join(folder, name!))
  t.match(facts, { topHash: written.topHash, package: written.name, mountpoint: path })
  t.same(
    records.filter(({ kind }) => kind === 'open').map(({ ino, bytes }) => [ino, bytes]),
    [
      [inodes[1], 2],
      [inodes[0], 4],
      [inodes[1], 2],
    ],
  )
  t.same(
    records.filter(({ kind }) => kind === 'read').map(({ ino, bytes }) => [ino, bytes]),
    [
      [inodes[1], 2],
      [inodes[0], 4],
    ],
    'the second open of d/b is served from the page cache',
  )
  for (const { timeNs } of records) t.ok(timeNs >= startedAt - 10_000_000n && timeNs < startedAt + 60_000_000_000n)
})

test('a daemon that dies takes no access with it: each is in the log, once (S26)', async t => {
  const files = { 'before.bin': 'before', 'sent.bin': 'sent', 'replaced.bin': 'replaced', 'after.bin': 'after' }
  const { daemon, written } = await small(t, files, { transport: 'native', openMode: 'cached' })
  const { path } = await daemon.mount(written, 'mnt')
  const openedFiles = async () => {
    const names = new Map<number, string>()
    for (const name of Object.keys(files)) names.set((await stat(join(path, name))).ino, name)
    const [log] = readdirSync(join(daemon.cacheDir, 'access'))
    const { records } = wholeAccessLog(join(daemon.cacheDir, 'access', log!))
    t.same(
      records.filter(({ kind }) => kind === 'lost'),
      [],
    )
    return records.filter(({ kind }) => kind === 'open').map(({ ino }) => names.get(ino))
  }
  // All are here from now on, so that opening one needs no daemon.
  for (const name of Object.keys(files)) await readFile(join(path, name))
  const expected = Object.keys(files)
  await daemon.client.status()

  const stopped = await daemonPid(daemon)
  process.kill(stopped, 'SIGSTOP')
  await readFile(join(path, 'sent.bin'))
  // It is told each second what was opened; what lies in its socket dies with it.
  await sleep(1500)
  await readFile(join(path, 'replaced.bin'))
  const replaced = daemon.log().split('was replaced in place').length
  daemon.process.kill('SIGUSR2')
  await until('it has replaced itself', () => daemon.log().split('was replaced in place').length > replaced)
  process.kill(stopped, 'SIGKILL')
  await readFile(join(path, 'after.bin'))
  expected.push('sent.bin', 'replaced.bin', 'after.bin')
  await until('another daemon is there', async () => (await daemonPid(daemon).catch(() => stopped)) !== stopped)
  await daemon.client.status()
  t.same(await openedFiles(), expected)

  for (let i = 0; i < 3; i++) {
    const before = await killDaemon(daemon)
    await readFile(join(path, 'after.bin'))
    expected.push('after.bin')
    await until('another daemon is there', async () => (await daemonPid(daemon).catch(() => before)) !== before)
  }
  await daemon.client.status()
  t.same(await openedFiles(), expected)
})

test('what its capabilities are: CAP_SYS_ADMIN, and no other is effective (S25)', async t => {
  if (process.getuid?.() !== 0) return skipTest(t, 'needs root')
  const { daemon } = await small(t, { f: 'f' }, { transport: 'native' })
  const status = readFileSync(`/proc/${daemon.process.pid}/status`, 'utf8')
  const set = (name: string) => BigInt(`0x${new RegExp(`^${name}:\\s*(\\w+)$`, 'm').exec(status)![1]}`)
  t.equal(set('CapEff'), 1n << 21n)
  t.equal(set('CapPrm') & ~((1n << 21n) | (1n << 2n)), 0n)
  t.equal(set('CapInh'), 0n)
})
