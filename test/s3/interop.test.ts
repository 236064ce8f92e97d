/**
 * Bobbin and the real quilt3 8.0.0 on the same packages, in real S3 servers: what one writes the other
 * reads, and both say the same of every byte, size, name, hash and metadata value.
 */
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { Bobbin, runProgram } from '../support/cli.js'
import { type Dump, Quilt3 } from '../support/quilt3.js'
import { type S3ServerKind, startS3 } from '../support/s3-server.js'

interface LsRow {
  readonly key: string
  readonly type: string
  readonly size: number | null
  readonly hash: string | null
  readonly hashType: string | null
  readonly physicalKey: string | null
}

/** Hashes a tree from a process of its own; prints `<sha256>  <size>  <path>` for each file. */
const HASH_TREE = `
import hashlib, os, sys
for folder, _, names in os.walk(os.fsencode(sys.argv[1])):
    for name in names:
        path = os.path.join(folder, name)
        with open(path, 'rb') as file:
            digest = hashlib.file_digest(file, 'sha256').hexdigest()
        print(digest, os.path.getsize(path), os.fsdecode(os.path.relpath(path, os.fsencode(sys.argv[1]))), sep='\\t')
`

for (const kind of ['versitygw', 'minio'] as const satisfies readonly S3ServerKind[]) {
  t.test(`quilt3 and Bobbin agree on ${kind}`, { timeout: 400_000 }, async t => {
    const folder = mkdtempSync(join(tmpdir(), 'bobbin-interop-'))
    const server = await startS3(kind)
    const quilt3 = new Quilt3(server, folder)
    const bobbin = new Bobbin(join(folder, 'cache'), server.env)
    t.teardown(async () => {
      await bobbin.try('stop', '--force')
      await server.stop()
      rmSync(folder, { recursive: true, force: true })
    })

    for (const versioned of [true, false]) {
      const bucket = versioned ? 'versioned' : 'plain'
      await t.test(`a pushed package in a ${bucket} bucket`, async t => {
        await quilt3.call('call', { client_method: 'create_bucket', Bucket: bucket })
        if (versioned) await enableVersions(quilt3, bucket)
        const source = join(folder, `source-${bucket}`)
        mkdirSync(source)
        const registry = `s3://${bucket}`
        const [first, second] = await quilt3.call<[Dump, Dump]>('push', {
          folder: source,
          registry,
          name: 'cv/interop',
        })
        const text = await quilt3.text('dump', { name: 'cv/interop', registry, top_hash: second.topHash })

        await t.test('names', t => sameNames(t, bobbin, bucket, first, second))
        for (const dump of [first, second]) {
          await t.test(`entries of ${dump.topHash.slice(0, 7)}`, t => sameEntries(t, bobbin, registry, dump))
        }
        await t.test('metadata', t => sameMetadata(t, bobbin, quilt3, `${registry}/cv/interop`, text))
        // Without versions the second push has overwritten what the first one points to.
        const mounted = versioned ? first : second
        await t.test('through the mount', t =>
          sameThroughMount(t, bobbin, folder, `${registry}/cv/interop@${mounted.topHash}`, mounted),
        )
        await t.test('folders', t => sameFolders(t, bobbin, quilt3, folder, registry, second))
        if (versioned)
          await t.test('the second revision fetches what is new', t =>
            sharedObjects(t, bobbin, folder, registry, first, second),
          )
      })
    }

    await t.test('a package made over a bucket, with and without versions', async t => {
      for (const versioned of [true, false]) {
        const source = versioned ? 'data-versioned' : 'data-plain'
        await quilt3.call('call', { client_method: 'create_bucket', Bucket: source })
        if (versioned) await enableVersions(quilt3, source)
        const dump = await quilt3.call<Dump>('package_bucket', {
          source,
          registry: 's3://versioned',
          name: `in/${source}`,
        })
        t.match(dump.entries['one.txt']!.physicalKey, versioned ? /versionId=[^n]/ : /versionId=null$/)
        await sameEntries(t, bobbin, 's3://versioned', dump, `in/${source}`)
        t.equal(await bobbin.text('cat', `s3://versioned/in/${source}`, 'two.txt'), `two of ${source}`)
      }
    })
  })
}

