/** Mounts of users that are not root: through fusermount3, and in a user namespace of their own. */
import { chownSync, mkdirSync } from 'node:fs'
import { chmod } from 'node:fs/promises'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { bodyOf, cannotMount, mountsBelow, run, startDaemon, testFolder } from '../support/daemon.js'
import { noise } from '../support/objects.js'
import { writeRegistry } from '../support/registry.js'
import { skipTest } from '../support/skips.js'

t.setTimeout(600_000)

const NOBODY = 65_534
const AS_NOBODY = ['setpriv', `--reuid=${NOBODY}`, `--regid=${NOBODY}`, '--clear-groups']
const bytes = noise(300_000, 1)

function whyNot(): string | false {
  if (process.getuid?.() !== 0) return 'needs root, to become another user'
  return cannotMount()
}

/**
 * In a mount namespace of its own, where /dev/fuse is everybody's, as on most systems; some containers and
 * small machines have it for root alone.
 */
async function startAsNobody(t: Test, then: readonly string[] = []) {
  const folder = testFolder(t)
  const written = await writeRegistry(join(folder, 'registry'), 'test/small', { 'd/f': bytes })
  const mountpoint = join(folder, 'mnt')
  const cacheDir = join(folder, 'cache')
  await chmod(folder, 0o755)
  for (const path of [mountpoint, cacheDir]) {
    mkdirSync(path, { mode: 0o750 })
    chownSync(path, NOBODY, NOBODY)
  }
  const device = join(folder, 'fuse')
  const script = `mknod ${device} c 10 229; chmod 666 ${device}; mount --bind ${device} /dev/fuse; exec "$@"`
  const daemon = await startDaemon(t, {
    folder,
    cacheDir,
    transport: 'native',
    prefix: ['unshare', '-m', '--propagation', 'private', 'sh', '-ec', script, 'sh', ...AS_NOBODY, ...then],
    env: { HOME: folder, XDG_CACHE_HOME: cacheDir },
  })
  const inside = (...words: string[]) => run('nsenter', ['-t', `${daemon.process.pid}`, '--mount', ...words])
  const mounts = async () =>
    (await inside('cat', '/proc/self/mountinfo')).stdout
      .toString()
      .split('\n')
      .filter(line => line.includes(mountpoint))
  return { daemon, written, mountpoint, inside, mounts }
}

t.test('a user mounts through fusermount3, for itself alone', { skip: whyNot() }, async t => {
  const { daemon, written, mountpoint, inside, mounts } = await startAsNobody(t)
  const facts = await daemon.client.mount(bodyOf(written, mountpoint))
  t.match(facts, { openMode: 'cached', openModeReason: /CAP_SYS_ADMIN/, transport: 'native' })
  t.match(await mounts(), [/ - fuse\.bobbin bobbin:test\/small@.*user_id=65534/])
  t.ok((await inside(...AS_NOBODY, 'cat', join(mountpoint, 'd/f'))).stdout.equals(bytes))
  t.match(await inside('cat', join(mountpoint, 'd/f')), { status: 1, stderr: /Permission denied/ }, 'not even root')
  await daemon.client.unmount(mountpoint, false)
  t.same(await mounts(), [])
  await daemon.client.mount(bodyOf(written, mountpoint))
  daemon.process.kill('SIGTERM')
  t.equal(await daemon.ended, 0)
})

t.test('a user that lets others in is told what /etc/fuse.conf has to say', { skip: whyNot() }, async t => {
  const { daemon, written, mountpoint, inside, mounts } = await startAsNobody(t)
  const mount = () => daemon.client.mount({ ...bodyOf(written, mountpoint), allowOther: true })
  const own = join(daemon.folder, 'fuse.conf')
  const configure = (text: string) =>
    inside('sh', '-ec', `touch /etc/fuse.conf; echo "${text}" > ${own}; mount --bind ${own} /etc/fuse.conf`)
  await configure('')
  await t.rejects(mount(), { code: 'FUSE_UNAVAILABLE', message: /user_allow_other/ })
  t.same(await mounts(), [])
  await configure('user_allow_other')
  await mount()
  t.ok((await inside('cat', join(mountpoint, 'd/f'))).stdout.equals(bytes), 'as root')
})

t.test('a folder of somebody else is no mountpoint, and no fault of FUSE', { skip: whyNot() }, async t => {
  const { daemon, written, mountpoint, mounts } = await startAsNobody(t)
  chownSync(mountpoint, 0, 0)
  await chmod(mountpoint, 0o755)
  const mount = daemon.client.mount(bodyOf(written, mountpoint))
  await t.rejects(mount, { code: 'MOUNTPOINT_UNUSABLE', message: /belongs to somebody else/ })
  t.same(await mounts(), [])
})

t.test('in a user namespace it mounts without any helper, in cached mode', { skip: whyNot() }, async t => {
  const namespace = ['unshare', '--user', '--map-root-user', '--mount', '--propagation', 'private']
  const [command, ...args] = [...AS_NOBODY, ...namespace, 'true']
  if ((await run(command!, args)).status !== 0) return skipTest(t, 'there are no user namespaces here')
  const { daemon, written, mountpoint, inside, mounts } = await startAsNobody(t, namespace)
  const facts = await daemon.client.mount(bodyOf(written, mountpoint))
  t.match(facts, { openMode: 'cached', openModeReason: /own user namespace/ })
  t.same(mountsBelow(daemon.folder), [], 'nobody outside sees it')
  t.ok(
    (
      await inside(
        'nsenter',
        '-t',
        `${daemon.process.pid}`,
        '-U',
        '--preserve-credentials',
        'cat',
        join(mountpoint, 'd/f'),
      )
    ).stdout.equals(bytes),
  )
  await daemon.client.unmount(mountpoint, false)
  t.same(await mounts(), [])
})
