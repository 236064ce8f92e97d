/**
 * What Bobbin writes, read by the real quilt3 8.0.0, and the other way round, in real S3 servers: equal top hashes for
 * equal content, one conflict rule, and registries in which every pointer names a manifest whatever has been cut off.
 */
import { spawn } from 'node:child_process'
import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { GetObjectCommand, ListObjectsV2Command } from '@aws-sdk/client-s3'
import t, { type Test } from 'tap'
import { Bobbin } from '../support/cli.js'
import { until } from '../support/daemon.js'
import { type FaultProxy, startFaultProxy } from '../support/fault-proxy.js'
import { noise } from '../support/objects.js'
import { bobbinPath } from '../support/parts.js'
import { type Dump, Quilt3 } from '../support/quilt3.js'
import { writeRegistry } from '../support/registry.js'
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
  readonly env: Readonly<Record<string, string>>
}

type Pointers = Readonly<Record<string, { readonly topHash: string; readonly isThere: boolean }>>

t.setTimeout(3 * TIMEOUT_MS)

for (const kind of ['versitygw', 'minio'] as const) {
  t.test(`pushing to ${kind}`, { timeout: TIMEOUT_MS }, async t => {
    const stage = await setStage(t, await startS3(kind))
    await stage.quilt3.call('make_bucket', { name: 'versioned', versioned: true })
    await stage.quilt3.call('make_bucket', { name: 'plain', versioned: false })
    for (const bucket of ['versioned', 'plain']) {
      await t.test(`a folder is the same package to quilt3, in the bucket ${bucket} (S40)`, t =>
        sameFolder(t, stage, bucket),
      )
      await t.test(`one conflict rule, in the bucket ${bucket} (S41)`, t => sameConflicts(t, stage, bucket))
    }
    await t.test('a subset is the same package to quilt3, and copies nothing (S43)', t => sameSubset(t, stage))
    await t.test('of writers at the same time one wins, and the others are told (S41)', t => race(t, stage))
    await t.test('a manifest in parts whose last answer is lost is there (S42)', t => lostManifest(t, stage))
    await t.test('what a killed push has left is ended and used again (S42)', t => killed(t, stage))
    await t.test('workflow rules (S44)', t => sameRules(t, stage))
    if (kind === 'versitygw') await t.test('the network is lost at each step (S42)', t => lostAtEachStep(t, stage))
  })
}

async function setStage(t: Test, server: S3Server): Promise<Stage> {
  const folder = mkdtempSync(join(tmpdir(), 'bobbin-push-'))
  const proxy = await startFaultProxy(server.endpoint)
  const own = { HOME: folder, XDG_DATA_HOME: join(folder, 'data'), XDG_CONFIG_HOME: join(folder, 'config') }
  const env = { ...server.env, ...own, AWS_ENDPOINT_URL: proxy.endpoint }
  t.teardown(async () => {
    await proxy.stop()
    await server.stop()
    rmSync(folder, { recursive: true, force: true })
  })
  return {
    server,
    quilt3: new Quilt3(server, folder),
    bobbin: new Bobbin(join(folder, 'cache'), env),
    proxy,
    folder,
    env,
  }
}

/** A new folder with these files. */
function folderOf({ folder }: Stage, files: Readonly<Record<string, string | Uint8Array>>): string {
  const path = mkdtempSync(join(folder, 'source-'))
  write(path, files)
  return path
}

function write(folder: string, files: Readonly<Record<string, string | Uint8Array>>): void {
  for (const [key, bytes] of Object.entries(files)) {
    mkdirSync(dirname(join(folder, key)), { recursive: true })
    writeFileSync(join(folder, key), bytes)
  }
}

