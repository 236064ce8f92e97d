/** What a command that ends early, a daemon with a lower quota and a bobbin-fuse that dies must not leave behind, or must name. */
import { existsSync, mkdirSync, readdirSync } from 'node:fs'
import { statfs } from 'node:fs/promises'
import { join } from 'node:path'
import t from 'tap'
import { findBobbinFuse } from '../../daemon/control/bobbin-fuse.js'
import type { StatusFacts } from '../../daemon/control/schema.js'
import { AS_USERS_DO, Bobbin } from '../support/cli.js'
import { cannotMount, mountsBelow, run, testFolder, until } from '../support/daemon.js'
import { noise } from '../support/objects.js'
import { bobbinPath } from '../support/parts.js'
import { writeRegistry } from '../support/registry.js'

t.setTimeout(300_000)

const MIB = 2 ** 20
const needsNative = cannotMount() || (findBobbinFuse().path === undefined && 'no bobbin-fuse here')
const files = Object.fromEntries(Array.from({ length: 8 }, (_, i) => [`f${i}`, noise(MIB, i)]))

async function stage(t: Parameters<typeof testFolder>[0], settings: Readonly<Record<string, string>> = {}) {
  const folder = testFolder(t)
  const written = await writeRegistry(join(folder, 'registry'), 'ns/pkg', { big: noise(8 * MIB, 9), ...files })
  const cache = join(folder, 'cache')
  const mountpoint = join(folder, 'mnt')
  mkdirSync(mountpoint)
  const env = { BOBBIN_FREE_FLOOR: '0', ...settings }
  const bobbin = new Bobbin(cache, env)
  t.teardown(() => bobbin.try('stop', '--force'))
  return { folder, reference: written.reference, cache, mountpoint, bobbin, env }
}

t.test('cat leaves nothing in the cache when its reader has seen enough (S135)', async t => {
  const { reference, cache } = await stage(t)
  const words = [...AS_USERS_DO, process.execPath, bobbinPath, 'cat', '--cache', cache, reference, 'big']
  const { stdout, status } = await run('bash', ['-c', 'set -o pipefail; "$@" | head -c1', 'bash', ...words])
  t.same(stdout, noise(8 * MIB, 9).subarray(0, 1))
  t.equal(status, 0)
  t.same(readdirSync(join(cache, 'tmp')), [])
})

t.test('a daemon that starts with a lower quota keeps to it at once (S135)', { skip: needsNative }, async t => {
  const { reference, cache, mountpoint, bobbin, env } = await stage(t)
  await bobbin.text('mount', reference, mountpoint)
  for (const name of Object.keys(files)) await run('cat', [join(mountpoint, name)])
  await bobbin.text('stop')
  const lower = new Bobbin(cache, { ...env, BOBBIN_CACHE_LIMIT: '3MiB' })
  await lower.text('mount', reference, mountpoint)
  const bytes = async () => (await lower.json<StatusFacts>('status')).cache.bytes
  await until('it has evicted', async () => (await bytes()) <= 3 * MIB)
  const { stdout } = await run('du', ['-s', '--block-size=1', join(cache, 'objects')])
  t.ok(Number.parseInt(stdout.toString(), 10) < 4 * MIB, 'on the disk, too')
  await lower.text('stop')
})

t.test(
  'a dead mount is named by status and doctor, and umount takes it away (S135)',
  { skip: needsNative },
  async t => {
    const { folder, reference, mountpoint, bobbin } = await stage(t)
    await bobbin.text('mount', reference, mountpoint)
    const { daemon } = await bobbin.json<StatusFacts>('status')
    process.kill(daemon.supervisorPid!, 'SIGKILL')
    await until('it is dead', () =>
      statfs(mountpoint).then(
        () => false,
        error => error.code === 'ENOTCONN',
      ),
    )
    await until('the daemon has gone', async () => (await bobbin.try('status')).status === 1)
    const dead = new RegExp(`${mountpoint} \\(bobbin:ns/pkg@.*\\) is dead.*: bobbin umount ${mountpoint}`)
    t.match(await bobbin.try('status'), { status: 1, stderr: dead })
    t.match(await bobbin.try('doctor'), { stdout: new RegExp(`dead mounts\\s+nobody serves ${mountpoint} `) })

    // The daemon of another cache finds it, too, and leaves it alone.
    const other = new Bobbin(join(folder, 'other'), { BOBBIN_FREE_FLOOR: '0' })
    t.teardown(() => other.try('stop', '--force'))
    const elsewhere = join(folder, 'elsewhere')
    mkdirSync(elsewhere)
    await other.text('mount', reference, elsewhere)
    t.match(await other.text('status'), dead)
    t.match(await other.json('status'), { mounts: [{ mountpoint: elsewhere }], deadMounts: [mountpoint] })
    await bobbin.text('umount', mountpoint)
    t.same(mountsBelow(mountpoint), [])
    t.match(await other.json('status'), { deadMounts: [] })
    t.ok(existsSync(mountpoint))
  },
)
