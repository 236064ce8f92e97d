/** A reader's deadline is on the progress of its own object: what bobbin-fuse does with what the daemon says. */
import { spawn, spawnSync } from 'node:child_process'
import { mkdirSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import { findBobbinFuse } from '../../daemon/control/bobbin-fuse.js'
import { cannotMount, mountsBelow, run, testFolder, until } from '../support/daemon.js'
import { noise } from '../support/objects.js'
import { writeRegistry } from '../support/registry.js'

const PATIENCE_S = 4
const SLOW_MS = 9000

const skip = cannotMount() || (findBobbinFuse().reason ?? false)

t.test('a reader of what is stuck gets EIO, while one of what takes long gets its bytes (S92)', { skip }, async t => {
  const folder = testFolder(t)
  const [cacheDir, mountpoint] = ['cache', 'mnt'].map(name => join(folder, name)) as [string, string]
  for (const path of [cacheDir, mountpoint]) mkdirSync(path, { mode: 0o750 })
  const files = { slow: noise(100_000, 1), stuck: noise(100_000, 2), other: noise(100_000, 3) }
  const { registry, name, topHash } = await writeRegistry(join(folder, 'registry'), 'test/small', files)
  const daemon = fileURLToPath(new URL('../support/slow-daemon.js', import.meta.url))
  const command = [process.execPath, daemon, cacheDir, registry, name, topHash, mountpoint, String(SLOW_MS)]
  const own = ['--cache', cacheDir, '--patience', String(PATIENCE_S)]
  const server = spawn(findBobbinFuse().path!, [...own, '--', ...command], { stdio: ['ignore', 'ignore', 'inherit'] })
  const ended = new Promise(resolve => server.once('exit', resolve))
  t.teardown(async () => {
    server.kill('SIGTERM')
    const giveUp = setTimeout(() => server.kill('SIGKILL'), 10_000)
    await ended
    clearTimeout(giveUp)
    spawnSync('umount', ['-l', mountpoint])
  })
  await until('it is mounted', () => mountsBelow(folder).length === 1)
  const order: string[] = []
  const read = async (key: string) => {
    const ran = await run('cat', [join(mountpoint, key)])
    order.push(key)
    return ran
  }
  const [slow, stuck, other] = await Promise.all([read('slow'), read('stuck'), read('other')])
  t.ok(other.stdout.equals(files.other))
  t.ok(slow.stdout.equals(files.slow), 'twice as long as anybody is patient, but it went on')
  t.not(stuck.status, 0)
  t.match(stuck.stderr, /Input\/output error/)
  t.same(order, ['other', 'stuck', 'slow'])
})
