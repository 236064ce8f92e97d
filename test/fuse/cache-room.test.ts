/** Room for packages and plans in the cache of a real daemon: asked for by others, and never a mount's. */
import {
  closeSync,
  existsSync,
  mkdirSync,
  openSync,
  readdirSync,
  rmSync,
  utimesSync,
  writeFileSync,
  writeSync,
} from 'node:fs'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import t from 'tap'
import { formatMetrics } from '../../daemon/control/metrics.js'
import { Bobbin } from '../support/cli.js'
import { cannotMount, small, until } from '../support/daemon.js'
import { noise } from '../support/objects.js'
import { smallDisk } from '../support/small-disk.js'

t.setTimeout(600_000)

const MB = 2 ** 20
const files = { a: noise(1000, 1), b: noise(1000, 2) }

t.test(
  'a mount keeps its package while others go, also when its daemon is killed (S96)',
  { skip: cannotMount() },
  async t => {
    const { daemon, written } = await small(t, files, { transport: 'native', cacheBytesMax: 8 * MB })
    const { client, cacheDir } = daemon
    const { path } = await daemon.mount(written, 'mnt')
    t.ok((await readFile(join(path, 'a'))).equals(files.a))
    const packages = join(cacheDir, 'packages', 'v1')
    const ofMount = join(packages, readdirSync(packages)[0]!, written.topHash)
    const stale = join(packages, 'registry', '1'.repeat(64))
    mkdirSync(stale, { recursive: true })
    writeFileSync(join(stale, 'x.index'), Buffer.alloc(2 * MB))
    utimesSync(join(stale, 'x.index'), 1, 1)

    await client.askRoom({ hold: 'test', what: 'a plan', bytes: MB })
    t.notOk(existsSync(stale), 'more than a quarter of the quota')
    t.equal(readdirSync(ofMount).length, 2)
    await t.rejects(client.askRoom({ hold: 'test', what: 'a plan', bytes: 100 * MB }), {
      code: 'STORE_FULL',
      message: /a plan \(100 MiB\)/,
    })
    await client.askRoom({ hold: 'test', what: 'a plan', bytes: 0 })

    const { pid } = (await client.status()).daemon
    process.kill(pid, 'SIGKILL')
    await until('the next daemon answers', async () => {
      const status = await client.status().catch(() => undefined)
      return status !== undefined && status.daemon.pid !== pid
    })
    t.ok((await readFile(join(path, 'b'))).equals(files.b))
    t.equal(readdirSync(ofMount).length, 2)
  },
)

t.test('status and metrics say what lies in the cache beside objects (S95)', async t => {
  const { daemon, written } = await small(t, files, {})
  const { client, cacheDir } = daemon
  const { registry, name, topHash } = written
  const address = { registry, package: name, topHash }
  await client.leaseObjects({ owner: 'me', lease: 'l', inos: [2], priority: 'demand', ...address })
  await until('it was measured', async () => (await client.status()).cache.packagesBytes > 4096)
  t.match(formatMetrics(await client.status()), /^bobbin_cache_packages_bytes [1-9]\d{3,}$/m)
  t.match(await new Bobbin(cacheDir).text('status'), /beside them [\d.]+ KiB of packages, 0 B of plans/)
})

t.test(
  'on a disk that others have filled, mounts are made and unmade, and a daemon that is killed comes back (S10) (S22)',
  { skip: cannotMount() },
  async t => {
    const cacheDir = smallDisk(t, 4)
    if (cacheDir === undefined) return
    const { daemon, written } = await small(t, files, { transport: 'native', cacheDir })
    const { client } = daemon
    const { path } = await daemon.mount(written, 'mnt')
    t.ok((await readFile(join(path, 'a'))).equals(files.a))
    const filler = join(cacheDir, 'somebody-else')
    fill(filler)

    const another = await daemon.mount(written, 'another')
    t.ok((await readFile(join(another.path, 'a'))).equals(files.a))
    await client.unmount(another.path, false)
    const { pid } = (await client.status()).daemon
    process.kill(pid, 'SIGKILL')
    await until('the next daemon answers', async () => {
      const status = await client.status().catch(() => undefined)
      return status !== undefined && status.daemon.pid !== pid
    })
    t.ok((await readFile(join(path, 'a'))).equals(files.a))
    t.match(await new Bobbin(cacheDir).text('status'), /\/mnt /, 'it says where it listens')

    rmSync(filler)
    t.ok((await readFile(join(path, 'b'))).equals(files.b), 'what had no room has it now')
  },
)

/** Takes the last byte of a disk. */
function fill(path: string): void {
  const fd = openSync(path, 'w')
  try {
    for (;;) writeSync(fd, Buffer.alloc(4096))
  } catch {
    // It is full.
  } finally {
    closeSync(fd)
  }
}