/** Every pointer of a name, and whether the manifest that it names is there. */
async function pointersOf({ server }: Stage, registry: string, name: string): Promise<Pointers> {
  const client = s3ClientOf(server)
  const Bucket = registry.replace('s3://', '')
  const Prefix = `.quilt/named_packages/${name}/`
  const found: Record<string, { topHash: string; isThere: boolean }> = {}
  for (const { Key } of (await client.send(new ListObjectsV2Command({ Bucket, Prefix }))).Contents ?? []) {
    const { Body } = await client.send(new GetObjectCommand({ Bucket, Key }))
    const topHash = (await Body?.transformToString()) ?? ''
    const listed = await client.send(new ListObjectsV2Command({ Bucket, Prefix: `.quilt/packages/${topHash}` }))
    found[Key!.slice(Prefix.length)] = { topHash, isThere: topHash !== '' && listed.KeyCount === 1 }
  }
  client.destroy()
  return found
}

/** Of objects, by key. */
function uploaded({ proxy }: Stage, name: string): string[] {
  return proxy.requests
    .filter(({ method, url }) => method === 'PUT' && url.includes(`/${name}/`) && !url.includes('.quilt'))
    .map(({ url }) => decodeURIComponent(url.split('?')[0]!.split(`/${name}/`)[1]!))
    .sort()
}

const LARGE = noise(17 * MIB)
const FILES = {
  'README.md': '# hello\n',
  'nested/a': 'a',
  'nested-b': 'sorts behind nested/ in the tree, before it as text',
  empty: '',
  '.hidden': 'hidden',
  'same/one': 'the same bytes',
  'same/two': 'the same bytes',
  'trailing ': 'a space at the end',
  'tab\tand\nnewline': 'controls',
  'unicode/caf\u00e9 NFC.txt': 'nfc',
  'unicode/cafe\u0301 NFD.txt': 'nfd',
  'unicode/\u{1f600} emoji.txt': 'UTF-16 would sort this',
  'unicode/\ufb01 ligature.txt': 'and this the other way round',
  'unicode/hash#query?percent%25plus+and&more=~!$;@[]{}|^`<>.txt': 'marks',
  'unicode/back\\slash': 'backslash',
  'sizes/8MiB-1': LARGE.subarray(0, 8 * MIB - 1),
  'sizes/8MiB': LARGE.subarray(0, 8 * MIB),
  'sizes/8MiB+1': LARGE.subarray(0, 8 * MIB + 1),
  'sizes/17MiB': LARGE,
  '.quiltignore': [
    'ignored.txt',
    'build/',
    '*.tmp',
    'deep/*/x?',
    '[ab]-[!c]',
    '[]x-]y',
    '[q-p]',
    '[z-az]z',
    'un[closed',
    '[z-a]',
    '.git',
    '',
  ].join('\n'),
  'ignored.txt': '',
  'nested/ignored.txt': 'with any folder before it',
  'not-ignored.txt': '',
  'build/of/it': '',
  'nested/build/too': '',
  'builder/not': '',
  'a.tmp': '',
  'tmp/a.tmp.kept': '',
  'deep/a/b/x1': 'the star crosses slashes',
  'deep/x1': '',
  'a-b': '',
  'a-c': '',
  ']y': '',
  '-y': '',
  wy: '',
  zz: '',
  q: '',
  'un[closed': '',
  '.git/config': '',
}
/** As a person may type it; 2^53 + 1 and 1.0 are other numbers to JavaScript. */
const META = '{"about": "pushing \u2603", "big": 9007199254740993, "float": 1.0, "none": null, "list": [1, {}]}'

