/** Objects that lie elsewhere than the manifest in the cache says, while the registry's says where they are now. */
import { mkdirSync, mkdtempSync, readFileSync, renameSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { cannotMount } from '../support/can-mount.js'
import { Bobbin, runProgram } from '../support/cli.js'
import { startDaemon, testFolder } from '../support/daemon.js'
import { startLoader } from '../support/loader.js'
import { noise } from '../support/objects.js'
import { writeRegistry } from '../support/registry.js'

const NAME = 'moved/objects'
const KEYS = ['cat', 'install', 'lease', 'large', 'small', 'stays']
const bytesOf = (key: string) => noise(key === 'large' ? 9 * 2 ** 20 : 5000, KEYS.indexOf(key) + 1)

/** The same package, of the same top hash, whose objects lie in a folder of that name. */
async function writeFrom(registry: string, place: string) {
  const files = KEYS.map(key => [key, { bytes: bytesOf(key), physicalKey: `file://${place}/${key}` }] as const)
  return writeRegistry(registry, NAME, Object.fromEntries(files))
}

const attribute = (path: string, name: string) =>
  runProgram('python3', ['-c', 'import os, sys; print(os.getxattr(sys.argv[1], sys.argv[2]).decode())', path, name])

t.test('an object that has moved is read from where the manifest of the registry says now (S106)', async t => {
  const folder = testFolder(t)
  const registry = join(folder, 'registry')
  const before = join(registry, 'before')
  const after = join(registry, 'after')
  const written = await writeFrom(registry, before)
  // The registry's own copies, at the keys.
  renameSync(join(registry, NAME), before)
  const here = (key: string) => join(folder, 'mount', key)
  const loader = await startLoader(t, { folder })
  const { cli } = loader
  const leased = await loader.plan({ package: written.reference, select: ['lease'], batch: { global: 1 } })
  const other = new Bobbin(join(folder, 'cache-other'))
  await other.text('resolve', written.reference)
  const canMount = cannotMount() === false
  if (canMount) {
    mkdirSync(join(folder, 'mount'))
    await cli.text('mount', written.reference, join(folder, 'mount'))
    t.teardown(() => cli.try('umount', join(folder, 'mount'), '--force'))
    t.equal((await runProgram('cmp', [here('stays'), join(before, 'stays')])).status, 0)
  }

  renameSync(before, after)
  const gone = await other.try('cat', written.reference, 'cat')
  t.equal(gone.status, 10, 'the registry still says that it is there')
  t.match(gone.stderr, /no such file: .*before/)
  const again = await writeFrom(registry, after)
  t.equal(again.topHash, written.topHash)

  const { status, stderr } = await other.try('cat', written.reference, 'cat')
  t.equal(status, 0, stderr)
  const target = mkdtempSync(join(folder, 'target-'))
  t.match(await other.json('install', written.reference, target), { files: KEYS.length })
  for (const key of KEYS) t.ok(readFileSync(join(target, key)).equals(bytesOf(key)), key)

  const answer = await loader.ask(`/v1/plans/${leased.planId}/batches`)
  t.equal(answer.status, 200, String(answer.body))
  t.ok(answer.body.includes(bytesOf('lease')), 'a loader whose daemon has the package open')

  t.test('through a mount that is open', { skip: cannotMount() }, async t => {
    const inode = async (key: string) => (await runProgram('stat', ['-c', '%i', here(key)])).stdout
    const numbers = await Promise.all(KEYS.map(inode))
    for (const key of ['small', 'large'])
      t.equal((await runProgram('cmp', [here(key), join(after, key)])).status, 0, key)
    t.equal((await runProgram('cmp', [here('stays'), join(after, 'stays')])).status, 0, 'what is cached')
    t.same(await Promise.all(KEYS.map(inode)), numbers)
    const { stdout } = await attribute(here('small'), 'user.quilt.physical_key')
    t.match(stdout, /\/after\/small$/m, 'and its attribute says so')
  })
})

t.test('the same through fuse-native (S106)', { skip: cannotMount() }, async t => {
  const folder = testFolder(t)
  const registry = join(folder, 'registry')
  const written = await writeFrom(registry, join(registry, 'before'))
  const daemon = await startDaemon(t, { folder, transport: 'fuse-native' })
  const { path } = await daemon.mount(written, 'mnt')
  renameSync(join(registry, NAME), join(registry, 'after'))
  await writeFrom(registry, join(registry, 'after'))
  for (const key of ['small', 'large'])
    t.equal((await runProgram('cmp', [join(path, key), join(registry, 'after', key)])).status, 0, key)
})
