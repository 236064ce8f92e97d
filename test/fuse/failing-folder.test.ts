/** Registries and objects in folders of a file system that fails for a while, as NFS does when its server is away. */
import { mkdtempSync, rmSync, utimesSync, writeFileSync } from 'node:fs'
import { constants, tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { parsePhysicalKey } from '../../daemon/model/index.js'
import { createSource } from '../../daemon/source/index.js'
import { cannotMount } from '../support/can-mount.js'
import { Bobbin } from '../support/cli.js'
import { failingFolder } from '../support/failing-folder.js'
import { noise } from '../support/objects.js'
import { writeRegistry } from '../support/registry.js'

t.setTimeout(120_000)

const { EIO, EACCES } = constants.errno
/** Linux's; Node.js does not name it. */
const ESTALE = 116
const AWAY_MS = 1000
const MIB = 2 ** 20

async function stage(t: { teardown(end: () => unknown): void }) {
  const folder = mkdtempSync(join(tmpdir(), 'bobbin-failing-'))
  t.teardown(() => rmSync(folder, { recursive: true, force: true }))
  const real = join(folder, 'real')
  const bytes = noise(3 * MIB, 1)
  await writeRegistry(real, 'ns/pkg', { large: { bytes, physicalKey: `file://${folder}/nfs/ns/pkg/large` } })
  const nfs = await failingFolder(t, real, join(folder, 'nfs'))
  const open = (ioTimeoutMs: number) => {
    const source = createSource({ ioTimeoutMs, offline: false })
    t.teardown(() => source.close())
    return source
  }
  const key = parsePhysicalKey(`file://${nfs.path}/ns/pkg/large`)
  const away = async (errno: number) => {
    nfs.fail(errno)
    await sleep(AWAY_MS)
    nfs.heal()
  }
  return { folder, real, nfs, bytes, open, key, away }
}

async function allOf(chunks: AsyncIterable<Uint8Array>): Promise<Buffer> {
  const all: Uint8Array[] = []
  for await (const chunk of chunks) all.push(chunk)
  return Buffer.concat(all)
}

t.test('what may pass is asked again: opening, reading, listing (S179)', { skip: cannotMount() }, async t => {
  const { nfs, bytes, open, key, away } = await stage(t)
  const source = open(60_000)
  for (const errno of [EIO, ESTALE]) {
    nfs.fail(errno)
    const reading = source.read(key)
    await away(errno)
    const { chunks } = await reading
    const iterator = chunks[Symbol.asyncIterator]()
    const begin = (await iterator.next()).value as Uint8Array
    const healed = away(errno)
    const rest = await allOf({ [Symbol.asyncIterator]: () => iterator })
    await healed
    t.ok(Buffer.concat([begin, rest]).equals(bytes), `errno ${errno}: the same bytes`)

    nfs.fail(errno)
    const listing = (async () => {
      const names: string[] = []
      for await (const { name } of source.list(parsePhysicalKey(`file://${nfs.path}/ns/pkg`))) names.push(name)
      return names
    })()
    await away(errno)
    t.strictSame(await listing, ['large'])
  }
})

t.test(
  'what does not pass is an error: with its reason, after --io-timeout or at once (S179)',
  { skip: cannotMount() },
  async t => {
    const { folder, real, nfs, open, key } = await stage(t)
    nfs.fail(EACCES)
    await t.rejects(open(600_000).read(key), { code: 'ACCESS_DENIED' }, 'not after ten minutes')
    nfs.fail(EIO)
    const [, { status, stderr }] = await Promise.all([
      t.rejects(open(2000).read(key), {
        code: 'UPSTREAM_UNAVAILABLE',
        message: /no progress on .* in \d+ tries: .*EIO/,
      }),
      new Bobbin(join(folder, 'cache'), {}).try('ls', `file://${nfs.path}/ns/pkg`, '--io-timeout', '6s'),
    ])
    t.equal(status, 75)
    t.match(stderr, /^bobbin: waiting for \/.*\/nfs\/\.quilt\/\S* \(EIO.*\), trying again until \d\d:\d\d:\d\d/m)
    nfs.heal()

    const { chunks } = await open(60_000).read(key)
    const iterator = chunks[Symbol.asyncIterator]()
    await iterator.next()
    nfs.fail(ESTALE)
    const rest = allOf({ [Symbol.asyncIterator]: () => iterator })
    const path = join(real, 'ns', 'pkg', 'large')
    writeFileSync(path, noise(3 * MIB, 2))
    utimesSync(path, 1, 1)
    await sleep(AWAY_MS)
    nfs.heal()
    await t.rejects(rest, { code: 'UPSTREAM_UNAVAILABLE', message: /was changed while it was read/ })
  },
)