async function sameFolder(t: Test, stage: Stage, bucket: string): Promise<void> {
  const { bobbin, quilt3, proxy } = stage
  const registry = `s3://${bucket}`
  const dir = folderOf(stage, FILES)
  symlinkSync('README.md', join(dir, 'link'))
  symlinkSync('nested', join(dir, 'link-to-folder'))
  symlinkSync('nowhere', join(dir, 'broken'))

  const { stdout, stderr, status } = await bobbin.try(
    ...['push', dir, `${registry}/us/pushed`, '-m', 'the first \u2603', '--meta', META, '--json'],
  )
  t.equal(status, 0, stderr)
  const ours = JSON.parse(stdout) as { topHash: string; entries: number; message: string }
  t.match(stderr, /left out "broken": a symbolic link to nothing/)
  t.match(stderr, /left out "link-to-folder": a symbolic link to a folder/)
  // Metadata goes to Python as text: JavaScript would change its numbers.
  const args = JSON.stringify({ folder: dir, registry, name: 'them/pushed', message: 'the first \u2603' })
  const theirs = JSON.parse(await quilt3.text('push_folder', `${args.slice(0, -1)},"meta":${META}}`)) as Dump
  t.equal(ours.topHash, theirs.topHash, 'the top hash of the same folder')
  t.equal(ours.entries, Object.keys(theirs.entries).length)
  t.equal(ours.message, 'the first \u2603')
  const manifestOf = (topHash: string) => quilt3.text('manifest', { registry, top_hash: topHash })
  t.equal(await manifestOf(ours.topHash), await manifestOf(theirs.topHash))

  const dump = await quilt3.call<Dump>('dump', { name: 'us/pushed', registry, top_hash: ours.topHash })
  t.strictSame(Object.keys(dump.entries), Object.keys(theirs.entries))
  for (const [key, entry] of Object.entries(dump.entries)) {
    const { physicalKey, ...rest } = entry
    const { physicalKey: _, ...expected } = theirs.entries[key]!
    t.strictSame(rest, expected, key)
    if (bucket === 'versioned') t.match(physicalKey, /\?versionId=(?!null$)./)
    else t.notMatch(physicalKey, /versionId/)
  }
  const installed = mkdtempSync(join(stage.folder, 'installed-'))
  await quilt3.call('install', { name: 'us/pushed', registry, top_hash: null, dest: installed })
  t.match(await bobbin.json('verify', `${registry}/us/pushed`, installed), { ok: true }, 'quilt3 installs it')

  await t.test('again: nothing is written', async t => {
    proxy.clear()
    const again = await bobbin.try('push', dir, `${registry}/us/pushed`, '-m', 'the first \u2603', '--meta', META)
    t.equal(again.status, 0, again.stderr)
    t.match(again.stderr, /this is the latest revision already/)
    t.equal(again.stdout.trim(), ours.topHash)
    t.strictSame(
      proxy.requests.filter(({ method }) => method === 'PUT' || method === 'POST'),
      [],
    )
  })

  await t.test('one file more, one changed: those are written, and the first revision stays', async t => {
    write(dir, { added: 'new', 'README.md': '# hello again\n' })
    proxy.clear()
    const { topHash } = await bobbin.json<{ topHash: string }>(
      ...['push', dir, `${registry}/us/pushed`, '-m', 'the second', '--parent', ours.topHash.slice(0, 12)],
    )
    const written = uploaded(stage, 'us/pushed')
    // Without versions, what lies at README.md is the first revision's; the new one lies at its hash. `link` is it, too.
    t.strictSame(written, bucket === 'versioned' ? ['README.md', 'added', 'link'] : ['added'])
    t.equal(topHash, await quilt3.call('top_hash_of', { folder: dir, message: 'the second', meta: null }))
    const first = mkdtempSync(join(stage.folder, 'first-'))
    await bobbin.text('install', `${registry}/us/pushed@${ours.topHash}`, first, '--cache', join(stage.folder, 'other'))
    const log = await bobbin.rows<{ topHash: string; message: string }>('log', `${registry}/us/pushed`)
    t.match(log, [
      { topHash, message: 'the second' },
      { topHash: ours.topHash, message: 'the first \u2603' },
    ])
  })
}