async function enableVersions(quilt3: Quilt3, bucket: string): Promise<void> {
  await quilt3.call('call', {
    client_method: 'put_bucket_versioning',
    Bucket: bucket,
    VersioningConfiguration: { Status: 'Enabled' },
  })
}

/** Every way to name a revision gives the same top hash as quilt3. */
async function sameNames(t: Test, bobbin: Bobbin, bucket: string, first: Dump, second: Dump): Promise<void> {
  const registry = `s3://${bucket}`
  const topHashOf = async (...args: string[]) => (await bobbin.json<{ topHash: string }>('resolve', ...args)).topHash
  t.equal(await topHashOf(`${registry}/cv/interop`), second.topHash)
  t.equal(await topHashOf(`${registry}/cv/interop:latest`), second.topHash)
  t.equal(await topHashOf(`${registry}/cv/interop@${first.topHash}`), first.topHash)
  t.equal(await topHashOf(`${registry}/cv/interop@${first.topHash.slice(0, 10)}`), first.topHash)
  t.equal(await topHashOf(`quilt+s3://${bucket}#package=cv/interop@${first.topHash}&path=README.md`), first.topHash)
  t.equal(await topHashOf('cv/interop', '--registry', registry, '--top-hash', first.topHash), first.topHash)
  t.strictSame(
    (await bobbin.rows<{ package: string; revisions: number; latest: string }>('packages', registry)).find(
      row => row.package === 'cv/interop',
    ),
    { package: 'cv/interop', revisions: 2, latest: second.topHash },
  )
  const log = await bobbin.rows<{ topHash: string; message: string; tags: string[]; timestamp: string }>(
    'log',
    `${registry}/cv/interop`,
  )
  t.strictSame(
    log.map(({ topHash, message, tags }) => ({ topHash, message, tags })),
    [
      { topHash: second.topHash, message: 'the second', tags: ['latest'] },
      { topHash: first.topHash, message: 'the first ☃', tags: [] },
    ],
  )
  t.equal(await topHashOf(`${registry}/cv/interop:${Date.parse(log[1]!.timestamp) / 1000}`), first.topHash)
}

async function sameEntries(t: Test, bobbin: Bobbin, registry: string, dump: Dump, name = 'cv/interop'): Promise<void> {
  const rows = (await bobbin.rows<LsRow>('ls', `${registry}/${name}@${dump.topHash}`, '-R')).filter(
    ({ type }) => type === 'file',
  )
  const entries = Object.entries(dump.entries)
  t.strictSame(
    rows.map(({ key }) => key),
    entries.map(([key]) => key),
    'the same names in the same order',
  )
  for (const [i, [key, entry]] of entries.entries()) {
    const { size, hash, hashType, physicalKey } = rows[i]!
    t.strictSame(
      { size, hash, hashType, physicalKey },
      { size: entry.size, hash: entry.hash, hashType: entry.hashType, physicalKey: entry.physicalKey },
      key,
    )
  }
}

/** Compared by Python, for which 1.0 and 1, or 2**60 and its neighbours, are different. */
async function sameMetadata(
  t: Test,
  bobbin: Bobbin,
  quilt3: Quilt3,
  reference: string,
  dumpText: string,
): Promise<void> {
  const dump = JSON.parse(dumpText) as Dump
  const keys = Object.keys(dump.entries)
  const ours = [await bobbin.text('meta', reference)]
  for (const key of keys) ours.push(await bobbin.text('meta', reference, key))
  const theirs = await quilt3.text('texts_of', { text: dumpText })
  const pairs = (JSON.parse(theirs) as string[]).map((text, i) => [text, ours[i]!])
  t.equal(pairs.length, keys.length + 1)
  const isSame = await quilt3.call<boolean[]>('same_json', { pairs })
  for (const [i, same] of isSame.entries()) t.ok(same, `${keys[i - 1] ?? 'package'}: ${pairs[i]!.join(' = ')}`)
}

