/**
 * Packages that are changed, copied, made of objects that lie in S3 already, rolled back and deleted: equal to what the real
 * quilt3 8.0.0 makes, in real S3 servers.
 */
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { PutObjectCommand } from '@aws-sdk/client-s3'
import t, { type Test } from 'tap'
import { Bobbin } from '../support/cli.js'
import { type FaultProxy, startFaultProxy } from '../support/fault-proxy.js'
import { noise } from '../support/objects.js'
import { type Dump, Quilt3 } from '../support/quilt3.js'
import { type S3Server, s3ClientOf, startS3 } from '../support/s3-server.js'

const MIB = 2 ** 20
const TIMEOUT_MS = 600_000

interface Stage {
  readonly server: S3Server
  readonly quilt3: Quilt3
  readonly bobbin: Bobbin
  /** Between Bobbin and the server; it counts. */
  readonly proxy: FaultProxy
  readonly folder: string
}

interface Resolved {
  readonly topHash: string
  readonly entries: number
}

t.setTimeout(2 * TIMEOUT_MS)

for (const kind of ['versitygw', 'minio'] as const) {
  t.test(`writing in ${kind}`, { timeout: TIMEOUT_MS }, async t => {
    const stage = await setStage(t, await startS3(kind))
    for (const [name, versioned] of [
      ['versioned', true],
      ['plain', false],
      ['other', true],
      ['data', true],
    ] as const) {
      await stage.quilt3.call('make_bucket', { name, versioned })
    }
    if (kind === 'versitygw') {
      await t.test('metadata of entries (S150)', t => metadata(t, stage))
      await t.test('an edited package (S151)', t => edited(t, stage))
      await t.test('rolled back and deleted (S154)', t => rolledBack(t, stage))
      await t.test("what is registered is quilt3's (S156)", t => registered(t, stage))
    }
    for (const registry of ['s3://other', 's3://plain']) {
      await t.test(`a copy in ${registry} (S152)`, t => copied(t, stage, registry))
    }
    await t.test('objects that lie in S3 (S153)', t => objects(t, stage))
  })
}

async function setStage(t: Test, server: S3Server): Promise<Stage> {
  const folder = mkdtempSync(join(tmpdir(), 'bobbin-writing-'))
  const proxy = await startFaultProxy(server.endpoint)
  const own = { HOME: folder, XDG_DATA_HOME: join(folder, 'data'), XDG_CONFIG_HOME: join(folder, 'config') }
  t.teardown(async () => {
    await proxy.stop()
    await server.stop()
    rmSync(folder, { recursive: true, force: true })
  })
  const bobbin = new Bobbin(join(folder, 'cache'), { ...server.env, ...own, AWS_ENDPOINT_URL: proxy.endpoint })
  return { server, quilt3: new Quilt3(server, folder), bobbin, proxy, folder }
}

function folderOf({ folder }: Stage, files: Readonly<Record<string, string | Uint8Array>>): string {
  const path = mkdtempSync(join(folder, 'source-'))
  for (const [key, bytes] of Object.entries(files)) {
    mkdirSync(dirname(join(path, key)), { recursive: true })
    writeFileSync(join(path, key), bytes)
  }
  return path
}

/** Whether quilt3 reads the same package under the name: rows, bytes and top hash. */
async function isSame(t: Test, { quilt3 }: Stage, registry: string, name: string, topHash: string, expected: Dump) {
  t.equal(topHash, expected.topHash, 'the top hash')
  const dump = await quilt3.call<Dump>('dump', { name, registry, top_hash: topHash })
  t.equal(dump.topHash, topHash, 'quilt3 works out the same one')
  t.strictSame(dump.directories, expected.directories)
  const bytesOf = (of: Dump) => Object.entries(of.entries).map(([key, { sha256, meta }]) => [key, sha256, meta])
  t.strictSame(bytesOf(dump), bytesOf(expected))
  return dump
}