async function sameConflicts(t: Test, stage: Stage, bucket: string): Promise<void> {
  const { bobbin, quilt3 } = stage
  const registry = `s3://${bucket}`
  const name = 'con/flict'
  const reference = `${registry}/${name}`
  const one = folderOf(stage, { a: 'one' })
  const two = folderOf(stage, { a: 'two' })
  const three = folderOf(stage, { a: 'three' })
  const theirs = (folder: string, more: object = {}) =>
    quilt3.call<Dump & { error?: string }>('push_folder', { folder, registry, name, message: 'theirs', ...more })
  const ours = (folder: string, ...more: string[]) => bobbin.try('push', folder, reference, '-m', 'ours', ...more)

  const first = await theirs(one)
  const refused = await ours(two)
  t.equal(refused.status, 11)
  t.match(refused.stderr, `is ${first.topHash}, and no parent was named`)
  t.match(refused.stderr, /--parent, or override it with --force/)
  t.equal((await bobbin.text('resolve', reference)).trim(), first.topHash, 'nothing has changed')
  t.match(await theirs(two), { error: 'QuiltConflictException' }, 'quilt3 says the same')

  const second = await ours(two, '--parent', first.topHash)
  t.equal(second.status, 0, second.stderr)
  t.match(await theirs(three, { parent: first.topHash }), { error: 'QuiltConflictException' }, 'a parent that is old')
  const old = await ours(three, '--parent', first.topHash)
  t.equal(old.status, 11)
  t.match(old.stderr, `this was made from ${first.topHash}`)
  t.match(await theirs(three, { parent: second.stdout.trim() }), { topHash: /^[0-9a-f]{64}$/ }, 'quilt3 follows ours')
  t.equal((await ours(one, '--force')).status, 0)
  for (const [parent, status] of [
    ['no-hash', 2],
    ['abc', 2],
    ['f'.repeat(64), 11],
  ] as const)
    t.equal((await ours(two, '--parent', parent)).status, status, parent)
  t.equal((await bobbin.rows('log', reference)).length, 4)
}

async function sameSubset(t: Test, stage: Stage): Promise<void> {
  const { bobbin, quilt3, proxy } = stage
  const registry = 's3://versioned'
  const from = `${registry}/us/pushed`
  proxy.clear()
  const { topHash } = await bobbin.json<{ topHash: string }>(
    ...['filter', from, '--where', "starts_with(key, 'unicode/')", '--push', `${registry}/us/subset`, '-m', 'a part'],
  )
  t.strictSame(uploaded(stage, 'us/subset'), [])
  const args = { name: 'us/pushed', registry, start: 'unicode/', message: 'a part' }
  t.equal(topHash, await quilt3.call('filtered', args), "quilt3's filter has the same top hash")
  const dump = await quilt3.call<Dump>('dump', { name: 'us/subset', registry, top_hash: topHash })
  t.equal(Object.keys(dump.entries).length, 6)
  for (const { physicalKey } of Object.values(dump.entries)) t.match(physicalKey, `${from}/unicode/`)
  const again = await bobbin.try(
    ...['filter', from, '--where', "starts_with(key, 'unicode/')", '--push', `${registry}/us/subset`, '-m', 'a part'],
  )
  t.match(again, { status: 0, stderr: /already/ })

  const changes = await bobbin.rows<{ change: string; key?: string; bytesToFetch?: number }>(
    'diff',
    from,
    `${registry}/us/subset`,
  )
  const total = changes.at(-1)!
  t.match(total, { change: 'total', added: 0, changed: 0, bytesToFetch: 0 })
  t.ok(changes.slice(0, -1).every(({ change, key }) => change === 'removed' && !key!.startsWith('unicode/')))
  const back = await bobbin.rows<{ change: string }>('diff', `${registry}/us/subset`, from)
  // The same bytes stand twice in the package, under two names, and a link has a third copy of README.md.
  const entries = (
    await bobbin.rows<{ type: string; key: string; hash: string; size: number }>('ls', from, '-R')
  ).filter(({ type }) => type === 'file')
  const missing = new Map(
    entries.filter(({ key }) => !key.startsWith('unicode/')).map(({ hash, size }) => [hash, size]),
  )
  const bytesToFetch = [...missing.values()].reduce((sum, size) => sum + size, 0)
  t.match(back.at(-1), { change: 'total', added: changes.length - 1, removed: 0, bytesToFetch })

  const none = await bobbin.try('filter', from, '--where', 'meta.a.b', '--push', `${registry}/us/none`, '-m', 'none')
  t.match(none, { status: 2, stderr: /no entry is selected/ })
  const wrong = await bobbin.try('filter', from, '--where', 'a ||', '--push', `${registry}/us/none`, '-m', 'none')
  t.match(wrong, { status: 2, stderr: /not a JMESPath expression/ })
  t.strictSame(await pointersOf(stage, registry, 'us/none'), {})
}