async function sameThroughMount(t: Test, bobbin: Bobbin, folder: string, reference: string, dump: Dump): Promise<void> {
  const mountpoint = mkdtempSync(join(folder, 'mount-'))
  await bobbin.text('mount', reference, mountpoint)
  try {
    await checkTree(t, mountpoint, dump)
    const xattr = await runProgram('getfattr', [
      '--only-values',
      '-n',
      'user.quilt.hash',
      join(mountpoint, 'README.md'),
    ])
    t.equal(xattr.stdout, dump.entries['README.md']!.hash)
  } finally {
    await bobbin.text('umount', mountpoint)
  }
}

/** Every file of a tree, hashed by Python, against what quilt3's get_bytes gave. */
async function checkTree(t: Test, root: string, dump: Dump): Promise<void> {
  const { status, stdout, stderr } = await runProgram('python3', ['-c', HASH_TREE, root])
  t.equal(status, 0, stderr)
  const found = new Map(
    stdout
      .trimEnd()
      .split('\n')
      .map(line => line.split('\t') as [string, string, string])
      .map(([sha256, size, path]) => [path, { sha256, size: Number(size) }]),
  )
  t.strictSame([...found.keys()].sort(), Object.keys(dump.entries).sort())
  for (const [key, { sha256, size }] of Object.entries(dump.entries))
    t.strictSame(found.get(key), { sha256, size }, key)
}

async function sameFolders(
  t: Test,
  bobbin: Bobbin,
  quilt3: Quilt3,
  folder: string,
  registry: string,
  dump: Dump,
): Promise<void> {
  const reference = `${registry}/cv/interop@${dump.topHash}`
  const which = { name: 'cv/interop', registry, top_hash: dump.topHash }
  const ours = mkdtempSync(join(folder, 'ours-'))
  await bobbin.text('install', reference, ours)
  await checkTree(t, ours, dump)
  t.equal(await quilt3.call('verify', { ...which, folder: ours }), true, "quilt3 verifies Bobbin's folder")

  const theirs = mkdtempSync(join(folder, 'theirs-'))
  await quilt3.call('install', { ...which, dest: theirs })
  const verified = await bobbin.json<{ ok: boolean; files: number }>('verify', reference, theirs)
  t.strictSame(verified.ok, true, "Bobbin verifies quilt3's folder")
  t.equal(verified.files, Object.keys(dump.entries).length)

  for (const target of [ours, theirs]) {
    await runProgram('sh', ['-c', 'printf X | dd of="$1" bs=1 seek=5 conv=notrunc', 'sh', join(target, 'sizes/8MiB+1')])
    t.equal(await quilt3.call('verify', { ...which, folder: target }), false)
    const { status, stdout } = await bobbin.try('verify', reference, target, '--json')
    t.equal(status, 13)
    t.match(JSON.parse(stdout), { ok: false, changed: ['sizes/8MiB+1'], missing: [], extra: [] })
  }
}

async function sharedObjects(
  t: Test,
  bobbin: Bobbin,
  folder: string,
  registry: string,
  first: Dump,
  second: Dump,
): Promise<void> {
  const fetched = async () => (await bobbin.json<{ fetch: { objects: number } }>('status')).fetch.objects
  const readAll = async (dump: Dump) => {
    const mountpoint = mkdtempSync(join(folder, 'mount-'))
    await bobbin.text('mount', `${registry}/cv/interop@${dump.topHash}`, mountpoint)
    await checkTree(t, mountpoint, dump)
    await bobbin.text('umount', mountpoint)
  }
  await readAll(first)
  const before = await fetched()
  await readAll(second)
  t.equal((await fetched()) - before, 2, 'README.md and added.txt')
}