const COCO = `{"info": {}, "images": [{"id": 7, "file_name": "train/1.jpg"}, {"file_name": "val/1.jpg", "id": 8}, {"id": 9, "file_name": "1.jpg"}],
  "annotations": [{"id": 1, "image_id": 7, "category_id": 17, "bbox": [1.0, 2.50, 3, 4e2], "category": "overridden"},
    {"id": 2, "image_id": 9, "category_id": 3, "area": 9007199254740993}, {"id": 3, "image_id": 7, "category_id": 3}],
  "categories": [{"id": 3, "name": "car", "supercategory": "vehicle"}, {"id": 17, "name": "c\\u00e4t", "supercategory": "animal"}]}`

async function metadata(t: Test, stage: Stage): Promise<void> {
  const { quilt3, bobbin } = stage
  const registry = 's3://versioned'
  const images = { 'images/train/1.jpg': 'one', 'images/val/1.jpg': 'two', 'images/1.jpg': 'three', 'images-b': 'x' }
  const dir = folderOf(stage, { ...images, 'annotations.json': COCO })
  const file = (name: string, text: string) => {
    const path = join(stage.folder, name)
    writeFileSync(path, text)
    return path
  }

  await t.test('lines, and of folders', async t => {
    const metas = {
      'images/val/1.jpg': { label: 'c\u00e4t', list: [1, null, { a: {} }] },
      'images-b': { z: 1.5, empty: {} },
      'annotations.json': {},
    }
    const directories = { images: { split: 'all' }, 'images/val': { n: 1 } }
    const expected = await quilt3.call<Dump>('push_with_metas', {
      ...{ folder: dir, registry, name: 'them/lines', message: 'm', metas, directories },
    })
    const lines = Object.entries(metas).map(([key, meta]) => JSON.stringify({ key, ...meta }))
    const { topHash } = await bobbin.json<Resolved>(
      ...['push', dir, `${registry}/us/lines`, '-m', 'm', '--meta-from', file('m.jsonl', `${lines.join('\r\n')}\n`)],
      ...['--dir-meta', 'images={"split":"all"}', '--dir-meta', `images/val/=@${file('val.txt', '{"n": 1}')}`],
    )
    await isSame(t, stage, registry, 'us/lines', topHash, expected)
    t.test('what another client wrote may be set, too', async t => {
      const set = await bobbin.json<Resolved>(
        ...['meta', 'set', `${registry}/them/lines`, 'images-b={"other":1.0}', 'images/val={"n":2}', '-m', 'set'],
      )
      const args = { name: 'them/lines', registry, to: 'them/set', message: 'set', add: {}, remove: [] }
      const top = `${registry}/us/lines`
      const theirs = JSON.parse(
        await quilt3.text(
          'edited',
          `${JSON.stringify({ ...args, name: 'us/lines' }).slice(0, -1)},"metas":{"images-b":{"other":1.0},"images/val":{"n":2}}}`,
        ),
      ) as Dump
      await isSame(t, stage, registry, 'them/lines', set.topHash, theirs)
      t.match(await bobbin.try('resolve', top), { status: 0 })
    })
  })

  await t.test('a table', async t => {
    const metas = { 'images-b': { label: 'a, "b"\nc', width: 640, box: [1, 2] }, 'images/1.jpg': { label: '007' } }
    const table =
      'label,logical_key,width:json,box:json\r\n"a, ""b""\nc",images-b,640,"[1,2]"\r\n007,images/1.jpg,,\r\n'
    const expected = await quilt3.call<Dump>('push_with_metas', {
      ...{ folder: dir, registry, name: 'them/table', message: 'm', metas, directories: {} },
    })
    const { topHash } = await bobbin.json<Resolved>(
      ...['push', dir, `${registry}/us/table`, '-m', 'm', '--meta-from', file('m.csv', `\ufeff${table}`)],
    )
    await isSame(t, stage, registry, 'us/table', topHash, expected)
  })

  await t.test("COCO's annotations, as the tutorial has them", async t => {
    const expected = await quilt3.call<Dump>('push_coco', { folder: dir, registry, name: 'them/coco', message: 'm' })
    const { topHash } = await bobbin.json<Resolved>(
      ...['push', dir, `${registry}/us/coco`, '-m', 'm', '--meta-from', join(dir, 'annotations.json')],
    )
    await isSame(t, stage, registry, 'us/coco', topHash, expected)
    const animals = "contains(meta.annotations[].supercategory, 'animal')"
    const filtered = await bobbin.json<Resolved>(
      ...['filter', `${registry}/us/coco`, '--where', animals, '--push', `${registry}/us/animals`, '-m', 'animals'],
    )
    t.equal(filtered.entries, 1)
  })
}

