/** `push`, `filter` and `diff` with a registry in a folder: what is written, what is refused, and what is left behind. */
import { type ChildProcess, spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import {
  appendFileSync,
  cpSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { dirname, join } from 'node:path'
import t, { type Test } from 'tap'
import { AS_USERS_DO, Bobbin, runProgram } from '../support/cli.js'
import { testFolder, until } from '../support/daemon.js'
import { noise } from '../support/objects.js'
import { bobbinPath } from '../support/parts.js'
import { cuttableDisk } from '../support/power-cut.js'
import { writeRegistry } from '../support/registry.js'
import { smallDisk } from '../support/small-disk.js'

const MIB = 2 ** 20

type Files = Readonly<Record<string, string | Uint8Array>>

function write(folder: string, files: Files): void {
  for (const [key, bytes] of Object.entries(files)) {
    mkdirSync(dirname(join(folder, key)), { recursive: true })
    writeFileSync(join(folder, key), bytes)
  }
}

function fixture(t: Test, files: Files = { 'a/one': 'one', 'a/two': 'two', b: 'b' }) {
  const folder = testFolder(t)
  const dir = join(folder, 'source')
  mkdirSync(dir)
  write(dir, files)
  const registry = join(folder, 'registry')
  const bobbin = new Bobbin(join(folder, 'cache'), { BOBBIN_CONFIG: undefined, HOME: folder, XDG_CONFIG_HOME: folder })
  const target = `${registry}/me/pkg`
  const push = (...args: string[]) => bobbin.try('push', dir, target, ...args)
  const pushed = async (...args: string[]) => (await bobbin.text('push', dir, target, ...args)).trim()
  const ends = async (status: number, message: RegExp, ...args: string[]) => {
    const outcome = await bobbin.try(...args)
    t.equal(outcome.status, status, `${args.join(' ')}: ${outcome.stderr}`)
    t.match(outcome.stderr, message)
    return outcome
  }
  return { folder, dir, registry, target, bobbin, push, pushed, ends }
}

/** Of a name: pointers, and that each names a manifest that is there. */
function pointersOf(t: Test, registry: string, name = 'me/pkg'): Record<string, string> {
  const folder = join(registry, '.quilt/named_packages', name)
  const found: Record<string, string> = {}
  for (const pointer of existsSync(folder) ? readdirSync(folder) : []) {
    found[pointer] = readFileSync(join(folder, pointer), 'utf8')
    t.ok(existsSync(join(registry, '.quilt/packages', found[pointer]!)), `the manifest of ${pointer} is there`)
  }
  return found
}

function filesBelow(folder: string): string[] {
  return readdirSync(folder, { recursive: true, encoding: 'utf8' })
}

/** What is no part of the format. */
function leftovers(registry: string): string[] {
  return readdirSync(join(registry, '.quilt')).filter(name => name.startsWith('.bobbin-') && name !== '.bobbin-lock')
}

t.test('a folder becomes a package that an independent writer gives the same top hash (S40)', async t => {
  const files = { 'a/one': 'one', 'a/two': Buffer.alloc(9 * MIB, 2), 'a-b': '', '\u00fc': 'umlaut' }
  const { folder, bobbin, dir, target, pushed, registry } = fixture(t, files)
  const meta = { about: 'pushing', list: [1, null] }
  const expected = await writeRegistry(join(folder, 'other'), 'me/pkg', files, { message: 'hello', userMeta: meta })
  const outcome = await bobbin.try('push', dir, target, '-m', 'hello', '--meta', JSON.stringify(meta), '--json')
  t.equal(outcome.status, 0, outcome.stderr)
  t.strictSame(JSON.parse(outcome.stdout), {
    registry: `file://${registry}`,
    package: 'me/pkg',
    topHash: expected.topHash,
    entries: 4,
    bytes: 9 * MIB + 3 + 6,
    message: 'hello',
    metadata: meta,
  })
  t.match(
    outcome.stderr,
    /4 entries, 9\.00 MiB: 4 written, 0 there already; written to me\/pkg in file:.*registry \(a new/,
  )
  const [installed, second] = [join(folder, 'installed'), join(folder, 'second')]
  await bobbin.text('install', target, installed)
  t.match(await bobbin.json('verify', target, installed), { ok: true })
  t.strictSame(leftovers(registry), [])

  await t.test('a registry that was there is not called new', async t => {
    const same = await bobbin.try('push', dir, target, '-m', 'hello', '--meta', JSON.stringify(meta))
    t.match(same.stderr, /this is the latest revision already, me\/pkg in file:.*registry\n$/)
  })

  await t.test('a second revision leaves the first one whole (S42)', async t => {
    write(dir, { 'a/one': 'another one' })
    const { topHash } = await bobbin.json<{ topHash: string }>(
      ...['push', dir, target, '-m', 'second', '--parent', expected.topHash, '--cache', join(folder, 'cache-2')],
    )
    const cache = ['--cache', join(folder, 'cache-3')]
    await bobbin.text('install', `${target}@${expected.topHash}`, second, ...cache)
    t.equal(readFileSync(join(second, 'a/one'), 'utf8'), 'one')
    await bobbin.text('install', `${target}@${topHash}`, second, ...cache)
    t.equal(readFileSync(join(second, 'a/one'), 'utf8'), 'another one')
    const hex = createHash('sha256').update(createHash('sha256').update('another one').digest()).digest('hex')
    t.ok(existsSync(join(registry, '.quilt/objects', hex)), 'the new bytes lie at their hash')
  })

  await t.test('and may be pushed again, as often as one likes', async t => {
    const before = pointersOf(t, registry)
    t.equal(await pushed('-m', 'second'), before.latest)
    t.equal(await pushed('-m', 'second', '--force'), before.latest)
    t.strictSame(pointersOf(t, registry), before)
  })
})

t.test('who has not seen the latest revision is told, and nothing is lost (S41)', async t => {
  const { bobbin, push, pushed, dir, registry, target } = fixture(t)
  const first = await pushed('-m', 'first')
  write(dir, { b: 'changed' })
  const refused = await push('-m', 'second')
  t.match(refused, { status: 11, stdout: '' })
  t.match(refused.stderr, `is ${first}, and no parent was named`)
  t.equal(pointersOf(t, registry).latest, first)
  t.match(await push('-m', 'second', '--parent', 'f'.repeat(12)), { status: 11 })
  t.match(await push('-m', 'second', '--parent', 'nothing'), { status: 2, stderr: /not a top hash/ })
  const second = await pushed('-m', 'second', '--parent', first.slice(0, 8))
  t.not(second, first)
  const third = await pushed('-m', 'third', '--force')
  t.strictSame(
    (await bobbin.rows<{ topHash: string }>('log', target)).map(({ topHash }) => topHash),
    [third, second, first],
    'three revisions, also when they were pushed in one second',
  )
})

t.test('of writers at the same time one wins (S41)', async t => {
  const { bobbin, folder, target, registry } = fixture(t)
  const outcomes = await Promise.all(
    Array.from({ length: 5 }, (_, i) => {
      const dir = join(folder, `writer-${i}`)
      write(dir, { who: `writer ${i}`, both: 'the same' })
      return bobbin.try('push', dir, target, '-m', 'mine')
    }),
  )
  const statuses = outcomes.map(({ status }) => status).sort()
  t.strictSame(statuses, [0, 11, 11, 11, 11], outcomes.map(({ stderr }) => stderr).join('\n'))
  t.equal(pointersOf(t, registry).latest, outcomes.find(({ status }) => status === 0)!.stdout.trim())
})

t.test('what cannot be pushed is refused before anything is written', async t => {
  const { folder, dir, registry, target, ends, bobbin } = fixture(t)
  await ends(2, /no such folder/, 'push', join(folder, 'nowhere'), target, '-m', 'm')
  await ends(2, /no such folder/, 'push', join(dir, 'b'), target, '-m', 'm')
  await ends(2, /leave @ and : out/, 'push', dir, `${target}@${'a'.repeat(64)}`, '-m', 'm')
  await ends(2, /leave @ and : out/, 'push', dir, `${target}:tag`, '-m', 'm')
  await ends(2, /lies in the folder that is pushed/, 'push', folder, target, '-m', 'm')
  for (const meta of ['[1]', '{', '"text"', '{"a":NaN}', '1'])
    await ends(2, /the metadata is not/, 'push', dir, target, '-m', 'm', '--meta', meta)
  await ends(1, /read the metadata in .*nowhere/, 'push', dir, target, '-m', 'm', '--meta', `@${folder}/nowhere`)
  await ends(
    1,
    /the header \(message and metadata of the package\) takes/,
    'push',
    dir,
    target,
    '-m',
    'm',
    '--meta',
    `@${big()}`,
  )
  await ends(2, /no .quilt\/workflows\/config.yml/, 'push', dir, target, '-m', 'm', '--workflow', 'usual')
  await ends(75, /offline: nothing can be pushed/, 'push', dir, 's3://bucket/me/pkg', '-m', 'm', '--offline')
  const hostile = Buffer.concat([Buffer.from(`${dir}/`), Buffer.from([0xff, 0xfe])])
  writeFileSync(hostile, '')
  await ends(2, /its name is not UTF-8/, 'push', dir, target, '-m', 'm')
  rmSync(hostile)
  t.notOk(existsSync(join(registry, '.quilt/packages')))
  t.strictSame(pointersOf(t, registry), {})
  // Words that look like options are words.
  t.match(await bobbin.try('push', dir, target, '-m', '--force', '--json'), {
    status: 0,
    stdout: /"message":"--force"/,
  })

  function big(): string {
    const path = join(folder, 'big.json')
    writeFileSync(path, JSON.stringify({ text: 'x'.repeat(1_000_000) }))
    return path
  }
})

t.test('what is no file is left out, and said', async t => {
  const { folder, dir, bobbin, target } = fixture(t)
  await runProgram('mkfifo', [join(dir, 'fifo')])
  symlinkSync('nowhere', join(dir, 'broken'))
  symlinkSync('b', join(dir, 'link'))
  symlinkSync('.', join(dir, 'circle'))
  write(dir, { '.quiltignore': '*.log\n__pycache__\n', 'a/x.log': '', 'a/__pycache__/x': '' })
  const { status, stderr } = await bobbin.try('push', dir, target, '-m', 'm')
  t.equal(status, 0, stderr)
  for (const line of [
    '"fifo": no regular file',
    '"broken": a symbolic link to nothing',
    '"circle": a symbolic link to a folder',
  ])
    t.match(stderr, `left out ${line}`)
  const keys = (await bobbin.text('ls', target, '-R')).trimEnd().split('\n')
  t.strictSame(keys, ['.quiltignore', 'a/one', 'a/two', 'b', 'link'])
  await bobbin.text('install', target, join(folder, 'installed'))
  t.equal(readFileSync(join(folder, 'installed/link'), 'utf8'), 'b')
})

t.test('a .quiltignore that is no file, or has no end, is refused at once', async t => {
  const { dir, bobbin, target } = fixture(t)
  const rules = join(dir, '.quiltignore')
  for (const make of [
    () => runProgram('mkfifo', [rules]),
    () => symlinkSync('/dev/zero', rules),
    () => writeFileSync(rules, 'x'.repeat(2 ** 20 + 1)),
  ]) {
    await make()
    t.match(await bobbin.try('push', dir, target, '-m', 'm'), { status: 2, stderr: '.quiltignore' })
    rmSync(rules)
  }
})

/** A push of its own, whose end is told. */
function started(t: Test, args: readonly string[], cache: string): { child: ChildProcess; said: () => string } {
  const [command, ...before] = AS_USERS_DO
  const child = spawn(command!, [...before, process.execPath, bobbinPath, ...args], {
    env: { ...process.env, BOBBIN_CACHE: cache },
    stdio: ['ignore', 'ignore', 'pipe'],
  })
  let said = ''
  child.stderr!.setEncoding('utf8').on('data', text => {
    said += text
  })
  t.teardown(() => child.kill('SIGKILL'))
  return { child, said: () => said }
}

t.test('a file that is written to while it is pushed is an error, not a wrong hash (S42)', async t => {
  const { folder, dir, registry, target } = fixture(t, { large: noise(64 * MIB) })
  const { child, said } = started(t, ['push', dir, target, '-m', 'm'], join(folder, 'cache'))
  const ended = new Promise<number | null>(resolve => child.once('exit', resolve))
  let isOver = false
  ended.then(() => {
    isOver = true
  })
  await until('it ends', () => {
    appendFileSync(join(dir, 'large'), 'x')
    return isOver
  })
  t.equal(await ended, 1)
  t.match(said(), /large changed while it was pushed, .*: push again when no program writes to it/)
  t.strictSame(pointersOf(t, registry), {})
  t.strictSame(leftovers(registry), [])
})

t.test('a killed push leaves nothing that counts, and the next one clears it away (S42)', async t => {
  const { folder, dir, registry, target, pushed } = fixture(t, { large: noise(200 * MIB), small: 'small' })
  const { child } = started(t, ['push', dir, target, '-m', 'm'], join(folder, 'cache'))
  await until('it has begun', () => existsSync(join(registry, '.quilt')) && leftovers(registry).length > 0)
  child.kill('SIGKILL')
  await new Promise(resolve => child.once('close', resolve))
  t.equal(leftovers(registry).length, 1)
  t.strictSame(pointersOf(t, registry), {})
  const topHash = await pushed('-m', 'm')
  t.strictSame(leftovers(registry), [])
  t.equal(pointersOf(t, registry).latest, topHash)

  const interrupted = started(t, ['push', dir, `${registry}/me/other`, '-m', 'm'], join(folder, 'cache'))
  const ended = new Promise(resolve => interrupted.child.once('exit', resolve))
  await until('it has begun', () => leftovers(registry).length > 0)
  interrupted.child.kill('SIGTERM')
  t.equal(await ended, 143)
  t.strictSame(leftovers(registry), [])
  t.strictSame(pointersOf(t, registry, 'me/other'), {})
})

t.test('a registry whose disk is full keeps the revisions that it has (S42)', async t => {
  const disk = smallDisk(t, 6)
  if (disk === undefined) return
  const { dir, bobbin } = fixture(t, { a: noise(MIB) })
  const target = `${disk}/registry/me/pkg`
  const first = (await bobbin.text('push', dir, target, '-m', 'first')).trim()
  write(dir, { b: noise(7 * MIB) })
  const { status, stderr } = await bobbin.try('push', dir, target, '-m', 'second', '--parent', first)
  t.equal(status, 1)
  t.match(stderr, /no space|full/i)
  t.equal(pointersOf(t, `${disk}/registry`).latest, first)
  t.strictSame(leftovers(`${disk}/registry`), [])
  rmSync(join(dir, 'b'))
  write(dir, { b: 'b' })
  t.equal((await bobbin.try('push', dir, target, '-m', 'second', '--parent', first)).status, 0)
})

t.test('a revision that was pushed outlives a power cut, with all its objects (S42)', async t => {
  const disk = cuttableDisk(t, 64)
  if (disk === undefined) return
  const files = { 'a/b/one': 'one', 'a/two': noise(100_000), large: noise(9 * MIB), there: 'there already' }
  const { folder, dir, bobbin } = fixture(t, files)
  const registry = join(disk.path, 'some/registry')
  // As another program may have left it a moment ago.
  write(join(registry, 'me/pkg'), { there: files.there })
  const topHash = (await bobbin.text('push', dir, `${registry}/me/pkg`, '-m', 'm')).trim()
  disk.cut()
  t.equal(pointersOf(t, registry).latest, topHash)
  const installed = join(folder, 'installed')
  const outcome = await bobbin.try('install', `${registry}/me/pkg`, installed, '--cache', join(folder, 'other'))
  t.equal(outcome.status, 0, outcome.stderr)
  t.match(await bobbin.json('verify', `${registry}/me/pkg`, installed), { ok: true })
})

t.test('a subset is a package of its own, and points to the same objects (S43)', async t => {
  const { folder, bobbin, registry, ends } = fixture(t)
  const supercategory = (...names: string[]) => ({ annotations: names.map(name => ({ supercategory: name })) })
  const files = {
    'images/1.jpg': { bytes: 'one', meta: supercategory('animal', 'vehicle') },
    'images/2.jpg': { bytes: 'two', meta: supercategory('vehicle') },
    'images/3.jpg': { bytes: 'three', meta: { ...supercategory('animal'), big: 12345678901 } },
    'images/3.txt': { bytes: 'text', meta: supercategory('animal') },
    plain: 'no metadata',
  }
  const { reference, topHash } = await writeRegistry(registry, 'cv/all', files, {
    message: 'all',
    userMeta: { of: 'all' },
  })
  const where = "ends_with(key, '.jpg') && contains(meta.annotations[].supercategory, 'animal')"
  const before = new Set(filesBelow(registry))
  const found = await bobbin.json<{ topHash: string; entries: number; metadata: unknown }>(
    ...['filter', reference, '--where', where, '--push', `${registry}/cv/animals`, '-m', 'animals'],
  )
  t.match(found, { entries: 2, metadata: {}, bytes: 8, package: 'cv/animals', message: 'animals' })
  const expected = await writeRegistry(
    join(folder, 'other'),
    'cv/animals',
    { 'images/1.jpg': files['images/1.jpg'], 'images/3.jpg': files['images/3.jpg'] },
    { message: 'animals' },
  )
  t.equal(found.topHash, expected.topHash)
  const added = filesBelow(registry).filter(name => !before.has(name))
  t.ok(
    added.every(name => name.startsWith('.quilt/')),
    'nothing but a manifest and pointers is new',
  )
  const row = (
    await bobbin.rows<{ physicalKey: string; meta: unknown }>('ls', `${registry}/cv/animals`, 'images/3.jpg')
  )[0]
  t.match(row, { physicalKey: /\/cv\/all\/images\/3\.jpg$/, meta: files['images/3.jpg'].meta })
  t.equal(await bobbin.text('cat', `${registry}/cv/animals`, 'images/1.jpg'), 'one')

  await t.test('what is not possible', async t => {
    const words = ['filter', reference, '--push', `${registry}/cv/none`, '-m', 'm', '--where']
    t.match(await ends(2, /nothing to push: no entry is selected/, ...words, 'meta.no.such'), { stdout: '' })
    await ends(
      2,
      /no entry is selected \(the first entry that failed, ".*": .*contains\(\).*instead; fields are key,/,
      ...words,
      "contains(meta.no.such, 'x')",
    )
    await ends(2, /not a JMESPath expression/, ...words, 'key ==')
    await ends(
      2,
      /cannot be in the new package: it lies in a folder of this machine/,
      'filter',
      reference,
      ...['--push', 's3://bucket/cv/x'],
      ...['-m', 'm', '--where', 'key'],
    )
    await ends(11, /no parent was named/, ...words.with(3, `${registry}/cv/animals`), 'key')
  })

  await t.test('diff says what is different, and what it costs', async t => {
    const changes = await bobbin.rows<{ change: string; key: string }>('diff', reference, `${registry}/cv/animals`)
    t.strictSame(
      changes.slice(0, -1).map(({ change, key }) => `${change} ${key}`),
      ['removed images/2.jpg', 'removed images/3.txt', 'removed plain'],
    )
    t.strictSame(changes.at(-1), {
      change: 'total',
      added: 0,
      removed: 3,
      changed: 0,
      metadata: 0,
      packageMetadata: true,
      bytesToFetch: 0,
    })
    const next = await writeRegistry(
      registry,
      'cv/all',
      {
        ...files,
        'images/1.jpg': { bytes: 'one', meta: { other: true } },
        'images/2.jpg': { bytes: 'two!', meta: files['images/2.jpg'].meta },
        'images/copy.jpg': 'three',
        'images/new.jpg': 'new',
      },
      { userMeta: { of: 'all' } },
    )
    const rows = await bobbin.rows<{ change: string; key: string }>('diff', reference, next.reference)
    t.match(rows, [
      { change: 'metadata', key: 'images/1.jpg', size: 3 },
      { change: 'changed', key: 'images/2.jpg', size: 4, hashType: 'sha2-256-chunked' },
      { change: 'added', key: 'images/copy.jpg' },
      { change: 'added', key: 'images/new.jpg' },
      // The bytes of copy.jpg are those of 3.jpg.
      { change: 'total', added: 2, removed: 0, changed: 1, metadata: 1, packageMetadata: false, bytesToFetch: 4 + 3 },
    ])
    const { stdout, stderr } = await bobbin.try('diff', reference, next.reference)
    t.equal(
      stdout,
      [
        'm        3 B  images/1.jpg',
        '~        4 B  images/2.jpg',
        '+        5 B  images/copy.jpg',
        '+        3 B  images/new.jpg',
        '',
      ].join('\n'),
    )
    t.match(stderr, /2 added, 0 removed, 1 changed, 1 with other metadata; 7 B to fetch/)
    t.equal((await bobbin.try('diff', reference, `${registry}/cv/all@${topHash}`)).stdout, '')
  })
})

t.test('a manifest of another program keeps its rows as they are, in whatever order they stand', async t => {
  const { bobbin, registry } = fixture(t)
  const files = Object.fromEntries(
    ['z', 'a/b', 'a-c', 'm\u00fc'].map(key => [key, { bytes: key, meta: { exact: 1, key } }]),
  )
  const written = await writeRegistry(registry, 'odd/rows', files)
  const rows = readFileSync(written.manifestPath, 'utf8').trimEnd().split('\n')
  // Spaces, other spellings and members that nobody knows: the top hash is of what they mean.
  const odd = rows.slice(1).map(row => row.replace('{', '{ "unknown": [1], ').replace('ü', '\\u00fc'))
  writeFileSync(written.manifestPath, `${[rows[0], ...odd.reverse()].join('\n')}`)
  const all = await bobbin.json<{ topHash: string }>(
    ...['filter', written.reference, '--where', 'key', '--push', `${registry}/odd/all`, '-m', ''],
  )
  const message = await writeRegistry(`${registry}-2`, 'odd/rows', files, { message: '' })
  t.equal(all.topHash, message.topHash)
  t.equal(await bobbin.text('cat', `${registry}/odd/all`, 'm\u00fc'), 'm\u00fc')
  cpSync(registry, `${registry}-3`, { recursive: true })
  t.match(readFileSync(join(registry, '.quilt/packages', all.topHash), 'utf8'), /"unknown": \[1\]/)
})
