import { execFileSync } from 'node:child_process'
import { createRequire } from 'node:module'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import {
  BobbinError,
  type PhysicalKey,
  parsePackageName,
  parseTopHash,
  type Source,
} from '../../../../daemon/model/index.js'
import { parseReference, parseRegistry } from '../../../../daemon/registry/reference.js'
import {
  findTimestampMs,
  listPackages,
  listRevisions,
  manifestKey,
  resolveRevision,
} from '../../../../daemon/registry/registry.js'
import { createSource } from '../../../../daemon/source/index.js'
import { vectors } from '../../../support/vectors.js'

const A = '6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b'
const B = 'd4735e3a265e16eee03f59718b9b5d03019c07d8b6c51f90da3a666eec13ab35'
const files = createSource({ ioTimeoutMs: 5000 })
t.teardown(() => files.close())

type Folder = { [name: string]: string | Folder }

function registryOf(t: Test, named: Folder, manifests: readonly string[] = [A, B]): string {
  const packages: Folder = {}
  for (const name of manifests) packages[name] = '{}'
  return t.testdir({ '.quilt': { packages, named_packages: named } })
}

async function failureOf(promise: Promise<unknown>): Promise<BobbinError> {
  try {
    await promise
  } catch (error) {
    if (error instanceof BobbinError) return error
    throw error
  }
  throw new Error('it did not fail')
}

async function collect<T>(items: AsyncIterable<T>): Promise<T[]> {
  const all: T[] = []
  for await (const item of items) all.push(item)
  return all
}

/** The files, with the keys that were read written down. */
function recording(): Source & { readonly reads: string[] } {
  const reads: string[] = []
  return {
    reads,
    read(key: PhysicalKey, options) {
      reads.push(key.kind === 'file' ? key.path : key.key)
      return files.read(key, options)
    },
    list: (folder, options) => files.list(folder, options),
  }
}

t.test('resolveRevision reads latest, revisions and tags, with or without a newline', async t => {
  const root = registryOf(t, {
    cv: { coco: { '1700000000': A, '1700000001': B, latest: `${B}\n`, good: ` ${A}\r\n` } },
  })
  const resolve = (revision: string) => resolveRevision(files, parseReference(`${root}/cv/coco${revision}`))
  t.equal(await resolve(''), B)
  t.equal(await resolve(':latest'), B)
  t.equal(await resolve(':1700000000'), A)
  t.equal(await resolve(':good'), A)
})

t.test('resolveRevision resolves prefixes as the vectors say', async t => {
  for (const { listing, prefix, result } of vectors.short_hash_resolution) {
    const root = registryOf(t, {}, listing)
    const resolve = async () => await resolveRevision(files, parseReference(`${root}/cv/coco@${prefix}`))
    if (!result.startsWith('error')) {
      t.equal(await resolve(), result, prefix)
      continue
    }
    // quilt3 finds no match for upper case; we say what is wrong with it.
    const isUpperCase = prefix !== prefix.toLowerCase()
    const code = result.includes('multiple')
      ? 'REVISION_AMBIGUOUS'
      : result.includes('zero') && !isUpperCase
        ? 'REVISION_NOT_FOUND'
        : 'INVALID_ARGUMENT'
    t.equal((await failureOf(resolve())).code, code, prefix)
  }
})

t.test('resolveRevision lists at most ten candidates of an ambiguous prefix, and only manifests', async t => {
  const hashes = Array.from({ length: 12 }, (_, i) => `abcdef${i.toString(16)}`.padEnd(64, '0'))
  const root = registryOf(t, {}, [...hashes, '1220abcdef.parquet', 'abcdef.tmp', `${hashes[0]}.parquet`])
  const error = await failureOf(resolveRevision(files, parseReference(`${root}/cv/coco@abcdef`)))
  t.equal(error.code, 'REVISION_AMBIGUOUS')
  t.equal(error.message.match(/[0-9a-f]{64}/g)?.length, 10)
  t.match(error.message, /and more$/)
  t.equal(await resolveRevision(files, parseReference(`${root}/cv/coco@abcdefb`)), hashes[11])
})

