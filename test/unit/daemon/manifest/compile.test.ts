import { spawnSync } from 'node:child_process'
import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import fc from 'fast-check'
import t, { type Test } from 'tap'
import { KeySorter } from '../../../../daemon/index/key-sorter.js'
import { PackageIndex } from '../../../../daemon/index/package-index.js'
import { compileManifest } from '../../../../daemon/manifest/compile.js'
import { BobbinError, type Registry, type TopHash } from '../../../../daemon/model/index.js'
import { fileRow, HASH_OF_A, manifestText, type Row, topHashOf } from '../../../support/manifest.js'
import { vectors } from '../../../support/vectors.js'

const S3: Registry = { kind: 's3', bucket: 'bucket' }
const FOLDER: Registry = { kind: 'file', path: '/registry' }

interface Options {
  readonly registry?: Registry
  readonly quarantine?: boolean
  readonly directoryBytesMax?: number
}

async function compile(t: Test, text: string | Buffer, topHash: string, options: Options = {}): Promise<PackageIndex> {
  const folder = mkdtempSync(join(tmpdir(), 'bobbin-compile-'))
  t.teardown(() => rmSync(folder, { recursive: true }))
  const manifestPath = join(folder, 'manifest')
  const indexPath = join(folder, 'index')
  writeFileSync(manifestPath, text)
  try {
    await compileManifest({ manifestPath, indexPath, topHash: topHash as TopHash, registry: S3, ...options })
  } catch (error) {
    t.strictSame(readdirSync(folder), ['manifest'], 'a failure leaves nothing behind')
    throw error
  }
  t.strictSame(readdirSync(folder).sort(), ['index', 'manifest'], 'no scratch file is left')
  const index = new PackageIndex(indexPath, manifestPath)
  t.teardown(() => index.close())
  return index
}

/** So that rows are no longer than their keys make them. */
const KEY_OF_ONE_BYTE = { physical_keys: ['s3://bucket/k'] }

const keysOf = (index: PackageIndex) => [...index.entries()].map(entry => entry.key as string)

async function refusal(
  t: Test,
  text: string | Buffer,
  topHash = '0'.repeat(64),
  options: Options = {},
): Promise<BobbinError> {
  try {
    await compile(t, text, topHash, options)
  } catch (error) {
    if (error instanceof BobbinError) return error
    throw error
  }
  throw new Error('it was not refused')
}

t.test("compileManifest finds quilt3's top hash for every vector", async t => {
  for (const { name, manifest, top_hash } of vectors.top_hash_cases) {
    await t.test(name, async t => {
      // Some fixtures have hash values that no object can have; they are hashed all the same.
      await compile(t, manifest, top_hash, { registry: FOLDER, quarantine: true })
    })
  }
  for (const [name, { manifest, top_hash }] of Object.entries(vectors.known_answers)) {
    await t.test(name, async t => {
      await compile(t, manifest, top_hash, { registry: FOLDER, quarantine: true })
    })
  }
})

t.test('compileManifest refuses a manifest that does not hash to its name', async t => {
  const rows = [fileRow('a'), fileRow('b')]
  const topHash = topHashOf(rows)
  const error = await refusal(t, manifestText([fileRow('a'), fileRow('b', { size: 2 })]), topHash)
  t.equal(error.code, 'MANIFEST_CORRUPT')
  t.match(error.message, topHash)
  t.equal((await refusal(t, manifestText(rows.slice(0, 1)), topHash)).code, 'MANIFEST_CORRUPT', 'cut between two rows')
})