async function race(t: Test, stage: Stage): Promise<void> {
  const { bobbin } = stage
  const registry = 's3://plain'
  const folders = Array.from({ length: 6 }, (_, i) => folderOf(stage, { who: `writer ${i}`, both: 'the same' }))
  const outcomes = await Promise.all(folders.map(dir => bobbin.try('push', dir, `${registry}/ra/ce`, '-m', 'mine')))
  const winners = outcomes.filter(({ status }) => status === 0)
  t.equal(winners.length, 1, outcomes.map(({ stderr }) => stderr).join('\n'))
  t.ok(outcomes.every(({ status }) => status === 0 || status === 11))
  const pointers = await pointersOf(stage, registry, 'ra/ce')
  t.equal(pointers.latest?.topHash, winners[0]!.stdout.trim())
  t.ok(Object.values(pointers).every(({ isThere }) => isThere))
  const forced = await Promise.all(
    folders.map(dir => bobbin.try('push', dir, `${registry}/ra/ce`, '-m', 'x', '--force')),
  )
  t.ok(
    forced.every(({ status }) => status === 0),
    forced.map(({ stderr }) => stderr).join('\n'),
  )
  const log = await bobbin.rows<{ topHash: string }>('log', `${registry}/ra/ce`)
  for (const { stdout } of forced)
    t.ok(
      log.some(({ topHash }) => topHash === stdout.trim()),
      'each is in the history',
    )
}

async function killed(t: Test, stage: Stage): Promise<void> {
  const { bobbin, quilt3, proxy, env } = stage
  const registry = 's3://versioned'
  const dir = folderOf(stage, { 'a-small': 'small', large: LARGE })
  proxy.clear()
  // The second part never gets an answer.
  proxy.fault({ kind: 'stall' }, { match: ({ method, url }) => method === 'PUT' && url.includes('partNumber=2') })
  const args = ['push', dir, `${registry}/ki/lled`, '-m', 'm']
  const child = spawn(process.execPath, [bobbinPath, ...args], {
    env: { PATH: process.env.PATH, ...env, BOBBIN_CACHE: bobbin.cacheDir },
    stdio: 'ignore',
  })
  const gone = new Promise(resolve => child.once('exit', resolve))
  await until('the second part is on its way', () => proxy.requests.some(({ url }) => url.includes('partNumber=2')))
  child.kill('SIGKILL')
  await gone
  t.strictSame(await quilt3.call('uploads', { bucket: 'versioned' }), ['ki/lled/large'], 'it has left an upload')
  t.strictSame(await pointersOf(stage, registry, 'ki/lled'), {})
  proxy.clear()
  await bobbin.text(...args)
  t.strictSame(await quilt3.call('uploads', { bucket: 'versioned' }), [], 'which the next push has ended')
  t.strictSame([...new Set(uploaded(stage, 'ki/lled'))], ['large'], 'what was there is not uploaded again')

  proxy.clear()
  proxy.fault({ kind: 'stall' }, { match: ({ method, url }) => method === 'PUT' && url.includes('partNumber=2') })
  const interrupted = spawn(process.execPath, [bobbinPath, 'push', dir, `${registry}/ki/lled2`, '-m', 'm'], {
    env: { PATH: process.env.PATH, ...env, BOBBIN_CACHE: bobbin.cacheDir },
    stdio: 'ignore',
  })
  const ended = new Promise(resolve => interrupted.once('exit', resolve))
  await until('the second part is on its way', () => proxy.requests.some(({ url }) => url.includes('partNumber=2')))
  interrupted.kill('SIGINT')
  t.equal(await ended, 130, 'Ctrl-C')
  t.strictSame(await quilt3.call('uploads', { bucket: 'versioned' }), [], 'leaves nothing')
}

