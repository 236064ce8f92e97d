/** Mountpoints that are mounts themselves, as containers give them to programs: a tmpfs, a volume, an emptyDir. */
import { mkdirSync, writeFileSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { findBobbinFuse } from '../../daemon/control/bobbin-fuse.js'
import { cannotMount, mountsBelow, run, small } from '../support/daemon.js'

t.setTimeout(300_000)

const needsRoot = cannotMount() || (process.getuid?.() !== 0 && 'needs root, to mount what is under the mount')

const needsNative = needsRoot || (findBobbinFuse().path === undefined && 'no bobbin-fuse here')

async function stage(t: Test, transport: 'native' | 'fuse-native') {
  const { daemon, written } = await small(t, { f: 'f' }, { transport })
  const at = (name: string) => join(daemon.folder, name)
  for (const name of ['tmpfs', 'full', 'bound', 'source']) mkdirSync(at(name))
  for (const name of ['tmpfs', 'full']) await run('mount', ['-t', 'tmpfs', '-o', 'size=64k', 'volume', at(name)])
  await run('mount', ['--bind', at('source'), at('bound')])
  t.teardown(async () => {
    for (const name of ['tmpfs', 'full', 'bound']) await run('umount', ['-l', at(name)])
  })
  writeFileSync(join(at('full'), 'theirs'), 'theirs')
  return { daemon, written, at }
}

t.test('an empty mountpoint that is a mount itself can be mounted on (S138)', { skip: needsNative }, async t => {
  const { daemon, written, at } = await stage(t, 'native')
  for (const name of ['tmpfs', 'bound']) {
    for (const isForced of [false, true]) {
      const { path } = await daemon.mount(written, name)
      t.equal(await readFile(join(path, 'f'), 'utf8'), 'f')
      await t.rejects(daemon.mount(written, name), { code: 'ALREADY_MOUNTED', message: /umount/ })
      await daemon.client.unmount(path, isForced)
      t.equal(mountsBelow(path).length, 1, 'what was there before stays')
    }
  }
  await t.rejects(daemon.mount(written, 'full'), { code: 'ALREADY_MOUNTED', message: /not empty \("theirs", …\)/ })
  t.equal(await readFile(join(at('full'), 'theirs'), 'utf8'), 'theirs')
})

t.test('fuse-native, which cannot do that, says so (S138)', { skip: needsRoot }, async t => {
  const { daemon, written, at } = await stage(t, 'fuse-native')
  await t.rejects(daemon.mount(written, 'tmpfs'), {
    code: 'ALREADY_MOUNTED',
    message: /volume, tmpfs\), which only bobbin-fuse/,
  })
  t.equal(mountsBelow(at('tmpfs')).length, 1)
})
