/** The daemon as a process: one a cache, what it answers, what it leaves behind. */
import { existsSync, readFileSync, statSync, symlinkSync } from 'node:fs'
import { chmod, mkdir, readFile, stat } from 'node:fs/promises'
import { request } from 'node:http'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { findDaemon } from '../../daemon/control/client.js'
import { ensureDaemon } from '../../daemon/control/launch.js'
import { readOwner } from '../../daemon/store/index.js'
import { bodyOf, cannotMount, mountsBelow, run, startDaemon, testFolder, until } from '../support/daemon.js'
import { writeRegistry } from '../support/registry.js'
import { skipTest } from '../support/skips.js'

t.setTimeout(600_000)

const isRoot = process.getuid?.() === 0
const needsRoot = isRoot ? false : 'needs root'

function optionsFor(cacheDir: string) {
  return { cacheDir, ioTimeoutMs: 5000, offline: false, freeBytesMin: 0 }
}

/** Starts it as the command line does, and stops it with the test. */
async function launch(t: Test, cacheDir: string) {
  t.teardown(async () => {
    await findDaemon(cacheDir)?.stop(true)
    await until('it has ended', () => !readOwner(cacheDir).isHeld)
  })
  return ensureDaemon(optionsFor(cacheDir))
}

function call(socketPath: string, method: string, path: string, body?: string) {
  return new Promise<{ status: number; type: string; text: string }>((resolve, reject) => {
    const sent = request(
      {
        socketPath,
        method,
        path,
        headers:
          body === undefined ? {} : { 'content-type': 'application/json', 'content-length': Buffer.byteLength(body) },
      },
      response => {
        let text = ''
        response.on('data', chunk => {
          text += chunk
        })
        response.on('end', () =>
          resolve({ status: response.statusCode ?? 0, type: response.headers['content-type'] ?? '', text }),
        )
      },
    )
    sent.on('error', reject)
    sent.end(body)
  })
}

t.test('ensureDaemon starts one that strangers cannot reach, and finds the one that runs (S18)', async t => {
  const cacheDir = join(testFolder(t), 'cache')
  t.equal(findDaemon(cacheDir), undefined)
  const { client, isStarted } = await launch(t, cacheDir)
  t.equal(isStarted, true)
  const again = await ensureDaemon(optionsFor(cacheDir))
  t.equal(again.isStarted, false)
  t.equal(again.client.pid, client.pid)
  const status = await client.status()
  t.match(status, {
    daemon: { cache: cacheDir, socket: join(cacheDir, 'daemon.sock') },
    mounts: [],
    cache: { bytes: 0, objects: 0, pinnedBytes: 0 },
    fetch: { objects: 0, inFlight: 0 },
    loader: null,
  })
  t.equal(status.daemon.supervisorPid ?? status.daemon.pid, client.pid, 'who owns the cache')
  t.equal(statSync(join(cacheDir, 'daemon.sock')).mode & 0o777, 0o600)
  t.equal(statSync(cacheDir).mode & 0o007, 0, 'and strangers do not get there')
  t.match(readFileSync(join(cacheDir, 'daemon.log'), 'utf8'), /the daemon is ready/)
})

t.test('ensureDaemon ends with one daemon when many start it at once (S15)', async t => {
  for (let round = 0; round < 3; round++) {
    const cacheDir = join(testFolder(t), 'cache')
    await mkdir(cacheDir, { mode: 0o750 })
    const started = await Promise.all(Array.from({ length: 4 }, () => launch(t, cacheDir)))
    t.equal(new Set(started.map(({ client }) => client.pid)).size, 1)
    t.equal(started.filter(({ isStarted }) => isStarted).length, 1)
  }
})

t.test('a second daemon on one cache is refused, and the first goes on (S15)', async t => {
  const first = await startDaemon(t)
  const main = first.process.spawnargs.at(-2)!
  const second = await run(process.execPath, [main, JSON.stringify(optionsFor(first.cacheDir))])
  t.equal(second.status, 11)
  t.match(second.stderr, new RegExp(`belongs to process ${first.process.pid}`))
  t.equal(await first.client.isAlive(), true)
})

t.test('a daemon that is stopped leaves the cache to the next one', async t => {
  const cacheDir = join(testFolder(t), 'cache')
  const { client } = await ensureDaemon(optionsFor(cacheDir))
  await client.stop(false)
  await until('it has ended', () => !readOwner(cacheDir).isHeld)
  t.equal(existsSync(join(cacheDir, 'daemon.sock')), false)
  await t.rejects(client.status(), { code: 'DAEMON_UNAVAILABLE' })
  const { isStarted } = await launch(t, cacheDir)
  t.equal(isStarted, true)
})