async function edited(t: Test, stage: Stage): Promise<void> {
  const { quilt3, bobbin, proxy, folder } = stage
  const registry = 's3://versioned'
  const dir = folderOf(stage, { 'a/1': '1', 'a/2': '2', 'b/1': 'b1', c: 'c', 'd-e': 'x' })
  await quilt3.call('push_with_metas', {
    ...{ folder: dir, registry, name: 'edit/first', message: 'first' },
    ...{ metas: { 'a/1': { n: 1 }, c: { n: 3 } }, directories: { a: { dir: 'a' }, b: { dir: 'b' } } },
  })
  const [large, small] = [join(folder, 'large'), join(folder, 'small')]
  writeFileSync(large, noise(9 * MIB))
  writeFileSync(small, 'another c')
  const theirs = await quilt3.call<Dump>('edited', {
    ...{ name: 'edit/first', registry, to: 'edit/theirs', message: 'edited' },
    ...{ add: { 'a/new': large, c: small }, remove: ['a/1', 'b'], metas: { 'a/2': { set: true } } },
  })
  const before = proxy.requests.length
  writeFileSync(join(folder, 'set.jsonl'), '{"key": "a/2", "set": true}')
  const ours = await bobbin.json<Resolved>(
    ...['edit', `${registry}/edit/first`, '--push', '-m', 'edited', '--meta-from', join(folder, 'set.jsonl')],
    ...['--add', `a/new=${large}`, '--add', `c=${small}`, '--remove', 'a/1', '--remove', 'b/*'],
  )
  await isSame(t, stage, registry, 'edit/first', ours.topHash, theirs)
  const urls = proxy.requests.slice(before).map(({ url }) => decodeURIComponent(url.split('?')[0]!))
  t.notOk(
    urls.some(url => url.endsWith('/d-e') || url.endsWith('/a/2')),
    'nothing is asked of what stays',
  )

  await t.test('an edit of an older revision is a conflict', async t => {
    const [first] = (await bobbin.rows<{ topHash: string }>('log', `${registry}/edit/first`)).slice(-1)
    const outcome = await bobbin.try('edit', `${registry}/edit/first@${first!.topHash}`, '--remove', 'c', '--push')
    t.match(outcome, { status: 11, stderr: /--parent/ })
  })
}