t.test('resolveRevision asks nothing for a full hash', async t => {
  const source = recording()
  t.equal(await resolveRevision(source, parseReference(`/no/such/registry/cv/coco@${A}`)), A)
  t.same(source.reads, [])
})

t.test('resolveRevision says what a pointer holds that is not a top hash', async t => {
  const root = registryOf(t, {
    cv: { coco: { '1': '', '2': 'garbage', '3': A.toUpperCase(), '4': `${A}${A}`, latest: A } },
  })
  for (const [tag, message] of [
    ['1', /is empty/],
    ['2', /holds "garbage"/],
    ['3', /holds "6B86/],
    ['4', /not a top hash/],
  ] as const) {
    const error = await failureOf(resolveRevision(files, parseReference(`${root}/cv/coco:${tag}`)))
    t.equal(error.code, 'REVISION_NOT_FOUND')
    t.match(error.message, message)
  }
})

t.test('resolveRevision tells a missing tag, package and registry apart', async t => {
  const root = registryOf(t, {
    cv: { coco2017: { '17': A, latest: A }, coco2014: { latest: A }, zebras: { latest: A }, unlatest: { '17': A } },
  })
  const failure = (text: string) => failureOf(resolveRevision(files, parseReference(text)))
  const tag = await failure(`${root}/cv/coco2017:18`)
  t.equal(tag.code, 'REVISION_NOT_FOUND')
  t.match(tag.message, /it has :latest :17/)
  const noLatest = await failure(`${root}/cv/unlatest`)
  t.equal(noLatest.code, 'REVISION_NOT_FOUND')
  t.match(noLatest.message, /:17/)
  const name = await failure(`${root}/cv/coco217`)
  t.equal(name.code, 'PACKAGE_NOT_FOUND')
  t.match(name.message, /did you mean cv\/coco2017, cv\/coco2014$/)
  t.equal((await failure(`${root}/no/such`)).code, 'PACKAGE_NOT_FOUND')
  t.equal((await failure(`${root}/missing/no/such`)).code, 'REGISTRY_NOT_FOUND')
  t.equal((await failure(`${root}/missing/no/such@abcdef`)).code, 'REGISTRY_NOT_FOUND')
  t.equal((await failure(`${root}/no/such@abcdef`)).code, 'REVISION_NOT_FOUND')
})

t.test('listPackages lists the names of every namespace in byte order', async t => {
  const root = registryOf(t, {
    b: { two: { latest: A }, one: { latest: A } },
    a: { é: { latest: A }, 'not a name': { latest: A }, loose: 'a file' },
    file: 'a file',
  })
  t.same(await collect(listPackages(files, parseRegistry(root))), ['a/é', 'b/one', 'b/two'])
})

t.test('listPackages of an empty registry is empty, and of no registry fails', async t => {
  const root = t.testdir({})
  t.same(await collect(listPackages(files, parseRegistry(root))), [])
  const error = await failureOf(collect(listPackages(files, parseRegistry(join(root, 'missing')))))
  t.equal(error.code, 'REGISTRY_NOT_FOUND')
})

t.test('listRevisions gives revisions newest first, then tags, and leaves out what names none', async t => {
  const root = registryOf(t, {
    cv: { coco: { '999': A, '1700000001': B, '1700000000': A, '5': 'x', zz: A, latest: B } },
  })
  const name = parsePackageName('cv/coco')
  t.same(await collect(listRevisions(files, parseRegistry(root), name)), [
    { pointer: '1700000001', topHash: B, timestampMs: 1700000001000 },
    { pointer: '1700000000', topHash: A, timestampMs: 1700000000000 },
    { pointer: '999', topHash: A, timestampMs: 999000 },
    { pointer: 'latest', topHash: B, timestampMs: undefined },
    { pointer: 'zz', topHash: A, timestampMs: undefined },
  ])
  const error = await failureOf(collect(listRevisions(files, parseRegistry(root), parsePackageName('cv/coc'))))
  t.equal(error.code, 'PACKAGE_NOT_FOUND')
})

t.test('listRevisions reads pointers as they are asked for', async t => {
  const pointers: Folder = {}
  for (let i = 0; i < 200; i++) pointers[String(1700000000 + i)] = A
  const root = registryOf(t, { cv: { coco: pointers } })
  const source = recording()
  for await (const { pointer } of listRevisions(source, parseRegistry(root), parsePackageName('cv/coco'))) {
    t.equal(pointer, '1700000199')
    break
  }
  t.equal(source.reads.length, 1, 'the newest costs one read')
  const all = await collect(listRevisions(files, parseRegistry(root), parsePackageName('cv/coco')))
  t.equal(all.length, 200)
})

t.test('findTimestampMs is the time of the newest revision that has the hash', async t => {
  const root = registryOf(t, { cv: { coco: { '17': A, '18': A, '19': B, latest: B } } })
  const find = (hash: string) =>
    findTimestampMs(files, parseRegistry(root), parsePackageName('cv/coco'), parseTopHash(hash))
  t.equal(await find(A), 18_000)
  t.equal(await find(B), 19_000)
  t.equal(await find('0'.repeat(64)), undefined)
  const none = findTimestampMs(files, parseRegistry(root), parsePackageName('cv/none'), parseTopHash(A))
  t.equal(await none, undefined)
})

t.test('findTimestampMs looks at 256 revisions at most', async t => {
  const pointers: Folder = {}
  for (let i = 1000; i < 1300; i++) pointers[String(i)] = i < 1044 ? A : B
  const root = registryOf(t, { cv: { coco: pointers } })
  const source = recording()
  const found = findTimestampMs(source, parseRegistry(root), parsePackageName('cv/coco'), parseTopHash(A))
  t.equal(await found, undefined)
  t.equal(source.reads.length, 256)
})

t.test('manifestKey is where quilt3 puts manifests', async t => {
  const hash = parseTopHash(A)
  t.same(manifestKey({ kind: 's3', bucket: 'b' }, hash), { kind: 's3', bucket: 'b', key: `.quilt/packages/${A}` })
  t.same(manifestKey({ kind: 'file', path: '/r' }, hash), { kind: 'file', path: `/r/.quilt/packages/${A}` })
})

t.test('FileSource reads whole files and ranges', async t => {
  const body = Buffer.from(Array.from({ length: 1_300_000 }, (_, i) => i % 251))
  const root = t.testdir({ big: body, empty: '' })
  const read = async (name: string, range?: { start: number; length: number }) => {
    const reading = await files.read({ kind: 'file', path: join(root, name) }, range ? { range } : {})
    return { bytes: Buffer.concat(await collect(reading.chunks)), objectBytes: reading.objectBytes }
  }
  t.ok((await read('big')).bytes.equals(body))
  t.equal((await read('big')).objectBytes, 1_300_000)
  t.ok((await read('big', { start: 600_000, length: 10 })).bytes.equals(body.subarray(600_000, 600_010)))
  t.ok((await read('big', { start: 1_299_999, length: 10 })).bytes.equals(body.subarray(1_299_999)))
  t.equal((await read('big', { start: 1_400_000, length: 10 })).bytes.length, 0)
  t.equal((await read('empty')).bytes.length, 0)
})

t.test('FileSource refuses at once what is not a regular file', { timeout: 10_000 }, async t => {
  const root = t.testdir({ folder: {}, file: 'x', loop: t.fixture('symlink', 'loop') })
  execFileSync('mkfifo', [join(root, 'fifo')])
  for (const name of ['missing', 'folder', 'fifo', 'file/below', 'loop', 'nul\0', 'x'.repeat(300)]) {
    const error = await failureOf(files.read({ kind: 'file', path: join(root, name) }))
    t.equal(error.code, 'OBJECT_GONE', JSON.stringify(name.slice(0, 20)))
  }
  t.equal((await failureOf(files.read({ kind: 'file', path: '/dev/zero' }))).code, 'OBJECT_GONE')
})

t.test('FileSource lists in the byte order that S3 has', async t => {
  const root = t.testdir({ a: { x: '' }, 'a-b': '', 'a.b': '', a0: '', é: '', Z: '', '\u{1f600}': '', '\ufb01': '' })
  const names = (await collect(files.list({ kind: 'file', path: root }))).map(({ name }) => name)
  t.same(names, ['Z', 'a-b', 'a.b', 'a', 'a0', 'é', '\ufb01', '\u{1f600}'])
  const some = await collect(files.list({ kind: 'file', path: root }, { namePrefix: 'a' }))
  t.same(
    some.filter(({ isFolder }) => isFolder).map(({ name }) => name),
    ['a'],
  )
  t.same(await collect(files.list({ kind: 'file', path: join(root, 'missing') })), [])
})

t.test('FileSource and registries stop when their signal fires', async t => {
  const root = registryOf(t, { cv: { coco: { latest: A } } })
  const signal = AbortSignal.abort()
  const aborted = failureOf(resolveRevision(files, parseReference(`${root}/cv/coco`), { signal }))
  t.equal((await aborted).code, 'INTERRUPTED')
})

t.test('createSource answers no S3 call when it is offline', async t => {
  const source = createSource({ ioTimeoutMs: 5000, offline: true })
  const read = await failureOf(source.read({ kind: 's3', bucket: 'b', key: 'k' }))
  t.equal(read.code, 'UPSTREAM_UNAVAILABLE')
  t.match(read.message, /^offline: s3:\/\/b\/k/)
  const list = await failureOf(collect(source.list({ kind: 's3', bucket: 'b', key: 'k/' })))
  t.match(list.message, /^offline: /)
  const root = registryOf(t, { cv: { coco: { latest: A } } })
  t.equal(await resolveRevision(source, parseReference(`${root}/cv/coco`)), A, 'folders are still read')
})

t.test('createSource loads the AWS SDK for the first S3 call, and not before', async t => {
  const { cache } = createRequire(import.meta.url)
  const isLoaded = () => Object.keys(cache).some(path => path.includes('/@aws-sdk/'))
  const source = createSource({ ioTimeoutMs: 1000 })
  t.teardown(() => source.close())
  const root = registryOf(t, { cv: { coco: { latest: A } } })
  t.equal(await resolveRevision(source, parseReference(`${root}/cv/coco`)), A)
  t.notOk(isLoaded(), 'not for a registry in a folder')
  process.env.AWS_ENDPOINT_URL = 'http://127.0.0.1:9'
  process.env.AWS_EC2_METADATA_DISABLED = 'true'
  await failureOf(source.read({ kind: 's3', bucket: 'b', key: 'k' }))
  t.ok(isLoaded())
})

t.test('a package with more pointers than any can have is refused, and has no time (S98)', async t => {
  const registry = parseRegistry(registryOf(t, { a: { b: { 1: A, 2: A, tag: A } } }))
  const name = parsePackageName('a/b')
  const listing = collect(listRevisions(files, registry, name, { pointersMax: 2 }))
  t.match(await failureOf(listing), { code: 'PACKAGE_REFUSED', message: /^a\/b in .* has over 2 revisions and tags/ })
  t.equal(await findTimestampMs(files, registry, name, parseTopHash(A), { pointersMax: 2 }), undefined)
  t.equal(await findTimestampMs(files, registry, name, parseTopHash(A), { pointersMax: 3 }), 2000)
})