t.test('a daemon that was killed leaves the cache to the next one', async t => {
  const folder = testFolder(t)
  const first = await startDaemon(t, { folder })
  first.process.kill('SIGKILL')
  t.equal(await first.ended, 'SIGKILL')
  t.equal(existsSync(join(first.cacheDir, 'daemon.sock')), true, 'its socket still lies there')
  const second = await startDaemon(t, { folder })
  t.equal(await second.client.isAlive(), true)
})

t.test('a cache with a path that is too long for a socket has it elsewhere', async t => {
  const cacheDir = join(testFolder(t), 'long'.repeat(40))
  const { client } = await launch(t, cacheDir)
  t.notOk(client.socketPath.startsWith(cacheDir))
  t.ok(Buffer.byteLength(client.socketPath) < 108)
  t.equal((await client.status()).daemon.cache, cacheDir)
  t.equal(statSync(join(client.socketPath, '..')).mode & 0o077, 0, 'in a folder of this user alone')
  await client.stop(false)
  await until('it has ended', () => !readOwner(cacheDir).isHeld)
  t.equal(existsSync(client.socketPath), false)
})

t.test('a daemon that cannot start says why', async t => {
  const cacheDir = join(testFolder(t), 'cache')
  await mkdir(cacheDir)
  await chmod(cacheDir, 0o777)
  await t.rejects(ensureDaemon(optionsFor(cacheDir)), { code: 'DAEMON_UNAVAILABLE', message: /chmod o-w/ })
})

t.test('requests that are wrong get a problem that says so', async t => {
  const { client, folder } = await startDaemon(t)
  const mountpoint = await made(join(folder, 'mnt'))
  const mount = { registry: `file://${folder}`, package: 'a/b', topHash: '0'.repeat(64), mountpoint }
  const wrong: readonly (readonly [method: string, path: string, body: unknown, status: number, code: string])[] = [
    ['POST', '/v1/mounts', 'no JSON', 400, 'INVALID_ARGUMENT'],
    ['POST', '/v1/mounts', {}, 400, 'INVALID_ARGUMENT'],
    ['POST', '/v1/mounts', { ...mount, topHash: '123' }, 400, 'INVALID_ARGUMENT'],
    ['POST', '/v1/mounts', { ...mount, mountpoint: 'relative' }, 400, 'INVALID_ARGUMENT'],
    ['POST', '/v1/mounts', { ...mount, umask: '22' }, 400, 'INVALID_ARGUMENT'],
    ['POST', '/v1/mounts', { ...mount, alowOther: true }, 400, 'INVALID_ARGUMENT'],
    ['POST', '/v1/mounts', { ...mount, package: 'no name' }, 400, 'INVALID_ARGUMENT'],
    ['DELETE', '/v1/mounts', { mountpoint: folder }, 404, 'NOT_MOUNTED'],
    ['GET', '/v2/nothing', undefined, 404, 'INVALID_ARGUMENT'],
  ]
  for (const [method, path, body, status, code] of wrong) {
    const text = body === undefined ? undefined : typeof body === 'string' ? body : JSON.stringify(body)
    const answer = await call(client.socketPath, method, path, text)
    const title = `${method} ${path} ${text ?? ''}`
    t.equal(answer.status, status, title)
    t.match(answer.type, /^application\/problem\+json/, title)
    t.match(JSON.parse(answer.text), { status, code, detail: /./ }, title)
  }
  t.match(await client.status(), { mounts: [] })
})

t.test('errors arrive at the client as they were thrown', async t => {
  const { client, folder } = await startDaemon(t)
  const registry = join(folder, 'registry')
  await mkdir(join(registry, '.quilt'), { recursive: true })
  await mkdir(join(folder, 'mnt'))
  const body = {
    registry: `file://${registry}`,
    package: 'a/b',
    topHash: '0'.repeat(64),
    mountpoint: join(folder, 'mnt'),
  }
  await t.rejects(client.mount(body), { name: 'BobbinError', code: 'REVISION_NOT_FOUND', message: /0{64}/ })
  await t.rejects(client.unmount(join(folder, 'mnt'), false), { code: 'NOT_MOUNTED' })
})