/** What is completed by a request whose answer is lost is no upload any more when it is asked for again. */
async function lostManifest(t: Test, stage: Stage): Promise<void> {
  const { bobbin, proxy, folder } = stage
  const [name, registry] = ['la/rge', 's3://versioned']
  const row = (i: number) => ({
    bytes: 'b',
    meta: { text: String(i).repeat(950_000) },
    physicalKey: `${registry}/any?versionId=any`,
  })
  const files = Object.fromEntries(Array.from({ length: 9 }, (_, i) => [`key-${i}`, row(i)]))
  const { reference } = await writeRegistry(join(folder, 'large'), name, files)
  const expected = await writeRegistry(join(folder, 'expected'), name, files, { message: 'm' })
  proxy.clear()
  const isEnd = ({ method, url }: { method: string; url: string }) =>
    method === 'POST' && url.includes('.quilt/packages/') && url.includes('uploadId=')
  proxy.fault({ kind: 'lost' }, { times: 1, match: isEnd })
  // S3's answer, sooner or later; some servers remember what they have completed.
  const body = '<Error><Code>NoSuchUpload</Code><Message>The specified upload does not exist.</Message></Error>'
  proxy.fault({ kind: 'status', status: 404, body }, { times: 1, match: isEnd })
  const outcome = await bobbin.try('filter', reference, '--where', 'key', '--push', `${registry}/${name}`, '-m', 'm')
  t.equal(outcome.status, 0, outcome.stderr)
  t.equal(outcome.stdout.trim(), expected.topHash)
  t.equal(proxy.requests.filter(isEnd).length, 2, 'it was asked to end the upload, and asked again')
  t.match((await pointersOf(stage, registry, name)).latest, { topHash: expected.topHash, isThere: true })
  proxy.clear()
}

/** Most of the time they wait for a network that is not there. */
const AT_ONCE = 8

/** A first push of three objects, one of them in parts, cut off before and behind each of its requests. */
async function lostAtEachStep(t: Test, stage: Stage): Promise<void> {
  const { quilt3, server, folder, env } = stage
  const registry = 's3://versioned'
  const dir = folderOf(stage, { a: 'a', b: 'b', large: LARGE.subarray(0, 9 * MIB) })
  const cut = async (step: number, kind: 'reset' | 'lost') => {
    const name = `cut/${kind}-${step}`
    const proxy = await startFaultProxy(server.endpoint)
    const bobbin = new Bobbin(join(folder, `cache-${kind}-${step}`), { ...env, AWS_ENDPOINT_URL: proxy.endpoint })
    const push = (...more: string[]) => bobbin.try('push', dir, `${registry}/${name}`, '-m', 'm', ...more)
    proxy.fault({ kind: 'lost' }, { match: () => kind === 'lost' && proxy.requests.length === step })
    proxy.fault({ kind: 'reset' }, { match: () => proxy.requests.length >= step })
    const { status, stderr } = await push('--io-timeout', '2s')
    // On a machine that is busy with the others, 2 s may be too little for one that nothing has cut.
    const isOver = status === 0 && proxy.requests.length < step
    const pointers = await pointersOf(stage, registry, name)
    const seen = { status, stderr, pointers, isOver, again: { status: -1 as number | null, stdout: '', stderr: '' } }
    proxy.clear()
    seen.again = await push()
    const after = await pointersOf(stage, registry, name)
    await proxy.stop()
    return { ...seen, after }
  }
  const topHash = await quilt3.call<string>('top_hash_of', { folder: dir, message: 'm', meta: null })
  for (const kind of ['reset', 'lost'] as const) {
    let isOver = false
    for (let from = 1; !isOver; from += AT_ONCE) {
      const steps = Array.from({ length: AT_ONCE }, (_, i) => from + i)
      const found = await Promise.all(steps.map(step => cut(step, kind)))
      for (const [i, { status, stderr, pointers, again, after, ...seen }] of found.entries()) {
        const what = `${kind} at request ${steps[i]}: ended with ${status}`
        t.ok(
          Object.values(pointers).every(({ isThere }) => isThere),
          `${what}; no pointer names what is not there`,
        )
        if (!seen.isOver) t.match(stderr, /^bobbin: /, what)
        if (pointers.latest === undefined) t.not(status, 0, what)
        t.equal(again.status, 0, `${what}, and then: ${again.stderr}`)
        t.equal(again.stdout.trim(), topHash)
        t.match(after.latest, { topHash, isThere: true })
        isOver ||= seen.isOver
      }
      t.ok(from < 80, 'it ends')
    }
  }
  // But for the one whose id nobody has ever heard, since the answer that had it was lost.
  const left = await quilt3.call<string[]>('uploads', { bucket: 'versioned' })
  t.ok(left.length <= 1 && left.every(key => key.startsWith('cut/lost-')), `uploads that are left: ${left}`)
}

