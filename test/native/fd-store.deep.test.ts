/**
 * bobbin-fuse dies itself, and what systemd has stored for it (fd_store.py plays it) brings its mounts back:
 * open files are read on, whoever waits gets its bytes. A kernel from 6.9 on is needed for that.
 */
import { spawn, spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { open, readFile } from 'node:fs/promises'
import { release } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { setTimeout as sleep } from 'node:timers/promises'
import t, { type Test } from 'tap'
import { daemonCommand, findBobbinFuse } from '../../daemon/control/bobbin-fuse.js'
import { DaemonClient } from '../../daemon/control/client.js'
import { OPEN_MODES } from '../../daemon/mount/transport.js'
import { wholeAccessLog } from '../support/access-log.js'
import { Bobbin } from '../support/cli.js'
import { bodyOf, cannotMount, mountsBelow, run, testFolder, until } from '../support/daemon.js'
import { startHeldServer } from '../support/held-server.js'
import { noise } from '../support/objects.js'
import { repository } from '../support/parts.js'
import { writeRegistry } from '../support/registry.js'
import { skipTest } from '../support/skips.js'

const WATCHDOG_MS = 120_000
const MIB = 2 ** 20
const WARM = noise(3 * MIB, 1)
const COLD = noise(500_000, 2)
const LARGE = noise(12 * MIB, 3)

t.setTimeout(WATCHDOG_MS + 30_000)

const [major = 0, minor = 0] = release().split('.').map(Number)
const isKernelNew = major > 6 || (major === 6 && minor >= 9)
const skip = cannotMount() || (findBobbinFuse().path === undefined && 'no bobbin-fuse here')

interface Manager {
  ask(command: 'start' | 'kill' | 'stop'): Promise<Record<string, unknown>>
  /** Of what it stores. */
  names(): Promise<readonly string[]>
}

/** Ends with the test, however that ends; a hang is ended by aborting the connections. */
function startManager(t: Test, folder: string, command: readonly string[], env: NodeJS.ProcessEnv): Manager {
  const script = join(repository, 'test/native/fd_store.py')
  const manager = spawn('python3', [script, join(folder, 'notify'), ...command], {
    stdio: ['pipe', 'pipe', 'pipe'],
    env: { ...process.env, ...env },
  })
  let said = ''
  manager.stderr.setEncoding('utf8').on('data', chunk => {
    said += chunk
  })
  const lines = createInterface(manager.stdout)[Symbol.asyncIterator]()
  const giveUp = () => {
    for (const { minor, mountpoint } of mountsBelow(folder)) {
      try {
        writeFileSync(`/sys/fs/fuse/connections/${minor}/abort`, '1')
      } catch {
        // No fusectl here.
      }
      spawnSync('umount', ['-l', '--', mountpoint])
    }
  }
  const watchdog = setTimeout(() => {
    t.fail('the watchdog ended a hang', { said })
    giveUp()
    manager.kill('SIGKILL')
  }, WATCHDOG_MS)
  t.teardown(async () => {
    clearTimeout(watchdog)
    const ended = new Promise(resolve => manager.once('close', resolve))
    manager.stdin.end()
    if (manager.exitCode === null && manager.signalCode === null) await ended
    giveUp()
    if (!t.passing()) t.comment(said)
  })
  const ask = async (command: string) => {
    manager.stdin.write(`${command}\n`)
    const { value } = await lines.next()
    const answer = JSON.parse(value ?? '{"error":"it has ended"}') as Record<string, unknown>
    if (answer.error !== undefined) throw new Error(`${command}: ${answer.error}\n${said}`)
    return answer
  }
  return { ask, names: async () => (await ask('names')).names as string[] }
}

async function prepare(t: Test, env: NodeJS.ProcessEnv = {}) {
  const folder = testFolder(t)
  const server = await startHeldServer()
  t.teardown(() => server.stop())
  const cacheDir = join(folder, 'cache')
  mkdirSync(cacheDir)
  const written = await writeRegistry(join(folder, 'registry'), 'test/small', {
    'warm.bin': WARM,
    'large.bin': LARGE,
    other: 'other',
    'cold.bin': { bytes: COLD, physicalKey: server.add('cold.bin', COLD) },
  })
  const { argv } = daemonCommand({
    cacheDir,
    ioTimeoutMs: 60_000,
    offline: false,
    freeBytesMin: 0,
    transport: 'native',
  })
  const manager = startManager(t, folder, argv, { ...server.env, ...env })
  const client = new DaemonClient(join(cacheDir, 'daemon.sock'), 0)
  const mount = async (openMode: (typeof OPEN_MODES)[number] | 'auto') => {
    const path = join(folder, openMode)
    mkdirSync(path)
    await client.mount({ ...bodyOf(written, path), openMode })
    return path
  }
  const daemonPid = async () => (await client.status()).daemon.pid
  return { folder, server, manager, client, mount, daemonPid }
}

function isRunning(pid: number): boolean {
  return existsSync(`/proc/${pid}`) && !/^State:\s+Z/m.test(readFileSync(`/proc/${pid}/status`, 'utf8'))
}

/** What a child has printed when it has ended well. */
async function outputOf(reader: ReturnType<typeof run>): Promise<Buffer> {
  const { status, stdout, stderr } = await reader
  if (status !== 0) throw new Error(`the reader ended with ${status}: ${stderr}`)
  return stdout
}

t.test('its own death, survived with what systemd has stored', { skip }, async t => {
  if (!isKernelNew) return skipTest(t, `Linux ${release()} does not send requests again`)
  const { folder, server, manager, client, mount, daemonPid } = await prepare(t)
  const { pid: firstPid } = await manager.ask('start')
  const modes = process.getuid?.() === 0 ? OPEN_MODES : OPEN_MODES.filter(mode => mode !== 'passthrough')
  const paths: string[] = []
  for (const mode of modes) paths.push(await mount(mode))
  await until('a record, a table and a connection of each mount are stored', async () => {
    const names = await manager.names()
    return paths.every((_, i) => ['record', 'open', 'fuse-0'].every(part => names.includes(`mount-${i + 1}-${part}`)))
  })

  const handles = []
  for (const path of paths) {
    for (const [name, bytes] of [
      ['warm.bin', WARM],
      ['large.bin', LARGE],
    ] as const) {
      // What is large is opened before it is here; what is here is opened in the mount's own mode.
      const early = await open(join(path, name))
      t.same((await early.read(Buffer.alloc(10), 0, 10, 0)).buffer, bytes.subarray(0, 10))
      handles.push({ path, name, bytes, file: early }, { path, name, bytes, file: await open(join(path, name)) })
    }
  }
  server.hold()
  const readers = paths.map(path => run('cat', [join(path, 'cold.bin')]))
  await until('the server is asked', () => server.waiting > 0)

  const firstDaemon = await daemonPid()
  const killedAt = Date.now()
  t.same(await manager.ask('kill'), { status: -9 })
  await until('its daemon ends, too', () => !isRunning(firstDaemon))
  t.comment(`its daemon has ended ${Date.now() - killedAt} ms after it`)
  t.equal(mountsBelow(folder).length, modes.length, 'the mounts are there')
  const passthrough = handles.filter(({ path }) => path.endsWith('/passthrough')).at(-1)
  if (passthrough !== undefined) {
    const { file, bytes } = passthrough
    t.same(
      (await file.read(Buffer.alloc(10), 0, 10, 7 * MIB)).buffer,
      bytes.subarray(7 * MIB, 7 * MIB + 10),
      'nobody serves it, and it is read',
    )
  }
  const impatient = paths.map(path => run('cat', [join(path, 'other')]))

  const startedAt = Date.now()
  const { pid: secondPid } = await manager.ask('start')
  t.comment(`it was ready again ${Date.now() - startedAt} ms after its start`)
  t.not(secondPid, firstPid)
  t.not(await daemonPid(), firstDaemon)
  const { mounts } = await client.status()
  t.same(
    mounts.map(({ mountpoint, openMode }) => [mountpoint, openMode]).sort(),
    paths.map((path, i) => [path, modes[i]]).sort(),
    'status has the mounts',
  )

  for (const { path, name, bytes, file } of handles) {
    const { buffer } = await file.read(Buffer.alloc(100_000), 0, 100_000, 2 * MIB)
    t.ok(buffer.equals(bytes.subarray(2 * MIB, 2 * MIB + 100_000)), `an open ${path}/${name} is read on`)
    t.ok((await readFile(join(path, name))).equals(bytes), 'and can be opened again')
  }
  for (const reader of impatient) t.equal((await outputOf(reader)).toString(), 'other', 'who came in between is served')
  await until('the server is asked again', () => server.waiting > 0)
  server.release()
  for (const reader of readers) t.ok((await outputOf(reader)).equals(COLD), 'who waited gets its bytes')

  await client.status()
  for (const name of readdirSync(join(folder, 'cache/access'))) {
    const { records } = wholeAccessLog(join(folder, 'cache/access', name))
    const lost = records.findIndex(({ kind }) => kind === 'lost')
    t.ok(lost > 0, 'the log says that something may be missing')
    t.ok(records.length > lost + 1, 'and goes on')
  }
  await t.rejects(client.unmount(paths[0]!, false), { code: 'ALREADY_MOUNTED', message: /is in use/ })
  for (const { file } of handles) await file.close()
  await until('nothing is open', async () => (await client.status()).cache.pinnedBytes === 0)
  await client.unmount(paths[0]!, false)
  await until('what was unmounted is no longer stored', async () =>
    (await manager.names()).every(name => !name.startsWith('mount-1-')),
  )
  t.same(await manager.ask('stop'), { status: 0 })
  t.same(mountsBelow(folder), [])
  await until('nothing is stored', async () => (await manager.names()).length === 0)
})

t.test('it dies again and again under load', { skip }, async t => {
  if (!isKernelNew) return skipTest(t, `Linux ${release()} does not send requests again`)
  const { manager, mount, client, daemonPid } = await prepare(t)
  await manager.ask('start')
  const path = await mount('auto')
  for (const name of ['warm.bin', 'other', 'large.bin']) await readFile(join(path, name))
  const script = `
import hashlib, os, sys, time
until, n = time.time() + float(sys.argv[2]), 0
while time.time() < until:
    for name in ('warm.bin', 'other', 'large.bin'):
        fd = os.open(os.path.join(sys.argv[1], name), os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        print(name, hashlib.sha256(os.pread(fd, 1 << 24, 0)).hexdigest())
        os.close(fd)`
  const load = [1, 2].map(() => run('python3', ['-c', script, path, '10']))
  for (let i = 0; i < 5; i++) {
    await sleep(500)
    const daemon = await daemonPid()
    await manager.ask('kill')
    await until('its daemon ends, too', () => !isRunning(daemon))
    await manager.ask('start')
  }
  for (const output of await Promise.all(load.map(outputOf))) {
    const lines = output.toString().trim().split('\n')
    t.comment(`${lines.length} files read`)
    t.ok(lines.length > 30)
    t.equal(new Set(lines).size, 3, 'each file has one hash')
  }
  await until('nothing is open', async () => (await client.status()).cache.pinnedBytes === 0)
  await client.unmount(path, false)
  t.same(await manager.ask('stop'), { status: 0 })
})

t.test('a kernel that sends nothing again: its death ends the mounts, and nobody hangs', { skip }, async t => {
  const { folder, server, manager, client, mount, daemonPid } = await prepare(t, { BOBBIN_FUSE_WITHOUT: 'resend' })
  await manager.ask('start')
  const path = await mount('auto')
  server.hold()
  const reader = run('cat', [join(path, 'cold.bin')])
  await until('the server is asked', () => server.waiting > 0)
  t.same(await manager.names(), [], 'nothing is stored')
  const daemon = await daemonPid()
  await manager.ask('kill')
  await until('its daemon ends, too', () => !isRunning(daemon))
  t.match(await reader, { status: 1, stderr: /./ })
  await manager.ask('start')
  t.same((await client.status()).mounts, [])
  t.same(mountsBelow(folder), [], 'the dead mount is cleared away')
  t.same(await manager.ask('stop'), { status: 0 })
})

t.test('mounts that the service manager cannot keep are told by status and doctor (S68)', { skip }, async t => {
  if (!isKernelNew) return skipTest(t, `Linux ${release()} does not send requests again`)
  const keptMax = 12
  const { folder, manager, mount, client } = await prepare(t, { FDSTORE: String(keptMax) })
  await manager.ask('start')
  const paths = []
  for (const mode of ['auto', 'cached', 'none'] as const) paths.push(await mount(mode))
  const keptMounts = async () => new Set((await manager.names()).map(name => /^mount-(\d+)-/.exec(name)![1]))
  await until('one is kept', async () => (await keptMounts()).has('1'))
  const { unkeptMounts } = (await client.status()).daemon
  t.ok(unkeptMounts > 0, 'three need more than there is room for')
  t.equal(unkeptMounts, paths.length - (await keptMounts()).size)
  t.ok((await manager.names()).length <= keptMax)
  const bobbin = new Bobbin(join(folder, 'cache'))
  t.match(await bobbin.text('status'), /of them would end with bobbin-fuse: raise FileDescriptorStoreMax=/)
  t.match((await bobbin.try('doctor')).stdout, /note {2}kept mounts +\d mounts are not kept/)
  for (const path of paths) await client.unmount(path, false)
  await until('nothing is kept', async () => (await manager.names()).length === 0)
  t.equal((await client.status()).daemon.unkeptMounts, 0)
  t.same(await manager.ask('stop'), { status: 0 })
})
