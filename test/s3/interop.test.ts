/**
 * Bobbin and the real quilt3 8.0.0 on the same packages, in real S3 servers: what one writes the other
 * reads, and both say the same of every byte, size, name, hash and metadata value.
 *
 * Mounts are read by child processes with a time-out: one that hangs fails a test, and stops nothing.
 */
import {
  appendFileSync,
  closeSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readSync,
  rmSync,
  writeFileSync,
  writeSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { cannotMount } from '../support/can-mount.js'
import { Bobbin, runProgram } from '../support/cli.js'
import { type FaultProxy, startFaultProxy } from '../support/fault-proxy.js'
import { type Dump, Quilt3 } from '../support/quilt3.js'
import { type S3ServerKind, startS3 } from '../support/s3-server.js'

const MIB = 2 ** 20
const NAME = 'cv/interop'
/** Of one server, on a slow machine with others at work. */
const TIMEOUT_MS = 900_000

interface LsRow {
  readonly key: string
  readonly type: string
  readonly size: number | null
  readonly hash: string | null
  readonly hashType: string | null
  readonly physicalKey: string | null
}

/** One server with everything that is asked of it. */
interface Stage {
  readonly quilt3: Quilt3
  readonly bobbin: Bobbin
  /** Between Bobbin and the server; it counts. */
  readonly proxy: FaultProxy
  readonly folder: string
}

/** Two revisions in a bucket, as quilt3 sees them. */
interface Pushed {
  readonly registry: string
  readonly first: Dump
  readonly second: Dump
  /** Both, as JSON text. */
  readonly dumps: string
}

t.setTimeout(2 * TIMEOUT_MS)

for (const kind of ['versitygw', 'minio'] as const satisfies readonly S3ServerKind[]) {
  t.test(`quilt3 and Bobbin agree on ${kind}`, { timeout: TIMEOUT_MS, skip: cannotMount() }, async t => {
    const stage = await setStage(t, kind)

    await t.test('in a versioned bucket', async t => {
      const pushed = await push(stage, 'versioned', { isVersioned: true, largest: 100 * MIB })
      await t.test('every name of a revision', t => sameNames(t, stage, pushed))
      await t.test('entries of the first revision', t => sameEntries(t, stage, pushed.registry, NAME, pushed.first))
      await t.test('entries of the second revision', t => sameEntries(t, stage, pushed.registry, NAME, pushed.second))
      await t.test('metadata (S1)', t => sameMetadata(t, stage, pushed))
      await t.test('bytes through the mount (S5, S9, S13)', t => sameMounts(t, stage, pushed))
      await t.test('folders, both ways (S20)', t => sameFolders(t, stage, pushed))
    })

    await t.test('in a bucket without versions', async t => {
      const pushed = await push(stage, 'plain', { isVersioned: false, largest: MIB })
      t.notOk(JSON.stringify(pushed.second).includes('versionId='))
      // The second push has replaced the first one's README.md, so only the second can be read whole.
      await t.test('entries', t => sameEntries(t, stage, pushed.registry, NAME, pushed.second))
      await t.test('bytes through the mount', async t => {
        const mountpoint = await mount(stage, `${pushed.registry}/${NAME}`)
        await sameTree(t, stage, mountpoint, pushed.second)
        await stage.bobbin.text('umount', mountpoint)
      })
      await t.test('damaged folders (S20, S21)', t => sameVerdicts(t, stage, pushed))
    })

    for (const [bucket, isVersioned, versionId] of [
      ['data-versioned', true, /\?versionId=(?!null$)./],
      ['data-plain', false, /\?versionId=null$/],
    ] as const) {
      await t.test(`over the objects of ${bucket}, where they lie`, async t => {
        await stage.quilt3.call('make_bucket', { name: bucket, versioned: isVersioned })
        const registry = 's3://versioned'
        const name = `in/${bucket}`
        const dump = await stage.quilt3.call<Dump>('package_bucket', { source: bucket, registry, name })
        for (const { physicalKey } of Object.values(dump.entries)) t.match(physicalKey, versionId)
        await sameEntries(t, stage, registry, name, dump)
        await sameInstalled(t, stage, registry, name, dump)
        t.equal(await stage.bobbin.text('cat', `${registry}/${name}`, 'two.txt'), `two of ${bucket}`)
      })
    }

    for (const hashType of ['SHA256', 'CRC64NVME']) {
      await t.test(`with ${hashType} hashes`, async t => {
        const registry = 's3://versioned'
        const name = `typed/${hashType}`
        const args = { source: 'plain', registry, name, hash_type: hashType }
        const dump = await stage.quilt3.call<Dump>('package_typed', args)
        for (const entry of Object.values(dump.entries)) t.equal(entry.hashType, hashType)
        await sameEntries(t, stage, registry, name, dump)
        const mountpoint = await mount(stage, `${registry}/${name}`)
        await sameTree(t, stage, mountpoint, dump)
        const which = { name, registry, top_hash: dump.topHash }
        t.equal(await stage.quilt3.call('verify', { ...which, folder: mountpoint }), true, 'quilt3 verifies the mount')
        const { stdout } = await stage.bobbin.try('verify', `${registry}/${name}`, mountpoint, '--json')
        t.match(JSON.parse(stdout), { ok: true }, 'and so does Bobbin')
        await stage.bobbin.text('umount', mountpoint)
      })
    }

    await t.test('packages lists them all', async t => {
      t.strictSame((await stage.bobbin.text('packages', 's3://versioned')).trimEnd().split('\n'), [
        NAME,
        'in/data-plain',
        'in/data-versioned',
        'typed/CRC64NVME',
        'typed/SHA256',
      ])
    })
  })
}

async function setStage(t: Test, kind: S3ServerKind): Promise<Stage> {
  const folder = mkdtempSync(join(tmpdir(), 'bobbin-interop-'))
  const server = await startS3(kind)
  const proxy = await startFaultProxy(server.endpoint)
  // Nothing of this machine's: neither Quilt's login nor settings.
  const env = {
    ...server.env,
    HOME: folder,
    XDG_DATA_HOME: join(folder, 'data'),
    XDG_CONFIG_HOME: join(folder, 'config'),
  }
  const bobbin = new Bobbin(join(folder, 'cache'), { ...env, AWS_ENDPOINT_URL: proxy.endpoint })
  t.teardown(async () => {
    await bobbin.try('stop', '--force')
    await proxy.stop()
    await server.stop()
    rmSync(folder, { recursive: true, force: true })
  })
  return { quilt3: new Quilt3(server, folder), bobbin, proxy, folder }
}

async function push(
  { quilt3, folder }: Stage,
  bucket: string,
  { isVersioned, largest }: { readonly isVersioned: boolean; readonly largest: number },
): Promise<Pushed> {
  await quilt3.call('make_bucket', { name: bucket, versioned: isVersioned })
  const source = join(folder, `source-${bucket}`)
  mkdirSync(source)
  const registry = `s3://${bucket}`
  const dumps = await quilt3.text('push', { folder: source, registry, name: NAME, largest })
  rmSync(source, { recursive: true })
  const [first, second] = JSON.parse(dumps) as [Dump, Dump]
  return { registry, first, second, dumps }
}

/** Every way to name a revision gives the same top hash as quilt3. */
async function sameNames(t: Test, { bobbin }: Stage, { registry, first, second }: Pushed): Promise<void> {
  const topHashOf = async (...args: string[]) => (await bobbin.json<{ topHash: string }>('resolve', ...args)).topHash
  const reference = `${registry}/${NAME}`
  t.equal(await topHashOf(reference), second.topHash)
  t.equal(await topHashOf(`${reference}:latest`), second.topHash)
  t.equal(await topHashOf(`${reference}@${first.topHash}`), first.topHash)
  t.equal(await topHashOf(`${reference}@${first.topHash.slice(0, 10)}`), first.topHash)
  t.equal(await topHashOf(`quilt+${registry}#package=${NAME}@${first.topHash}&path=README.md`), first.topHash)
  t.equal(await topHashOf(NAME, '--registry', registry, '--top-hash', first.topHash), first.topHash)
  t.strictSame(await bobbin.rows('packages', registry), [{ package: NAME, revisions: 2, latest: second.topHash }])
  const log = await bobbin.rows<{ topHash: string; message: string; tags: string[]; timestamp: string }>(
    'log',
    reference,
  )
  t.strictSame(
    log.map(({ topHash, message, tags }) => ({ topHash, message, tags })),
    [
      { topHash: second.topHash, message: 'the second', tags: ['latest'] },
      { topHash: first.topHash, message: 'the first ☃', tags: [] },
    ],
  )
  t.equal(await topHashOf(`${reference}:${Date.parse(log[1]!.timestamp) / 1000}`), first.topHash)
}

async function sameEntries(t: Test, { bobbin }: Stage, registry: string, name: string, dump: Dump): Promise<void> {
  const rows = await bobbin.rows<LsRow>('ls', `${registry}/${name}@${dump.topHash}`, '-R')
  const files = rows.filter(({ type }) => type === 'file')
  const entries = Object.entries(dump.entries)
  t.strictSame(
    files.map(({ key }) => key),
    entries.map(([key]) => key),
    'the same names in the same order',
  )
  for (const [i, [key, entry]] of entries.entries()) {
    const { size, hash, hashType, physicalKey } = files[i]!
    t.strictSame(
      { size, hash, hashType, physicalKey },
      { size: entry.size, hash: entry.hash, hashType: entry.hashType, physicalKey: entry.physicalKey },
      key,
    )
  }
  const folders = rows.filter(({ type }) => type === 'directory').map(({ key }) => key.slice(0, -1))
  t.strictSame(folders.sort(), Object.keys(dump.directories).sort(), 'the same directories')
}

/** Compared by Python, for which 1.0 and 1, or 2**60 and its neighbours, are different. */
async function sameMetadata(t: Test, { quilt3, bobbin }: Stage, { registry, first, second, dumps }: Pushed) {
  for (const [which, { topHash }] of [first, second].entries()) {
    const reference = `${registry}/${NAME}@${topHash}`
    const rows = await bobbin.text('ls', reference, '-R', '--json')
    const texts: Record<string, string> = { '': await bobbin.text('meta', reference) }
    if (which === 0) {
      for (const key of ['nested/deep/er/file.txt', 'unicode/\u{1f600} emoji.txt', 'nested/', 'unicode/'])
        texts[key] = await bobbin.text('meta', reference, key)
      const wrong = rows.replace('9007199254740993', '9007199254740992')
      t.strictSame(
        await quilt3.call('metadata_differences', { dumps, which, rows: wrong, texts }),
        ['nested/deep/er/file.txt'],
        'what JavaScript would make of it is noticed',
      )
    }
    t.strictSame(await quilt3.call('metadata_differences', { dumps, which, rows, texts }), [])
  }
}

async function mount({ bobbin, folder }: Stage, reference: string): Promise<string> {
  const mountpoint = mkdtempSync(join(folder, 'mount-'))
  await bobbin.text('mount', reference, mountpoint)
  return mountpoint
}

/** Both revisions, mounted side by side; of the second only what the first has not is fetched. */
async function sameMounts(t: Test, stage: Stage, { registry, first, second }: Pushed): Promise<void> {
  const { bobbin, proxy } = stage
  const fetched = async () => (await bobbin.json<{ fetch: { objects: number } }>('status')).fetch.objects
  const objectsRead = () =>
    proxy.requests.filter(({ method, url }) => method === 'GET' && url.includes(`/${NAME}/`) && !url.includes('.quilt'))

  const one = await mount(stage, `${registry}/${NAME}@${first.topHash}`)
  await sameTree(t, stage, one, first)
  const different = new Set(Object.values(first.entries).map(({ hash }) => hash))
  t.equal(await fetched(), different.size, 'equal objects are fetched once')

  const before = await fetched()
  proxy.clear()
  const two = await mount(stage, `${registry}/${NAME}@${second.topHash.slice(0, 8)}`)
  await sameTree(t, stage, two, second)
  t.equal((await fetched()) - before, 2)
  t.strictSame(
    objectsRead()
      .map(({ url }) => decodeURIComponent(url.split('?')[0]!.split(`/${NAME}/`)[1]!))
      .sort(),
    ['README.md', 'added.txt'],
    'nothing else is asked of the server',
  )

  const attribute = async (name: string, path: string) =>
    (await runProgram('getfattr', ['--only-values', '-n', `user.quilt.${name}`, path])).stdout
  const { hash, physicalKey } = first.entries['README.md']!
  t.equal(await attribute('hash', join(one, 'README.md')), hash)
  t.equal(await attribute('physical_key', join(one, 'README.md')), physicalKey)
  t.equal(await attribute('top_hash', one), first.topHash)
  for (const mountpoint of [one, two]) await bobbin.text('umount', mountpoint)
}

/** Every file of a tree, hashed by Python, against the bytes that quilt3 read. */
async function sameTree(t: Test, { quilt3 }: Stage, root: string, dump: Dump): Promise<void> {
  const found = await quilt3.call<Record<string, { size: number; sha256: string }>>('hash_tree', { folder: root })
  t.strictSame(Object.keys(found).sort(), Object.keys(dump.entries).sort(), 'the same names')
  for (const [key, { size, sha256 }] of Object.entries(dump.entries)) t.strictSame(found[key], { size, sha256 }, key)
}

/** A new folder by `install`, which both then verify. */
async function sameInstalled(t: Test, stage: Stage, registry: string, name: string, dump: Dump): Promise<string> {
  const { quilt3, bobbin, folder } = stage
  const target = mkdtempSync(join(folder, 'ours-'))
  const reference = `${registry}/${name}@${dump.topHash}`
  const { files } = await bobbin.json<{ files: number }>('install', reference, target)
  t.equal(files, Object.keys(dump.entries).length)
  t.equal(await quilt3.call('verify', { name, registry, top_hash: dump.topHash, folder: target }), true)
  return target
}

async function sameFolders(t: Test, stage: Stage, { registry, first, second }: Pushed): Promise<void> {
  const { quilt3, bobbin, folder, proxy } = stage
  const reference = `${registry}/${NAME}@${second.topHash}`
  const which = { name: NAME, registry, top_hash: second.topHash }

  // Into a folder that has the first revision; a cache of its own, so that every byte comes from the server.
  const updated = mkdtempSync(join(folder, 'updated-'))
  const cache = ['--cache', join(folder, 'cache-of-install')]
  await bobbin.text('install', `${registry}/${NAME}@${first.topHash}`, updated, ...cache)
  proxy.clear()
  const counts = await bobbin.json('install', reference, updated, ...cache)
  const files = Object.keys(second.entries).length
  t.match(counts, { files, fetched: 2, reused: files - 2 })
  t.equal(
    proxy.requests.filter(({ url }) => url.includes(`/${NAME}/sizes/`)).length,
    0,
    'what is shared is not asked for',
  )
  t.match(await verdict(bobbin, reference, updated), { status: 13, changed: [], missing: [], extra: ['nested/a'] })
  t.equal(await quilt3.call('verify', { ...which, folder: updated }), false)
  rmSync(join(updated, 'nested/a'))
  t.match(await verdict(bobbin, reference, updated), { status: 0, ok: true, files })

  const theirs = mkdtempSync(join(folder, 'theirs-'))
  await quilt3.call('install', { ...which, dest: theirs })
  t.match(await verdict(bobbin, reference, theirs), { status: 0, ok: true, files }, "Bobbin verifies quilt3's folder")

  const ours = await sameInstalled(t, stage, registry, NAME, second)
  const command = ['verify', NAME, '--registry', registry, '--top-hash', second.topHash, '--dir', ours]
  t.equal((await quilt3.command(...command)).status, 0, "quilt3's command verifies Bobbin's folder")
  await sameTree(t, stage, ours, second)
}

/** Of one damage more each time; then all of it is mended. */
async function sameVerdicts(t: Test, stage: Stage, { registry, second }: Pushed): Promise<void> {
  const { quilt3, bobbin } = stage
  const reference = `${registry}/${NAME}@${second.topHash}`
  const ours = await sameInstalled(t, stage, registry, NAME, second)
  const theirVerdict = () => quilt3.call('verify', { name: NAME, registry, top_hash: second.topHash, folder: ours })
  for (const [damage, expected] of [
    [() => flipByte(join(ours, 'sizes/8MiB+1'), 8 * MIB), { changed: ['sizes/8MiB+1'], missing: [], extra: [] }],
    [() => appendFileSync(join(ours, 'empty'), 'x'), { changed: ['empty', 'sizes/8MiB+1'], missing: [], extra: [] }],
    [() => rmSync(join(ours, 'nested-b')), { missing: ['nested-b'], extra: [] }],
    [() => writeFileSync(join(ours, 'more'), ''), { missing: ['nested-b'], extra: ['more'] }],
  ] as const) {
    damage()
    t.equal(await theirVerdict(), false)
    t.match(await verdict(bobbin, reference, ours), { status: 13, ok: false, ...expected })
  }
  rmSync(join(ours, 'more'))
  const files = Object.keys(second.entries).length
  t.match(await bobbin.json('install', reference, ours), { files })
  t.equal(await theirVerdict(), true, 'install has mended it')
  t.strictSame(
    readdirSync(ours).filter(name => name.startsWith('.')),
    ['.hidden'],
    'and left nothing else',
  )
}

async function verdict(bobbin: Bobbin, reference: string, target: string): Promise<object> {
  const { status, stdout } = await bobbin.try('verify', reference, target, '--json')
  return { status, ...JSON.parse(stdout) }
}

function flipByte(path: string, at: number): void {
  const file = openSync(path, 'r+')
  const byte = Buffer.alloc(1)
  readSync(file, byte, 0, 1, at)
  byte[0]! ^= 1
  writeSync(file, byte, 0, 1, at)
  closeSync(file)
}
