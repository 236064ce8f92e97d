/** A cache that somebody deletes under a living daemon, in part or as a whole. */
import { existsSync, readFileSync, rmSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import t from 'tap'
import { findBobbinFuse } from '../../daemon/control/bobbin-fuse.js'
import type { TransportName } from '../../daemon/mount/transport.js'
import { cannotMount, mountsBelow, small } from '../support/daemon.js'
import { noise } from '../support/objects.js'

const FILES = Object.fromEntries(Array.from({ length: 8 }, (_, i) => [`${i}`, noise(20_000, i + 1)]))

for (const transport of ['native', 'fuse-native'] as const satisfies readonly TransportName[]) {
  const skip = cannotMount() || (transport === 'native' && (findBobbinFuse().reason ?? false))

  t.test(`folders of the cache that are deleted are made again, ${transport} (S110)`, { skip }, async t => {
    const { daemon, written } = await small(t, FILES, { transport })
    const { path } = await daemon.mount(written, 'mnt')
    const isRight = async (key: string) => t.ok((await readFile(join(path, key))).equals(FILES[key]!), key)
    await isRight('0')
    let next = 1
    for (const folders of [['objects'], ['tmp'], ['objects', 'tmp', 'packages', 'access']]) {
      for (const folder of folders) rmSync(join(daemon.cacheDir, folder), { recursive: true, force: true })
      await isRight(`${next++}`)
      await isRight('0')
    }
    t.match(daemon.log(), /somebody has deleted folders of the cache/)
    const other = await daemon.mount(written, 'other')
    t.ok((await readFile(join(other.path, '7'))).equals(FILES['7']!), 'and a new mount lives')
    const { cache } = await daemon.client.status()
    t.equal(cache.objects, 3, 'those that came since, and no others')
  })

  t.test(
    `a daemon whose cache is deleted ends with its mounts, and says so, ${transport} (S110)`,
    { skip },
    async t => {
      const { daemon, written } = await small(t, FILES, { transport })
      const { path } = await daemon.mount(written, 'mnt')
      await readFile(join(path, '0'))
      rmSync(daemon.cacheDir, { recursive: true })
      t.equal(await daemon.ended, 0)
      t.same(mountsBelow(daemon.folder), [])
      t.match(daemon.log(), /somebody has removed the cache .*: the daemon ends, and its mounts with it/)
      t.notOk(existsSync(join(daemon.cacheDir, 'objects')))
      t.ok(readFileSync(written.paths.get('0')!).length > 0)
    },
  )
}

t.test(
  'a daemon whose socket is deleted ends with its mounts, and says so (S110)',
  { skip: cannotMount() },
  async t => {
    const { daemon, written } = await small(t, FILES, { transport: 'native' })
    await daemon.mount(written, 'mnt')
    rmSync(daemon.client.socketPath)
    t.equal(await daemon.ended, 0)
    t.same(mountsBelow(daemon.folder), [])
    t.match(daemon.log(), /somebody has removed the socket/)
  },
)