const RULES = `version: "1"
default_workflow: usual
workflows:
  usual:
    name: usual
    is_message_required: true
    metadata_schema: person
  named:
    name: by its name
    handle_pattern: "^team-.+/"
  entries:
    name: entries
    entries_schema: small
schemas:
  person:
    url: s3://rules/person.json
  small:
    url: s3://rules/small.json
`
const PERSON = {
  $schema: 'http://json-schema.org/draft-07/schema#',
  type: 'object',
  required: ['owner'],
  properties: { owner: { type: 'string', minLength: 2 }, age: { type: 'integer', minimum: 0 } },
}
const SMALL = {
  type: 'array',
  maxItems: 2,
  items: { type: 'object', properties: { size: { maximum: 3 }, logical_key: { pattern: '^[ab]$' } } },
}

/** Each case to both: both take it, with the same top hash, or both refuse it. */
async function sameRules(t: Test, stage: Stage): Promise<void> {
  const { bobbin, quilt3 } = stage
  const registry = 's3://rules'
  await quilt3.call('make_bucket', { name: 'rules', versioned: true })
  const put = (key: string, body: string) => quilt3.call('put_text', { bucket: 'rules', key, text: body })
  await put('person.json', JSON.stringify(PERSON))
  await put('small.json', JSON.stringify(SMALL))
  await put('.quilt/workflows/config.yml', RULES)
  const small = folderOf(stage, { a: 'a', b: 'b' })
  const big = folderOf(stage, { a: 'aaaa' })
  const many = folderOf(stage, { a: 'a', b: 'b', c: 'c' })
  const cases: readonly (readonly [
    folder: string,
    workflow: string | null | undefined,
    meta: object | null,
    name?: string,
    message?: string,
  ])[] = [
    [small, undefined, { owner: 'me' }],
    [small, undefined, { owner: 'me', age: 3, more: [1] }],
    [small, undefined, { owner: 'm' }],
    [small, undefined, { owner: 'me', age: 1.5 }],
    [small, undefined, {}],
    [small, undefined, null],
    [small, undefined, { owner: 'me' }, 'wf/silent', ''],
    [small, 'usual', { owner: 'me' }],
    [small, 'nobody', { owner: 'me' }],
    [small, null, null],
    [small, 'named', null],
    [small, 'named', null, 'team-a/named'],
    [small, 'entries', null],
    [big, 'entries', null],
    [many, 'entries', null],
  ]
  for (const [i, [folder, workflow, meta, name = `wf/case-${i}`, message = 'm']] of cases.entries()) {
    const what = `case ${i}: ${JSON.stringify({ workflow, meta, name, message })}`
    const theirs = await quilt3.call<Dump & { error?: string; message?: string }>('push_folder', {
      ...{ folder, registry, name: `${name}-theirs`, message, meta },
      ...(workflow !== undefined && { workflow }),
    })
    const words = ['push', folder, `${registry}/${name}`, '-m', message]
    if (meta !== null) words.push('--meta', JSON.stringify(meta))
    if (workflow !== undefined) words.push('--workflow', workflow ?? '')
    const ours = await bobbin.try(...words)
    if (theirs.error === undefined) {
      t.equal(ours.status, 0, `${what}: ${ours.stderr}`)
      t.equal(ours.stdout.trim(), theirs.topHash, what)
      const manifestOf = (topHash: string) => quilt3.text('manifest', { registry, top_hash: topHash })
      t.equal(await manifestOf(ours.stdout.trim()), await manifestOf(theirs.topHash))
    } else {
      t.equal(ours.status, 2, `${what}: quilt3 says ${theirs.error} ${theirs.message}`)
      t.match(ours.stderr, /^bobbin: the workflow rules of s3:\/\/rules: /)
      t.strictSame(await pointersOf(stage, registry, name), {}, what)
    }
  }
}
