/** What bobbin-fuse does about files, daemons and machines that are not as they should be. */
import { spawn } from 'node:child_process'
import { readdirSync } from 'node:fs'
import { chmod, mkdir, open, readdir, readFile, rename, rm, stat, symlink, truncate, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { findBobbinFuse } from '../../daemon/control/bobbin-fuse.js'
import { DaemonClient } from '../../daemon/control/client.js'
import { HEADER_BYTES } from '../../daemon/index/index-layout.js'
import { LINK_VERSION } from '../../daemon/mount/link-frames.js'
import { bodyOf, cannotMount, mountsBelow, run, small, startDaemon, testFolder, until } from '../support/daemon.js'
import { noise } from '../support/objects.js'
import { writeRegistry } from '../support/registry.js'
import { skipTest } from '../support/skips.js'

t.setTimeout(600_000)

const MIB = 2 ** 20
const skip = cannotMount()
const isRoot = process.getuid?.() === 0
const test = (title: string, body: (t: Test) => Promise<void>) => t.test(title, { skip }, body)
const NATIVE = { transport: 'native' } as const

async function onlyFile(folder: string, pattern: RegExp): Promise<string> {
  const names = await readdir(folder, { recursive: true })
  return join(folder, names.find(name => pattern.test(name))!)
}

test('an index that is cut or altered under a mount is made again, and nobody sees anything wrong', async t => {
  const files = Object.fromEntries(Array.from({ length: 3000 }, (_, i) => [`d${i % 7}/${i}`, `${i}`]))
  const { daemon, written } = await small(t, files, NATIVE)
  const names = [...Array(7).keys()].map(i => `d${i}`)
  const damages: Record<string, (path: string) => Promise<void>> = {
    'cut to nothing': path => truncate(path, 0),
    'cut in its header': path => truncate(path, 100),
    'cut in its body': path => truncate(path, HEADER_BYTES + 5000),
    'altered in its body': async path => {
      const file = await open(path, 'r+')
      await file.write(Buffer.alloc(60_000, 0xff), 0, 60_000, HEADER_BYTES + 10)
      await file.close()
    },
  }
  for (const [what, damage] of Object.entries(damages)) {
    const { path } = await daemon.mount(written, 'mnt')
    t.same(await readdir(path), names)
    await damage(await onlyFile(join(daemon.cacheDir, 'packages'), /\.index$/))
    const wrong: string[] = []
    for (let i = 0; i < 3000; i += 37) {
      const found = await readFile(join(path, `d${i % 7}`, `${i}`), 'utf8').catch(error => String(error))
      if (found !== `${i}`) wrong.push(`${i}: ${found}`)
    }
    t.same(wrong, [], what)
    t.equal((await readdir(join(path, 'd3'))).length, 429, `${what}: a whole folder`)
    await daemon.client.unmount(path, false)
  }
})

test('an object file that was cut, or that something else has taken the place of, is fetched again (S7, S25)', async t => {
  const bytes = noise(MIB, 5)
  const elsewhere: Record<string, (path: string, folder: string) => Promise<unknown>> = {
    'cut short': path => chmod(path, 0o600).then(() => truncate(path, 1000)),
    'cut to nothing': path => chmod(path, 0o600).then(() => truncate(path, 0)),
    'a symbolic link to the same bytes': async (path, folder) => {
      await rename(path, join(folder, 'same'))
      await symlink(join(folder, 'same'), path)
    },
    'a link that leads out': async path => {
      await rm(path)
      await symlink('/etc/passwd', path)
    },
    'a fifo': path => rm(path).then(() => run('mkfifo', [path])),
    'a device': path => rm(path).then(() => (isRoot ? run('mknod', [path, 'c', '1', '5']) : undefined)),
    'a folder': path => rm(path).then(() => mkdir(path)),
    gone: path => rm(path),
  }
  for (const openMode of ['passthrough', 'cached', 'none'] as const) {
    if (openMode === 'passthrough' && !isRoot) continue
    const { daemon, written } = await small(t, { f: bytes }, { ...NATIVE, openMode })
    for (const [what, replace] of Object.entries(elsewhere)) {
      const { path } = await daemon.mount(written, 'mnt')
      t.ok((await readFile(join(path, 'f'))).equals(bytes))
      await daemon.client.unmount(path, false)
      const object = await onlyFile(join(daemon.cacheDir, 'objects'), /[0-9a-f]{64}$/)
      await replace(object, daemon.folder)
      const again = await daemon.mount(written, 'mnt')
      t.ok((await readFile(join(again.path, 'f'))).equals(bytes), `${openMode}: ${what}`)
      await daemon.client.unmount(again.path, false)
    }
  }
})

test('a daemon that answers nonsense, or nothing, is killed and started again, and hits go on (S22)', async t => {
  const found = findBobbinFuse()
  if (found.path === undefined) return void t.fail(found.reason)
  const folder = testFolder(t)
  const cacheDir = join(folder, 'cache')
  await mkdir(cacheDir, { mode: 0o750 })
  const written = await writeRegistry(join(folder, 'registry'), 'test/small', {
    warm: noise(MIB, 1),
    cold: noise(1000, 2),
  })
  // The first is the real one; then comes one that is not; then real ones again.
  const nonsense = join(folder, 'nonsense')
  const options = JSON.stringify({ cacheDir, ioTimeoutMs: 5000, offline: false, freeBytesMin: 0 })
  const main = new URL('../../daemon/main.js', import.meta.url).pathname
  const script = `if [ -e "$1" ]; then mv "$1" "$1.done.cjs"; exec ${process.execPath} "$1.done.cjs"; fi; exec ${process.execPath} "$2" "$3"`
  const child = spawn(
    found.path,
    ['--cache', cacheDir, '--patience', '10', '--', 'sh', '-c', script, 'sh', nonsense, main, options],
    { stdio: ['ignore', 'ignore', 'pipe'] },
  )
  let said = ''
  child.stderr.on('data', chunk => {
    said += chunk
  })
  const ended = new Promise(resolve => child.once('exit', resolve))
  t.teardown(async () => {
    child.kill('SIGTERM')
    await ended
  })
  const client = new DaemonClient(join(cacheDir, 'daemon.sock'), child.pid!)
  await until('it lives', () => client.isAlive())
  const path = join(folder, 'mnt')
  await mkdir(path)
  await client.mount(bodyOf(written, path))
  t.ok((await readFile(join(path, 'warm'))).equals(noise(MIB, 1)))

  const hello = (version: number) => `
const hello = Buffer.alloc(8 + 12); hello.writeUInt32LE(12, 0); hello.writeUInt16LE(1, 4); hello.writeUInt32LE(${version}, 8);
const socket = new (require('node:net').Socket)({ fd: Number(process.env.BOBBIN_LINK_FD), readable: true, writable: true });
socket.resume(); socket.on('error', () => {});`
  const cases: readonly (readonly [what: string, script: string, reason: RegExp])[] = [
    [
      'noise',
      `${hello(LINK_VERSION)} socket.write(Buffer.alloc(100000, 0xa5)); setInterval(() => {}, 1000)`,
      /sent no frames/,
    ],
    ['another version', `${hello(99)} socket.write(hello); setInterval(() => {}, 1000)`, /another version/],
    [
      'a frame without a hello',
      `${hello(LINK_VERSION)} hello.writeUInt16LE(40, 4); hello.writeUInt32LE(0, 0); socket.write(hello.subarray(0, 8)); setInterval(() => {}, 1000)`,
      /did not say hello/,
    ],
    [
      'an unknown frame',
      `${hello(LINK_VERSION)} socket.write(hello); const frame = Buffer.from(hello); frame.writeUInt16LE(77, 4); socket.write(frame); setInterval(() => {}, 1000)`,
      /frame that cannot be read/,
    ],
    ['nothing at all, and then its end', 'setTimeout(() => process.exit(0), 300)', /has ended and is started again/],
    [
      'hello, and then nothing',
      `${hello(LINK_VERSION)} socket.write(hello); setInterval(() => {}, 1000)`,
      /does not answer/,
    ],
  ]
  for (const [what, text, reason] of cases) {
    await rm(`${nonsense}.done.cjs`, { force: true })
    await writeFile(nonsense, text)
    const from = said.length
    const { daemon } = await client.status()
    process.kill(daemon.pid, 'SIGKILL')
    t.ok((await readFile(join(path, 'warm'))).equals(noise(MIB, 1)), `${what}: hits go on`)
    // Somebody waits, so that silence is noticed.
    t.equal((await stat(join(path, 'cold'))).size, 1000)
    const reader = run('sh', ['-c', `cat "$0"`, join(path, 'cold')])
    await until(`${what} is noticed`, () => reason.test(said.slice(from)), 20_000).catch(error => {
      throw new Error(`${error.message}: ${said.slice(from)}`)
    })
    const { status, stdout } = await reader
    t.ok(status === 0 ? stdout.equals(noise(1000, 2)) : true, what)
    await until('a sound one is back', () => client.isAlive(), 20_000)
    t.match((await client.status()).mounts, [{ mountpoint: path }], what)
    await rm(await onlyFile(join(cacheDir, 'objects'), /[0-9a-f]{64}$/), { force: true })
    t.ok((await readFile(join(path, 'warm'))).equals(noise(MIB, 1)))
  }
})

test('a daemon that cannot start ends bobbin-fuse with its exit code', async t => {
  const found = findBobbinFuse()
  const folder = testFolder(t)
  const start = (...args: string[]) => run(found.path!, args)
  t.match(await start('--cache', join(folder, 'c'), '--', 'sh', '-c', 'exit 7'), { status: 7 })
  t.match(await start('--cache', join(folder, 'c'), '--', '/no/such/program'), { status: 127 })
  t.match(await start('--cache', 'relative', '--', 'true'), { status: 2, stderr: /absolute path/ })
  t.match(await start('--cache', folder), { status: 2, stderr: /no command/ })
  t.match(await start('--cache', folder, '--threads', '0', '--', 'true'), { status: 2, stderr: /1 to 64/ })
  t.match(await start('--cache', folder, '--user', 'nobody-here', '--', 'true'), { status: 1, stderr: /no user/ })
  await mkdir(join(folder, 'open'))
  await chmod(join(folder, 'open'), 0o777)
  t.match(await start('--cache', join(folder, 'open'), '--', 'true'), { status: 12, stderr: /everybody may write/ })
  t.match(await start('--help'), { status: 0, stdout: /usage: bobbin-fuse/ })
})

test('a mountpoint outside --mount-below, or behind a link that appeared, is refused', async t => {
  const found = findBobbinFuse()
  const folder = testFolder(t)
  const cacheDir = join(folder, 'cache')
  const written = await writeRegistry(join(folder, 'registry'), 'test/small', { f: 'f' })
  const options = JSON.stringify({ cacheDir, ioTimeoutMs: 5000, offline: false, freeBytesMin: 0 })
  const main = new URL('../../daemon/main.js', import.meta.url).pathname
  const daemon = [process.execPath, main, options]
  const command = ['--cache', cacheDir, '--mount-below', join(folder, 'in/'), '--', ...daemon]
  t.match(await run(found.path!, command), { status: 1, stderr: /open .*in \(--mount-below\): No such file/ })
  await mkdir(join(folder, 'in'))
  const child = spawn(found.path!, command)
  const ended = new Promise(resolve => child.once('exit', resolve))
  t.teardown(async () => {
    child.kill('SIGTERM')
    await ended
  })
  const client = new DaemonClient(join(cacheDir, 'daemon.sock'), child.pid!)
  await until('it lives', () => client.isAlive())
  for (const name of ['in/a', 'inside', 'out']) await mkdir(join(folder, name), { recursive: true })
  await client.mount(bodyOf(written, join(folder, 'in/a')))
  t.equal(await readFile(join(folder, 'in/a/f'), 'utf8'), 'f')
  for (const name of ['inside', 'out']) {
    await t.rejects(client.mount(bodyOf(written, join(folder, name))), {
      code: 'MOUNTPOINT_UNUSABLE',
      message: /may mount below .*in /,
    })
  }
  await symlink(join(folder, 'out'), join(folder, 'in/link'))
  await t.rejects(client.mount(bodyOf(written, join(folder, 'in/link'))), { code: 'MOUNTPOINT_UNUSABLE' })
  t.equal(mountsBelow(folder).length, 1)
})

test('a mount that somebody detaches is noticed at once, and its open files last until they are closed', async t => {
  if (!isRoot) return skipTest(t, 'needs root')
  const { daemon, written } = await small(t, { f: noise(9 * MIB, 1), g: noise(MIB, 2) }, NATIVE)
  const { path } = await daemon.mount(written, 'mnt')
  const [f, g] = [await open(join(path, 'f')), await open(join(path, 'g'))]
  t.equal((await run('umount', ['-l', path])).status, 0)
  await until('it is noticed', async () => (await daemon.client.status()).mounts.length === 0)
  t.same((await f.read(Buffer.alloc(100), 0, 100, 8 * MIB)).buffer, noise(9 * MIB, 1).subarray(8 * MIB, 8 * MIB + 100))
  t.ok((await daemon.client.status()).cache.pinnedBytes > 0)
  const again = await daemon.mount(written, 'mnt')
  t.ok((await readFile(join(again.path, 'g'))).equals(noise(MIB, 2)))
  t.same((await g.read(Buffer.alloc(100), 0, 100, 0)).buffer, noise(MIB, 2).subarray(0, 100))
  await Promise.all([f.close(), g.close()])
  await until('nothing is open', async () => (await daemon.client.status()).cache.pinnedBytes === 0)
  await daemon.client.unmount(again.path, false)
})

test('the socket of the daemon is held, and handed on', async t => {
  const folder = testFolder(t)
  const socket = join(folder, 'control')
  const script = 'readlink /proc/self/fd/$BOBBIN_CONTROL_FD; exit 3'
  const { status, stdout, stderr } = await run(findBobbinFuse().path!, [
    ...['--cache', join(folder, 'cache'), '--socket', socket],
    ...['--', 'sh', '-c', script],
  ])
  t.equal(status, 3, stderr)
  t.match(stdout.toString(), /^socket:\[\d+\]\n$/)
  t.same((await readdir(folder)).sort(), ['cache'], 'they go with bobbin-fuse')
})

test('a file at the path of a socket is no socket to take away (S119)', async t => {
  const folder = testFolder(t)
  const notes = join(folder, 'notes')
  await writeFile(notes, 'what somebody wrote')
  const { status, stderr } = await run(findBobbinFuse().path!, [
    ...['--cache', join(folder, 'cache'), '--socket', notes],
    ...['--', 'true'],
  ])
  t.not(status, 0)
  t.match(stderr, /notes: it is there, and is not a socket/)
  t.equal(await readFile(notes, 'utf8'), 'what somebody wrote')
})

test('a second bobbin-fuse on one cache is refused, and the first goes on (S15)', async t => {
  const { daemon, written } = await small(t, { f: 'f' }, NATIVE)
  const { path } = await daemon.mount(written, 'mnt')
  const { status, stderr } = await run(findBobbinFuse().path!, ['--cache', daemon.cacheDir, '--', 'true'])
  t.equal(status, 11)
  t.match(stderr, new RegExp(`belongs to process ${daemon.process.pid}`))
  t.equal(await readFile(join(path, 'f'), 'utf8'), 'f')
  t.equal(await daemon.client.isAlive(), true)
})

test('without /dev/fuse, or the right to mount, mounting says what to do', async t => {
  if (!isRoot) return skipTest(t, 'needs root')
  const folder = testFolder(t)
  const written = await writeRegistry(join(folder, 'registry'), 'test/small', { f: 'f' })
  const script =
    'mount -t tmpfs dev /dev; mknod -m 666 /dev/null c 1 3; mknod -m 666 /dev/urandom c 1 9; mknod -m 666 /dev/random c 1 8; exec "$@"'
  const without = await startDaemon(t, {
    ...NATIVE,
    folder,
    prefix: ['unshare', '-m', '--propagation', 'private', 'sh', '-ec', script, 'sh'],
  })
  await t.rejects(without.mount(written, 'mnt'), {
    code: 'FUSE_UNAVAILABLE',
    message: /no \/dev\/fuse.*modprobe fuse.*--device \/dev\/fuse/,
  })
  const refused = await startDaemon(t, {
    ...NATIVE,
    cacheDir: join(folder, 'cache-2'),
    folder,
    prefix: ['setpriv', '--bounding-set=-sys_admin', '--inh-caps=-sys_admin'],
  })
  await t.rejects(refused.mount(written, 'mnt'), { code: 'FUSE_UNAVAILABLE', message: /--cap-add SYS_ADMIN/ })
  t.same(mountsBelow(folder), [])
})

test('with few descriptors, many files are read all the same, and too many at once are an error', async t => {
  const files = Object.fromEntries(Array.from({ length: 300 }, (_, i) => [`${i}`, noise(5000, i)]))
  for (const openMode of ['cached', ...(isRoot ? (['passthrough'] as const) : [])] as const) {
    const { daemon, written } = await small(t, files, { ...NATIVE, openMode, prefix: ['prlimit', '--nofile=160:160'] })
    const { path } = await daemon.mount(written, 'mnt')
    const handles = []
    for (let i = 0; i < 300; i++) {
      const handle = await open(join(path, `${i}`))
      const { buffer } = await handle.read(Buffer.alloc(5000), 0, 5000, 0)
      if (!buffer.equals(files[`${i}`]!)) t.fail(`${i} was read wrongly`)
      handles.push(handle)
    }
    t.ok(readdirSync(`/proc/${daemon.process.pid}/fd`).length < 160)
    for (const handle of handles) await handle.close()
  }
})

test('without memory for another mount it says so, and those that there are go on', async t => {
  if (!isRoot) return skipTest(t, 'needs root')
  const { daemon, written } = await small(t, { f: noise(MIB, 1) }, NATIVE)
  const { path } = await daemon.mount(written, 'mnt')
  const { stdout } = await run('sh', ['-c', `awk '/VmSize/ {print $2}' /proc/${daemon.process.pid}/status`])
  const limit = Number(stdout.toString()) * 1024 + 2 * MIB
  await run('prlimit', ['--pid', `${daemon.process.pid}`, `--as=${limit}:${limit}`])
  await t.rejects(daemon.mount(written, 'another'), { code: /LOCAL_IO|FUSE_UNAVAILABLE/ })
  t.equal(mountsBelow(daemon.folder).length, 1)
  t.ok((await readFile(join(path, 'f'))).equals(noise(MIB, 1)))
  t.equal(await daemon.client.isAlive(), true)
})

test('a cache on a filesystem that is not fit for passthrough is served without, and says why', async t => {
  if (!isRoot) return skipTest(t, 'needs root')
  const folder = testFolder(t)
  const layers = join(folder, 'layers')
  await mkdir(layers)
  const merged = join(folder, 'merged')
  await mkdir(merged)
  // Two filesystems deep: the kernel stacks no third one.
  const script = `mount -t tmpfs layers ${layers} && cd ${layers} && mkdir a b c d e f &&
    mount -t overlay overlay -o lowerdir=a,upperdir=b,workdir=c d && mkdir d/up d/work &&
    mount -t overlay overlay -o lowerdir=${layers}/d:${layers}/e ${merged}`
  const { status, stderr } = await run('sh', ['-c', script])
  t.teardown(() => run('sh', ['-c', `umount -l ${merged} ${layers}/d ${layers}`]))
  if (status !== 0) return skipTest(t, `overlays cannot be stacked here: ${stderr}`)
  await run('umount', [merged])
  const cacheDir = join(layers, 'd', 'cache')
  await mkdir(cacheDir, { mode: 0o750 })
  const written = await writeRegistry(join(folder, 'registry'), 'test/small', { f: noise(MIB, 1) })
  const daemon = await startDaemon(t, { ...NATIVE, folder, cacheDir })
  const { path, facts } = await daemon.mount(written, 'mnt')
  t.ok((await readFile(join(path, 'f'))).equals(noise(MIB, 1)))
  t.match(facts, { openMode: 'cached', openModeReason: /not fit for passthrough/ })
  await t.rejects(daemon.mount(written, 'other', { openMode: 'passthrough' }), {
    code: 'FUSE_UNAVAILABLE',
    message: /not fit for passthrough/,
  })
})