t.test('/metrics is what Prometheus reads', async t => {
  const { client } = await startDaemon(t)
  const { status, type, text } = await call(client.socketPath, 'GET', '/metrics')
  t.equal(status, 200)
  t.match(type, /^text\/plain; version=0\.0\.4/)
  for (const line of text.trimEnd().split('\n'))
    t.match(line, /^# (?:HELP|TYPE) bobbin_|^bobbin_[a-z_]+ \d+(?:\.\d+)?$/)
  t.match(text, /^bobbin_mounts 0$/m)
})

t.test('mounts of a daemon that was killed are cleared away by the next one', { skip: cannotMount() }, async t => {
  const folder = testFolder(t)
  const written = await writeRegistry(join(folder, 'registry'), 'test/small', { f: 'f' })
  const first = await startDaemon(t, { folder })
  const { path } = await first.mount(written, 'mnt')
  first.process.kill('SIGKILL')
  await first.ended
  await t.rejects(stat(path), { code: 'ENOTCONN' })
  t.equal(mountsBelow(folder).length, 1)
  const second = await startDaemon(t, { folder })
  t.same(mountsBelow(folder), [])
  await second.mount(written, 'mnt')
  t.equal(await readFile(join(path, 'f'), 'utf8'), 'f')
})

t.test('a bug in the daemon leaves no dead mounts', { skip: cannotMount() }, async t => {
  const folder = testFolder(t)
  const written = await writeRegistry(join(folder, 'registry'), 'test/small', { f: 'f' })
  const daemon = await startDaemon(t, { folder, env: { NODE_OPTIONS: `--import ${throwOnSignal}` } })
  await daemon.mount(written, 'mnt')
  daemon.process.kill('SIGUSR2')
  t.equal(await daemon.ended, 70)
  t.same(mountsBelow(folder), [])
  t.match(daemon.log(), /a bug of the test/)
})

const throwOnSignal = `data:text/javascript,${encodeURIComponent(
  `process.once('SIGUSR2', () => { throw new Error('a bug of the test') })`,
)}`

t.test('a manifest that hashes to another name mounts nothing', { skip: cannotMount() }, async t => {
  const folder = testFolder(t)
  const written = await writeRegistry(join(folder, 'registry'), 'test/small', { f: 'f' })
  const other = '1'.repeat(64)
  symlinkSync(written.manifestPath, join(written.manifestPath, '..', other))
  const daemon = await startDaemon(t, { folder })
  await t.rejects(daemon.mount({ ...written, topHash: other }, 'mnt'), { code: 'MANIFEST_CORRUPT' })
  t.same(mountsBelow(folder), [])
})

/** A file system of its own for a daemon: the script changes it, and nobody else sees that. */
function inside(script: string): string[] {
  return ['unshare', '-m', '--propagation', 'private', 'sh', '-ec', `${script}\nexec "$@"`, 'sh']
}

t.test('without /dev/fuse, mounting says what to do', { skip: needsRoot }, async t => {
  const folder = testFolder(t)
  const written = await writeRegistry(join(folder, 'registry'), 'test/small', { f: 'f' })
  const daemon = await startDaemon(t, {
    folder,
    prefix: inside(
      'mount -t tmpfs dev /dev; mknod -m 666 /dev/null c 1 3; mknod -m 666 /dev/urandom c 1 9; mknod -m 666 /dev/random c 1 8',
    ),
  })
  await t.rejects(daemon.mount(written, 'mnt'), {
    code: 'FUSE_UNAVAILABLE',
    message: /no \/dev\/fuse.*modprobe fuse.*--device \/dev\/fuse/,
  })
})

t.test('without libfuse.so.2, mounting names the package to install', { skip: needsRoot }, async t => {
  const library = (
    await run('sh', ['-c', 'ls /usr/lib/*/libfuse.so.2 /lib/*/libfuse.so.2 2>/dev/null | head -1'])
  ).stdout
    .toString()
    .trim()
  if (library === '') return skipTest(t, 'libfuse.so.2 is nowhere that this test looks')
  const folder = testFolder(t)
  const written = await writeRegistry(join(folder, 'registry'), 'test/small', { f: 'f' })
  await mkdir(join(folder, 'layer'))
  const libraries = join(library, '..')
  const daemon = await startDaemon(t, {
    folder,
    prefix: inside(
      `mount -t tmpfs layer ${folder}/layer; mkdir ${folder}/layer/up ${folder}/layer/work
       mount -t overlay overlay -o lowerdir=${libraries},upperdir=${folder}/layer/up,workdir=${folder}/layer/work ${libraries}
       rm ${library}`,
    ),
  })
  await t.rejects(daemon.mount(written, 'mnt'), {
    code: 'FUSE_UNAVAILABLE',
    message: /libfuse\.so\.2.*apt-get install libfuse2/,
  })
  t.equal(await daemon.client.isAlive(), true)
})

t.test('without the right to mount, mounting says so', { skip: needsRoot }, async t => {
  const folder = testFolder(t)
  const written = await writeRegistry(join(folder, 'registry'), 'test/small', { f: 'f' })
  const daemon = await startDaemon(t, {
    folder,
    prefix: ['setpriv', '--bounding-set=-sys_admin', '--inh-caps=-sys_admin'],
  })
  await t.rejects(daemon.client.mount(bodyOf(written, await made(join(folder, 'mnt')))), {
    code: 'FUSE_UNAVAILABLE',
    message: /--cap-add SYS_ADMIN/,
  })
  t.same(mountsBelow(folder), [])
})

async function made(path: string): Promise<string> {
  await mkdir(path)
  return path
}