t.test('compileManifest names the row of a malformed line', async t => {
  const sound = manifestText([fileRow('a')])
  const cases: Record<string, [string | Buffer, RegExp]> = {
    'cut in the middle of a row': [sound.slice(0, -20), /row 2 .*not valid JSON/],
    'an empty file': ['', /empty/],
    'an empty line': [`${sound}\n${JSON.stringify(fileRow('b'))}\n`, /row 3 .*empty/],
    'a header that is a list': ['[]\n', /row 1 .*not a JSON object/],
    'a byte order mark': [`\ufeff${sound}`, /row 1 .*byte order mark/],
    'a row that is a string': [`${sound}"x"\n`, /row 3 .*not a JSON object/],
    'no logical_key': [`${sound}{"physical_keys":["s3://b/k"]}\n`, /row 3 .*logical_key/],
    'no hash': [manifestText([fileRow('a', { hash: null })]), /row 2 .*no hash/],
    'no size': [manifestText([fileRow('a', { size: null })]), /row 2 .*no size/],
    'physical_keys as a string': [sound.replace(/\["(s3[^"]*)"\]/, '"$1"'), /row 2 .*physical_keys/],
    'bytes that are no UTF-8': [
      Buffer.concat([Buffer.from(sound.slice(0, 60)), Buffer.from([0xff]), Buffer.from(sound.slice(60))]),
      /row 2 .*UTF-8/,
    ],
    'metadata that is a list': [manifestText([fileRow('a', { meta: [1] })]), /row 2 .*meta/],
    'two values in a row': [sound.replace(/\n$/, ' {}\n'), /row 2 .*after the value/],
    'a directory row without a slash': [manifestText([{ logical_key: 'd', meta: { x: 1 } }]), /row 2.*"d".*end in/],
  }
  for (const [name, [text, expected]] of Object.entries(cases)) {
    await t.test(name, async t => {
      const error = await refusal(t, text)
      t.equal(error.code, 'PACKAGE_REFUSED')
      t.match(error.message, expected)
    })
  }
})

t.test('compileManifest refuses hostile rows by row and key, and --quarantine leaves them out', async t => {
  const long = 'x'.repeat(256)
  const bad: Record<string, { rows: Row[]; reason: RegExp; left?: number }> = {
    'a key that climbs out': { rows: [fileRow('../../x')], reason: /".."/ },
    'an absolute key': { rows: [fileRow('/x')], reason: /empty component/ },
    'a double slash': { rows: [fileRow('a//b')], reason: /empty component/ },
    'a final slash': { rows: [fileRow('a/')], reason: /empty component/ },
    'a dot': { rows: [fileRow('a/./b')], reason: /"\."/ },
    'an empty key': { rows: [fileRow('')], reason: /empty/ },
    'a NUL': { rows: [fileRow('a\0b')], reason: /NUL/ },
    'a long component': { rows: [fileRow(`a/${long}`)], reason: /255 bytes/ },
    'a long component of two-byte characters': { rows: [fileRow('é'.repeat(128))], reason: /255 bytes/ },
    'a lone surrogate': { rows: [fileRow('\ud800', { physical_keys: ['s3://bucket/x'] })], reason: /Unicode/ },
    'a key over PATH_MAX': {
      rows: [
        fileRow(Array(41).fill('y'.repeat(100)).join('/')),
        fileRow(`${Array(41).fill('y'.repeat(100)).join('/')}z`),
      ],
      reason: /4095 bytes/,
      left: 2,
    },
    'a duplicate key': { rows: [fileRow('d'), fileRow('d', { size: 1 })], reason: /row 4 already|row \d+/, left: 2 },
    'a file that is also a directory': {
      rows: [fileRow('f'), fileRow('f/g'), fileRow('f/h')],
      reason: /as a file/,
      left: 3,
    },
    'an unknown hash type': {
      rows: [fileRow('h', { hash: { type: 'MD5', value: 'x' } })],
      reason: /unknown hash type "MD5"/,
    },
    'a value that is none of its type': {
      rows: [fileRow('h', { hash: { type: 'SHA256', value: 'zz' } })],
      reason: /not a SHA256 value/,
    },
    'a file of this machine': { rows: [fileRow('p', { physical_keys: ['file:///etc/passwd'] })], reason: /file:\/\// },
    'another scheme': { rows: [fileRow('p', { physical_keys: ['https://x/y'] })], reason: /s3:\/\/ or file:\/\// },
    'a bucket without a key': { rows: [fileRow('p', { physical_keys: ['s3://bucket'] })], reason: /without a path/ },
    'an unknown query': { rows: [fileRow('p', { physical_keys: ['s3://bucket/k?foo=1'] })], reason: /query/ },
    'half a byte': { rows: [fileRow('s', { size: 1.5 })], reason: /whole number/ },
    'less than nothing': { rows: [fileRow('s', { size: -1 })], reason: /whole number/ },
    'more than can be': { rows: [fileRow('s', { size: 2 ** 60 })], reason: /whole number/ },
  }
  for (const [name, { rows: hostile, reason, left = 1 }] of Object.entries(bad)) {
    await t.test(name, async t => {
      const sound = [fileRow('a/one'), fileRow('zz')]
      for (const rows of [
        [...sound, ...hostile],
        [...hostile, ...sound],
      ]) {
        const text = manifestText(rows)
        // U+D800 alone and sizes like 1.5 are beyond the plain hasher of the tests: ask the compiler for the hash.
        const error = await refusal(t, text)
        t.equal(error.code, 'PACKAGE_REFUSED')
        t.match(error.message, reason)
        t.match(error.message, /^row [2-6] of the manifest, key "/)
        const wrong = await refusal(t, text, '0'.repeat(64), { quarantine: true })
        const topHash = /hashes to ([0-9a-f]{64})/.exec(wrong.message)![1]!
        const index = await compile(t, text, topHash, { quarantine: true })
        t.strictSame(keysOf(index), ['a/one', 'zz'])
        t.equal(index.facts.entries, 2)
        t.equal(index.facts.bytes, 2)
        t.equal(index.quarantined().length, left)
        t.equal(index.facts.quarantined, left)
        t.ok(index.quarantined().every(({ key }) => hostile.some(row => row.logical_key === key) || key === '\ufffd'))
      }
    })
  }
})

t.test('compileManifest refuses a manifest that would make an index many times its size (S94)', async t => {
  const deep = Array.from({ length: 400 }, (_, i) => fileRow(`${i}${'/a'.repeat(2045)}`, KEY_OF_ONE_BYTE))
  t.match((await refusal(t, manifestText(deep))).message, /^row 2 of the manifest, key "0\/a\/a.*over 255 components/)

  // As deep as a key may be, 4 bytes a directory.
  const bushy = Array.from({ length: 400 }, (_, i) => fileRow(`${i}${'/abc'.repeat(254)}`, KEY_OF_ONE_BYTE))
  const error = await refusal(t, manifestText(bushy))
  t.equal(error.code, 'PACKAGE_REFUSED')
  t.match(error.message, /^row \d+ of the manifest, key "\d+\/abc\/abc.*more directories than its rows/)
  const index = await compile(t, manifestText(bushy), topHashOf(bushy), { quarantine: true })
  t.ok(index.facts.quarantined > 0 && index.facts.entries > 2, 'some of it can be shown')
  t.ok(statSync(index.path).size < 9 * manifestText(bushy).length + 200_000)

  const honest = Array.from({ length: 2000 }, (_, i) =>
    fileRow(`sub-${i}/ses-01/anat/run-1/raw/v1/a/b/c/d/e/f/image.nii.gz`),
  )
  t.equal((await compile(t, manifestText(honest), topHashOf(honest))).facts.entries, honest.length)
})

t.test('compileManifest bounds the length of rows, of keys, and of what is left out (S94)', async t => {
  const long = fileRow('a', { meta: { user_meta: 'x'.repeat(9 * 2 ** 20) } })
  t.match((await refusal(t, manifestText([long]))).message, /a row of over 8388608 bytes/)
  t.match((await refusal(t, manifestText([], { user_meta: 'x'.repeat(9 * 2 ** 20) }))).message, /a row of over/)
  for (const row of [fileRow('k'.repeat(70_000)), { logical_key: `${'k'.repeat(70_000)}/`, meta: { a: 1 } }]) {
    // Behind `z`, so that rows are sorted.
    const text = manifestText([fileRow('z'), fileRow('y'), row])
    t.match(
      (await refusal(t, text, undefined, { quarantine: true })).message,
      /row 4 .*logical_key is over 65536 bytes/,
    )
  }
  const many = Array.from({ length: 300 }, (_, i) => fileRow(`${i}${'k'.repeat(60_000)}`, KEY_OF_ONE_BYTE))
  t.match(
    (await refusal(t, manifestText(many), undefined, { quarantine: true })).message,
    /keys of over 16777216 bytes/,
  )
  const nested = `${'{"b":1,"a":'.repeat(900)}"${'x'.repeat(50_000)}"${'}'.repeat(900)}`
  const row = manifestText([fileRow('a')]).replace('"meta":{}', `"meta":{"user_meta":${nested}}`)
  t.match((await refusal(t, row)).message, /row 2 .*too many objects that are out of order/)
})

t.test('compileManifest reads a row of millions of values in little memory (S94)', async t => {
  const values = `[${'0,'.repeat(3 * 2 ** 20)}{"b":0,"a":1}]`
  const folder = t.testdir({
    manifest: manifestText([fileRow('a')]).replace('"meta":{}', `"meta":{"user_meta":${values}}`),
  })
  const options = {
    manifestPath: join(folder, 'manifest'),
    indexPath: join(folder, 'index'),
    topHash: '0'.repeat(64),
    registry: S3,
  }
  const compileUrl = new URL('../../../../daemon/manifest/compile.js', import.meta.url).href
  const script = `import { compileManifest } from ${JSON.stringify(compileUrl)}
    await compileManifest(${JSON.stringify(options)}).catch(error => console.log(error.code))`
  const child = spawnSync(process.execPath, ['--max-old-space-size=40', '--input-type=module', '-e', script], {
    encoding: 'utf8',
  })
  t.equal(child.stdout, 'MANIFEST_CORRUPT\n', child.stderr.slice(0, 500))
})

t.test('compileManifest takes keys that are merely unusual', async t => {
  const keys = [
    'a b',
    'caf\u00e9',
    'cafe\u0301',
    '😀.txt',
    'it\'s "quoted"',
    'new\nline',
    '#?%+',
    '...',
    '.hidden',
    'x'.repeat(255),
    'a/.../b',
    '\u2028',
    '\ue000',
    '\u007f',
  ]
  const rows = keys.map(key => fileRow(key))
  const wrong = await refusal(t, manifestText(rows))
  const index = await compile(t, manifestText(rows), /hashes to (\w{64})/.exec(wrong.message)![1]!)
  for (const key of keys) t.equal(index.entry(index.find(key)!.ino).key, key)
  t.equal(index.facts.entries, keys.length)
})

const arbitraryKey = fc
  .array(
    fc.stringMatching(/^[a-c.\-~]{1,3}$/).filter(name => name !== '.' && name !== '..'),
    { minLength: 1, maxLength: 4 },
  )
  .map(parts => parts.join('/'))
const arbitraryRows = fc.uniqueArray(arbitraryKey, { maxLength: 60 }).map(keys => {
  const isFree = (key: string) => keys.every(other => !other.startsWith(`${key}/`))
  return keys.filter(isFree).map((key, i) => fileRow(key, { size: i, meta: i % 3 ? {} : { user_meta: { i } } }))
})

t.test('compileManifest makes the same index of rows in any order', async t => {
  await fc.assert(
    fc.asyncProperty(arbitraryRows, fc.boolean(), fc.integer(), async (rows, isFirst, seed) => {
      const shuffled = [...rows].sort(
        (a, b) =>
          Math.sin(seed + a.logical_key.length * 7 + Number(a.size)) -
          Math.sin(seed + b.logical_key.length * 7 + Number(b.size)),
      )
      const directories = [...new Set(rows.flatMap(row => parents(row.logical_key)))].map(key => ({
        logical_key: `${key}/`,
        meta: { about: key },
      }))
      const orphan = { logical_key: 'nobody/lives/here/', meta: { x: 1 } }
      const text = manifestText(isFirst ? [...directories, orphan, ...shuffled] : [...shuffled, orphan, ...directories])
      const index = await compile(t, text, topHashOf(rows))
      const expected = [...rows].sort((a, b) => compareTree(a.logical_key, b.logical_key))
      t.strictSame(
        keysOf(index),
        expected.map(row => row.logical_key),
      )
      for (const row of rows) {
        const node = index.find(row.logical_key)!
        t.equal(node.kind === 'file' && node.size, row.size)
        t.equal(index.key(node.ino), row.logical_key)
        t.equal(
          index.metadata(node.ino),
          (row.meta as { user_meta?: object }).user_meta &&
            JSON.stringify((row.meta as { user_meta: object }).user_meta),
        )
      }
      for (const { logical_key } of directories) {
        const node = index.find(logical_key)!
        t.equal(node.kind, 'directory')
        t.equal(index.metadata(node.ino), JSON.stringify({ about: logical_key.slice(0, -1) }))
      }
      t.equal(index.find('nobody'), undefined, 'metadata alone makes no directory')
      checkBreadthFirst(t, index)
      return true
    }),
    { numRuns: 60 },
  )
})

t.test('compileManifest sorts on disk when directory metadata is too much for memory', async t => {
  const rows = Array.from({ length: 300 }, (_, i) => fileRow(`d${i % 30}/f${i}`))
  const directories = Array.from({ length: 30 }, (_, i) => ({ logical_key: `d${i}/`, meta: { i } }))
  const index = await compile(t, manifestText([...directories, ...rows]), topHashOf(rows), { directoryBytesMax: 100 })
  t.equal(index.facts.entries, 300)
  for (let i = 0; i < 30; i++) t.equal(index.metadata(index.find(`d${i}`)!.ino), `{"i":${i}}`)
})

t.test('KeySorter merges runs from disk into one order, equal keys by row', async t => {
  const sorter = new KeySorter(join(t.testdir(), 'scratch'), 4096)
  t.teardown(() => sorter.close())
  const keys = Array.from({ length: 5000 }, (_, i) => Buffer.from(`k${(i * 7919) % 2500}`))
  for (const [i, key] of keys.entries()) sorter.add(key, key.length, i, i * 2 ** 20, 7)
  const sorted = [...sorter.sorted()].map(({ key, row, offset, bytes }) => ({
    key: key.toString(),
    row,
    offset,
    bytes,
  }))
  const expected = keys
    .map((key, row) => ({ key: key.toString(), row, offset: row * 2 ** 20, bytes: 7 }))
    .sort((a, b) => (a.key < b.key ? -1 : a.key > b.key ? 1 : a.row - b.row))
  t.strictSame(sorted, expected)
})

t.test('PackageIndex finds a package of 20,000 files in 3 levels, and its header facts', async t => {
  const rows = Array.from({ length: 20_000 }, (_, i) =>
    fileRow(`set${i % 3}/part-${String(i % 200).padStart(4, '0')}/file-${i}.bin`, { size: i }),
  )
  rows.sort((a, b) => compareTree(a.logical_key, b.logical_key))
  const header = { version: 'v0', user_meta: { name: 'big', n: 1 }, message: 'hello "you"' }
  const index = await compile(t, manifestText(rows, header), topHashOf(rows, header))
  t.equal(index.facts.entries, 20_000)
  t.equal(index.facts.bytes, (20_000 * 19_999) / 2)
  t.equal(index.message, 'hello "you"')
  t.equal(index.metadata(1), '{"name":"big","n":1}')
  t.equal(index.workflow, undefined)
  checkBreadthFirst(t, index)
  const entry = index.entry(index.find('set1/part-0001/file-1.bin')!.ino)
  t.strictSame(entry.hash, { type: 'sha2-256-chunked', hex: Buffer.from(HASH_OF_A.value, 'base64').toString('hex') })
  t.strictSame(entry.physicalKey, { kind: 's3', bucket: 'bucket', key: 'set1/part-0001/file-1.bin' })
  t.equal(index.find('set1/part-0001/file-2.bin'), undefined)
  t.equal(index.find('set1/part-0001/file-1.bin/x'), undefined)
  t.equal(index.find('set1/part-0001/file-1.bin/'), undefined)
  t.equal(index.find('set1/')!.kind, 'directory')
  t.throws(() => index.node(0), { code: 'ENTRY_NOT_FOUND' })
  t.throws(() => index.node(10 ** 9), { code: 'ENTRY_NOT_FOUND' })
})

t.test('compileManifest scans a large manifest in workers, with the same rows, numbers and refusals', async t => {
  const rows = Array.from({ length: 70_000 }, (_, i) =>
    fileRow(`d${String(Math.floor(i / 500)).padStart(4, '0')}/file-${String(i).padStart(6, '0')}.bin`, {
      size: i,
      meta: { user_meta: { label: i % 10, text: 'some words that make the row longer' } },
    }),
  )
  const directories = [{ logical_key: 'd0007/', meta: { seven: true } }]
  const text = manifestText([...directories, ...rows])
  t.ok(text.length > 17 * 2 ** 20, 'more than is scanned inline')
  const index = await compile(t, text, topHashOf(rows))
  t.equal(index.facts.entries, rows.length)
  t.equal(index.metadata(index.find('d0007')!.ino), '{"seven":true}')
  let i = 0
  for (const { key, size } of index.entries()) {
    if (key !== rows[i]!.logical_key || size !== rows[i]!.size) t.fail(`row ${i} is ${key}`)
    i++
  }
  t.equal(
    index.metadata(index.find(rows[69_123]!.logical_key)!.ino),
    JSON.stringify((rows[69_123]!.meta as { user_meta: object }).user_meta),
  )

  t.equal((await refusal(t, text)).code, 'MANIFEST_CORRUPT')
  const lines = text.split('\n')
  const early = [lines[0], '{', ...lines.slice(1)].join('\n')
  t.match((await refusal(t, early)).message, /^row 2 of the manifest/, 'at once, while the workers still start')
  const broken = [...lines.slice(0, 60_000), '{"logical_key": "x", ', ...lines.slice(60_000)].join('\n')
  t.match((await refusal(t, broken)).message, /^row 60001 of the manifest: not valid JSON/)
  const twice = [...lines.slice(0, 60_000), lines[59_999], ...lines.slice(60_000)].join('\n')
  t.match(
    (await refusal(t, twice)).message,
    /^row 60001 of the manifest, key "d0119\/file-059997.bin": the key stands in row 60000 already/,
  )
  const swapped = [lines[0], ...lines.slice(40_000, -1), ...lines.slice(1, 40_000)].join('\n')
  const sorted = await compile(t, swapped, topHashOf(rows))
  t.equal(sorted.facts.entries, rows.length)
  t.equal(sorted.entry(5000).size, index.entry(5000).size)
})

t.test('PackageIndex notices a change of any byte, and a cut at any place', async t => {
  const rows = Array.from({ length: 40 }, (_, i) => fileRow(`d${i % 4}/f${i}`, { meta: { user_meta: { i } } }))
  const folder = t.testdir({ manifest: manifestText(rows) })
  const manifestPath = join(folder, 'manifest')
  await compileManifest({
    manifestPath,
    indexPath: join(folder, 'index'),
    topHash: topHashOf(rows) as TopHash,
    registry: S3,
  })
  const sound = readFileSync(join(folder, 'index'))
  const damagedPath = join(folder, 'damaged')
  const readAll = (bytes: Buffer) => {
    writeFileSync(damagedPath, bytes)
    const index = new PackageIndex(damagedPath, manifestPath)
    try {
      for (const { node } of index.walk()) {
        if (node.kind === 'file') index.entry(node.ino)
        index.metadata(node.ino)
      }
    } finally {
      index.close()
    }
  }
  readAll(sound)
  for (let at = 0; at < sound.length; at++) {
    const bytes = Buffer.from(sound)
    bytes[at]! ^= 1 + (at % 255)
    try {
      readAll(bytes)
      t.fail(`byte ${at} was changed and nobody noticed`)
    } catch (error) {
      if (!(error instanceof BobbinError && error.code === 'INDEX_DAMAGED')) throw error
    }
  }
  for (let length = 0; length < sound.length; length += 97) {
    t.throws(() => readAll(sound.subarray(0, length)), { code: 'INDEX_DAMAGED' })
  }
  writeFileSync(manifestPath, manifestText(rows).replace('"i":7', '"i":8'))
  t.throws(() => readAll(sound), { code: 'INDEX_DAMAGED' }, 'metadata of a changed manifest is not shown')
})

function parents(key: string): string[] {
  const parts = key.split('/')
  return parts.slice(1).map((_, i) => parts.slice(0, i + 1).join('/'))
}

function compareTree(a: string, b: string): number {
  const x = a.split('/')
  const y = b.split('/')
  for (let i = 0; i < Math.min(x.length, y.length); i++) {
    if (x[i] !== y[i]) return Buffer.compare(Buffer.from(x[i]!), Buffer.from(y[i]!))
  }
  return x.length - y.length
}

/** Inode numbers follow a breadth-first walk of the sorted tree, and parents point back. */
function checkBreadthFirst(t: Test, index: PackageIndex): void {
  let queue = [1]
  let next = 2
  let files = 0
  while (queue.length > 0) {
    const below: number[] = []
    for (const directory of queue) {
      let before = ''
      for (const node of index.children(directory)) {
        if (node.ino !== next) t.fail(`inode ${node.ino} where ${next} was due`)
        if (node.parent !== directory) t.fail(`the parent of ${node.ino} is ${node.parent}`)
        if (Buffer.compare(Buffer.from(before), Buffer.from(node.name)) >= 0) t.fail(`${node.name} after ${before}`)
        if (index.lookup(directory, node.name) !== node.ino) t.fail(`${node.name} is not found`)
        before = node.name
        next++
        if (node.kind === 'directory') below.push(node.ino)
        else files++
      }
    }
    queue = below
  }
  t.equal(files, index.facts.entries)
  t.equal(next - 1, index.facts.entries + index.facts.directories)
}