async function copied(t: Test, stage: Stage, registry: string): Promise<void> {
  const { quilt3, bobbin, proxy, server } = stage
  const files = { 'a/1': '1', empty: '', 'u/\u00fc #?+%': 'odd', large: noise(17 * MIB), '8MiB': noise(8 * MIB) }
  const dir = folderOf(stage, files)
  const name = `copy/${registry.slice(5)}`
  const expected = await quilt3.call<Dump>('push_with_metas', {
    ...{ folder: dir, registry: 's3://versioned', name, message: 'm\u00fc' },
    ...{ metas: { 'a/1': { n: 1 }, large: { deep: { x: [] } } }, directories: { a: { dir: 'a' } } },
  })
  const client = s3ClientOf(server)
  // Something else lies where an object would go.
  await client.send(new PutObjectCommand({ Bucket: registry.slice(5), Key: `${name}/a/1`, Body: 'other bytes' }))
  client.destroy()
  const before = proxy.requests.length
  const { topHash } = await bobbin.json<Resolved>('copy', `s3://versioned/${name}`, registry)
  const requests = proxy.requests.slice(before)
  const dump = await isSame(t, stage, registry, name, topHash, expected)
  t.ok(
    Object.values(dump.entries).every(({ physicalKey }) => physicalKey.startsWith(`${registry}/`)),
    'every object lies in the other bucket',
  )
  const sent = requests.filter(
    ({ method, url }) => method === 'PUT' && url.includes(`/${name}/`) && !url.includes('.quilt'),
  )
  t.ok(
    sent.every(({ headers }) => headers['x-amz-copy-source'] !== undefined),
    'no bytes pass through this machine',
  )
  t.match(await bobbin.try('verify', `${registry}/${name}`, dir), { status: 0 })

  await t.test('again, it finds everything there', async t => {
    const again = await bobbin.try('copy', `s3://versioned/${name}`, registry, '--name', 'copy/again', '--json')
    t.equal(again.status, 0, again.stderr)
    const twice = await bobbin.try('copy', `s3://versioned/${name}`, registry)
    t.match(twice, { status: 0, stderr: /this is the latest revision already/ })
  })

  await t.test('a part is the subset of quilt3', async t => {
    const part = await bobbin.json<Resolved>(
      ...[
        'copy',
        `s3://versioned/${name}`,
        registry,
        '--name',
        'copy/part',
        '--where',
        "starts_with(key, 'a')",
        '-m',
        'part',
      ],
    )
    t.equal(
      part.topHash,
      await quilt3.call('filtered', { name, registry: 's3://versioned', start: 'a', message: 'part' }),
    )
  })

  await t.test('takes no file of this machine because a manifest in a bucket says so (S152)', async t => {
    await quilt3.call('build_local', { folder: dir, registry: 's3://versioned', name: 'copy/local' })
    const outcome = await bobbin.try('copy', 's3://versioned/copy/local', registry)
    t.match(outcome, { status: 15, stderr: /would read this machine's own files/ })
  })

  await t.test('into a folder and back', async t => {
    const local = join(stage.folder, `local-${registry.slice(5)}`)
    t.equal((await bobbin.json<Resolved>('copy', `s3://versioned/${name}`, local)).topHash, topHash)
    t.match(await bobbin.try('verify', `${local}/${name}`, dir), { status: 0 })
    const back = await bobbin.json<Resolved>('copy', `${local}/${name}`, 's3://data', '--name', name)
    await isSame(t, stage, 's3://data', name, back.topHash, expected)
  })
}

async function objects(t: Test, stage: Stage): Promise<void> {
  const { quilt3, bobbin, proxy } = stage
  const kinds = [
    ['p/proven', 1000, null, 'SHA256'],
    ['p/nested/proven in chunks', 17 * MIB, 8 * MIB, 'SHA256'],
    // As many parts as chunks, cut elsewhere: their checksum is another hash.
    ['p/nested-b/other parts', 17 * MIB, 7 * MIB, 'SHA256'],
    ['p/unknown', 1000, null, 'CRC32'],
    ['p/large unknown', 9 * MIB, null, 'CRC32'],
    ['p/empty', 0, null, null],
    ['p/u/\u00fc #?+%', 10, null, null],
    ['p/folder/', 0, null, null],
    ['q/elsewhere', 10, null, null],
  ] as const
  await quilt3.call('put_objects', { bucket: 'data', objects: kinds })
  // quilt3 8.0.0 cannot copy in either of these servers: both leave out the checksum that it reads.
  const args = { source: 's3://data/p/', registry: 's3://other', name: 'objects/theirs', message: 'm' }
  const expected = await quilt3.call<Dump>('push_objects', args)
  for (const copy of [false, true]) {
    await t.test(copy ? 'copied' : 'where they lie', async t => {
      const name = `objects/${copy ? 'copied' : 'there'}`
      // quilt3 caches a manifest by its address, which is one for equal top hashes.
      const registry = copy ? 's3://versioned' : 's3://other'
      const before = proxy.requests.length
      const { topHash } = await bobbin.json<Resolved>(
        ...['push', 's3://data/p', `${registry}/${name}`, '-m', 'm', ...(copy ? [] : ['--no-copy'])],
      )
      const read = proxy.requests
        .slice(before)
        .filter(({ method, url }) => method === 'GET' && url.includes('/data/p/') && !url.includes('attributes'))
        .map(({ url }) => decodeURIComponent(url.split('?')[0]!).slice('/data/'.length))
      const dump = await isSame(t, stage, registry, name, topHash, expected)
      for (const { physicalKey } of Object.values(dump.entries)) {
        t.ok(physicalKey.startsWith(copy ? `${registry}/` : 's3://data/p/'), physicalKey)
        t.match(physicalKey, /versionId=/)
      }
      if (copy) return
      t.ok(read.includes('p/nested-b/other parts') && read.includes('p/unknown'), 'what nothing proves is read')
      t.notOk(read.includes('p/proven'), 'what the server proves is not')
    })
  }
  await t.test('nothing lies there', async t => {
    t.match(await bobbin.try('push', 's3://data/nowhere/', 's3://other/objects/none'), { status: 2 })
  })
}

async function rolledBack(t: Test, stage: Stage): Promise<void> {
  const { quilt3, bobbin } = stage
  const [registry, name] = ['s3://versioned', 'back/pkg']
  const pushed: string[] = []
  for (const text of ['one', 'two', 'three']) {
    const dir = folderOf(stage, { text })
    const parent = pushed.length === 0 ? [] : ['--parent', pushed.at(-1)!]
    pushed.push((await bobbin.json<Resolved>('push', dir, `${registry}/${name}`, '-m', text, ...parent)).topHash)
  }
  const [first, second, third] = pushed as [string, string, string]
  const latest = async () => (await bobbin.json<Resolved>('resolve', `${registry}/${name}`)).topHash
  t.equal((await bobbin.json<Resolved>('rollback', `${registry}/${name}`, first.slice(0, 8))).topHash, first)
  t.equal(await latest(), first)
  t.equal(await quilt3.call('rolled_back', { name, registry, top_hash: third }), third)
  t.match(await bobbin.try('rollback', `${registry}/${name}`, 'f'.repeat(64)), { status: 10 })

  t.match(await bobbin.try('delete', `${registry}/${name}@${third}`), { status: 2, stderr: /--yes/ })
  t.equal(await latest(), third, 'nothing was deleted')
  await bobbin.text('delete', `${registry}/${name}@${third}`, '--yes')
  t.equal(await latest(), second, 'the newest of those that stay')
  const versions = await quilt3.call<[string, string][]>('versions', { name, registry })
  t.strictSame(new Set(versions.map(([, topHash]) => topHash)), new Set([first, second]))
  t.match(
    await bobbin.try('cat', `${registry}/${name}@${third}`, 'text'),
    { status: 0, stdout: 'three' },
    'manifest and objects stay',
  )
  await bobbin.text('delete', `${registry}/${name}`, '--yes')
  t.match(await bobbin.try('resolve', `${registry}/${name}`), { status: 10 })
  t.match(await bobbin.try('delete', `${registry}/${name}`, '--yes'), { status: 10 })
}

async function registered(t: Test, stage: Stage): Promise<void> {
  const { quilt3, bobbin, folder } = stage
  const dir = folderOf(stage, { 'a/1': '1', b: 'b' })
  mkdirSync(join(folder, 'data/Quilt'), { recursive: true })
  writeFileSync(join(folder, 'data/Quilt/config.yml'), 'default_remote_registry: s3://versioned\n')
  const { topHash } = await bobbin.json<Resolved>('push', dir, 'registered/pkg', '-m', 'm')
  await bobbin.text('install', 'registered/pkg', join(folder, 'installed'), '--register')
  t.equal(await quilt3.call('local_top_hash', { name: 'registered/pkg' }), topHash)
  rmSync(join(folder, 'data/Quilt/config.yml'))
}
