/** The command line on a registry in a folder: verbs, exit codes, messages, and what is left behind. */
import { type ChildProcess, spawn } from 'node:child_process'
import { chmodSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import t, { type Test } from 'tap'
import { findBobbinFuse } from '../../daemon/control/bobbin-fuse.js'
import { cannotMount } from '../support/can-mount.js'
import { Bobbin, runProgram } from '../support/cli.js'
import { testFolder } from '../support/daemon.js'
import { fileRow, manifestText, topHashOf } from '../support/manifest.js'
import { bobbinPath } from '../support/parts.js'
import { writeRegistry } from '../support/registry.js'

const FILES = {
  'a/one.txt': { bytes: 'one', meta: { n: 1, exact: 12345678901 } },
  'a/two.txt': { bytes: 'two' },
  'b.bin': { bytes: Buffer.alloc(100_000, 7) },
}

async function fixture(t: Test) {
  const folder = testFolder(t)
  const registry = join(folder, 'registry')
  const written = await writeRegistry(registry, 'ns/pkg', FILES, { message: 'hello', userMeta: { k: 'v' } })
  const bobbin = new Bobbin(join(folder, 'cache'), { BOBBIN_CONFIG: undefined, HOME: folder, XDG_CONFIG_HOME: folder })
  t.teardown(() => bobbin.try('stop', '--force'))
  const ends = async (status: number, message: RegExp, ...args: string[]) => {
    const outcome = await bobbin.try(...args)
    t.equal(outcome.status, status, `${args.join(' ')}: ${outcome.stderr}`)
    t.match(outcome.stderr, message)
    return outcome
  }
  return { folder, registry, written, bobbin, ends, latest: `${registry}/ns/pkg` }
}

t.test('read-only verbs work without a daemon, and print the same as text and as JSON', async t => {
  const { bobbin, latest, written } = await fixture(t)
  t.equal(await bobbin.text('resolve', latest), `${written.topHash}\n`)
  t.match(await bobbin.json('resolve', latest), {
    package: 'ns/pkg',
    topHash: written.topHash,
    entries: 3,
    bytes: 100_006,
    message: 'hello',
    metadata: { k: 'v' },
  })
  t.equal(await bobbin.text('packages', written.registry), 'ns/pkg\n')
  t.strictSame(await bobbin.rows('packages', written.registry), [
    { package: 'ns/pkg', revisions: 1, latest: written.topHash },
  ])
  t.match(await bobbin.rows('log', latest), [{ topHash: written.topHash, message: 'hello', tags: ['latest'] }])
  const [, number] = /Z {2}(\d+) {2}\(latest\) {2}hello\n$/.exec(await bobbin.text('log', latest))!
  t.equal(await bobbin.text('resolve', `${latest}:${number}`), `${written.topHash}\n`)
  t.equal(await bobbin.text('ls', latest), 'a/\nb.bin\n')
  t.equal(await bobbin.text('ls', latest, 'a'), 'a/one.txt\na/two.txt\n')
  t.equal(await bobbin.text('ls', latest, '-R'), 'a/one.txt\na/two.txt\nb.bin\n')
  t.match((await bobbin.rows('ls', latest, 'a/one.txt', '-l'))[0], {
    key: 'a/one.txt',
    size: 3,
    hashType: 'sha2-256-chunked',
    cached: false,
  })
  t.match(await bobbin.text('meta', latest, 'a/one.txt'), /"exact": ?12345678901/)
  t.equal(await bobbin.text('cat', latest, 'a/two.txt'), 'two')
  t.strictSame(readdirSync(join(bobbin.cacheDir, 'tmp')), [])
})

t.test('install and verify say what they did, and what differs', async t => {
  const { bobbin, latest, folder, ends } = await fixture(t)
  const target = join(folder, 'target')
  t.match(await bobbin.json('install', latest, target), { files: 3, bytes: 100_006, fetched: 3, reused: 0 })
  t.match(await bobbin.json('install', latest, target), { fetched: 0, reused: 3 })
  t.match(await bobbin.json('verify', latest, target), { ok: true, changed: [], missing: [], extra: [] })
  writeFileSync(join(target, 'a/two.txt'), 'TWO')
  writeFileSync(join(target, 'extra'), '')
  const { stdout } = await ends(13, /1 changed, 0 missing, 1 extra/, 'verify', latest, target, '--json')
  t.match(JSON.parse(stdout), { ok: false, changed: ['a/two.txt'], extra: ['extra'] })
  await bobbin.text('install', latest, target)
  t.match(await bobbin.json('verify', latest, target, '--extra-files-ok'), { ok: true })
  const part = join(folder, 'part')
  t.match(await bobbin.json('install', latest, part, '--path', 'a', '--path', '*.none'), { files: 2 })
  await ends(10, /no entry matches/, 'install', latest, part, '--path', '*.none')
})

t.test('an option takes one value, and leaves the arguments behind it alone (S120)', async t => {
  const { bobbin, latest, folder, ends } = await fixture(t)
  const target = join(folder, 'target')
  t.match(await bobbin.json('install', '--path', 'a/*', latest, target), { files: 2 })
  t.match(await bobbin.json('verify', '--path', 'a/*', latest, target), { ok: true, files: 2, missing: [] })
  t.match(await bobbin.json('verify', '--path', 'a/one.txt', '--path', 'a/two.txt', latest, target), { files: 2 })
  await ends(13, /0 changed, 1 missing, 0 extra/, 'verify', latest, target)
  writeFileSync(join(target, 'a/new.txt'), '')
  writeFileSync(join(target, 'notes.txt'), '')
  const { stdout } = await ends(13, /1 extra/, 'verify', '--json', '--path', 'a/*', latest, target)
  t.match(JSON.parse(stdout), { ok: false, extra: ['a/new.txt'] })
  writeFileSync(join(target, 'a/one.txt'), 'ONE')
  t.match(await bobbin.json('verify', '--path', 'a/two.txt', latest, target), { ok: true, files: 1 })
  await ends(10, /no entry matches nope/, 'verify', '--path', 'nope', latest, target)
  await ends(2, /too many arguments/, 'install', latest, target, '--path', 'a/one.txt', 'a/two.txt')
  const main = readFileSync(new URL('../../../cli/main.ts', import.meta.url), 'utf8')
  t.notMatch(main, /option\([^)]*<[^>]*\.\.\.>/s, 'no verb has an option that takes all words behind it')
})

t.test('every failure has its documented exit code, and a message that says what to do', async t => {
  const { latest, written, registry, folder, ends } = await fixture(t)
  await ends(2, /missing required argument/, 'resolve')
  await ends(2, /unknown command.*\n?.*mount/, 'mont')
  await ends(2, /unknown option/, 'resolve', latest, '--nope')
  await ends(2, /like 30s/, 'resolve', latest, '--io-timeout', 'soon')
  await ends(2, /at least 6|6 to/, 'resolve', `${latest}@abc`)
  await ends(2, /config file .*unknown key/, 'resolve', latest, '--config', write(folder, 'c.toml', 'nope = 1'))
  await ends(2, /not TOML/, 'resolve', latest, '--config', write(folder, 'd.toml', '= ='))
  await ends(10, /no package ns\/nope/, 'resolve', `${registry}/ns/nope`)
  await ends(10, /nowhere/, 'resolve', `${folder}/nowhere/ns/pkg`)
  await ends(10, /"c\.txt"/, 'cat', latest, 'c.txt')
  await ends(10, /directory/, 'cat', latest, 'a')
  const twin = `${written.topHash.slice(0, 6)}${'0'.repeat(58)}`
  write(join(registry, '.quilt/packages'), twin, '')
  const { stderr } = await ends(10, /several revisions/, 'resolve', `${latest}@${written.topHash.slice(0, 6)}`)
  t.match(stderr, twin)
  t.match(stderr, written.topHash, 'the candidates are listed')
  await ends(1, /no daemon runs/, 'status')
  await ends(10, /not mounted/, 'umount', folder)
  await ends(75, /offline/, 'resolve', latest, '--offline', '--cache', join(folder, 'cold'))

  const open = join(folder, 'open')
  mkdirSync(open)
  chmodSync(open, 0o777)
  await ends(12, /chmod o-w/, 'daemon', '--cache', open)

  const rows = [fileRow('../../x'), fileRow('y', { physical_keys: [`file://${registry}/ns/pkg/a/one.txt`] })]
  const hostile = topHashOf(rows)
  write(join(registry, '.quilt/packages'), hostile, manifestText(rows))
  await ends(15, /row 2 .*"\.\.\/\.\.\/x".*--quarantine/, 'ls', `${latest}@${hostile}`)
  const kept = await ends(0, /left out 1 row/, 'ls', `${latest}@${hostile}`, '--quarantine')
  t.equal(kept.stdout, 'y\n')

  write(
    join(registry, '.quilt/packages'),
    written.topHash,
    readFileSync(written.manifestPath, 'utf8').replace('hello', 'hullo'),
  )
  await ends(0, /^$/, 'ls', latest)
  await ends(13, /was changed or cut/, 'ls', latest, '--cache', join(folder, 'new'))
})

t.test('mount, status and umount go through one daemon, which stop ends', { skip: cannotMount() }, async t => {
  const { bobbin, latest, written, folder, ends } = await fixture(t)
  const [one, two] = [join(folder, 'one'), join(folder, 'two')]
  await ends(2, /does not exist/, 'mount', latest, one)
  const facts = await bobbin.json<{ mountpoint: string }>('mount', latest, one, '--mkdir')
  t.match(facts, {
    mountpoint: one,
    package: 'ns/pkg',
    topHash: written.topHash,
    transport: findBobbinFuse().path === undefined ? 'fuse-native' : 'native',
    openMode: /^(?:cached|passthrough)$/,
    entries: 3,
    bytes: 100_006,
  })
  await bobbin.text('mount', latest, two, '--mkdir', '--umask', '077')
  t.equal((await runProgram('cat', [join(one, 'a/one.txt'), join(two, 'a/two.txt')])).stdout, 'onetwo')
  t.match(await bobbin.json('status'), { mounts: [{ mountpoint: one }, { mountpoint: two }], fetch: { objects: 2 } })
  t.match((await bobbin.rows('ls', latest, 'a/one.txt', '-l'))[0], { cached: true })
  await ends(11, /already/, 'mount', latest, one)
  await ends(2, /not empty/, 'mount', latest, folder)
  await ends(2, /not a folder/, 'mount', latest, write(folder, 'file', ''))
  await ends(11, /process \d+/, 'daemon')
  await bobbin.text('umount', two)
  const reader = spawn('sh', ['-c', 'exec 3< "$1"; echo open; sleep 30', 'sh', join(one, 'b.bin')])
  await new Promise(resolve => reader.stdout.once('data', resolve))
  await ends(11, /in use.*--force/, 'umount', one)
  await ends(11, /in use/, 'stop')
  await bobbin.text('umount', one, '--force')
  reader.kill()
  await bobbin.text('stop')
  await ends(1, /no daemon runs/, 'status')
  t.notMatch(readFileSync('/proc/self/mountinfo', 'utf8'), folder)
})

t.test('a reader that closes the pipe early is no failure', async t => {
  const { bobbin, latest } = await fixture(t)
  await bobbin.text('resolve', latest)
  const script = '"$1" "$2" ls "$3" -R; echo "status $?" >&2'
  const { stdout, stderr } = await runProgram(
    'bash',
    ['-c', `{ ${script}; } | head -n 1`, 'sh', process.execPath, bobbinPath, latest],
    {
      env: { ...process.env, BOBBIN_CACHE: bobbin.cacheDir },
    },
  )
  t.equal(stdout, 'a/one.txt\n')
  t.match(stderr, /status 0/)
})

t.test('Ctrl-C and SIGTERM end a verb at once, and leave nothing behind', async t => {
  const { bobbin, folder, registry } = await fixture(t)
  const many = Object.fromEntries(
    Array.from({ length: 400 }, (_, i) => [`d/${i}.bin`, { bytes: Buffer.alloc(400_000, i) }]),
  )
  const { reference } = await writeRegistry(registry, 'ns/many', many)
  for (const [signal, status] of [
    ['SIGINT', 130],
    ['SIGTERM', 143],
  ] as const) {
    const target = join(folder, signal)
    const child = spawn(process.execPath, [bobbinPath, 'install', reference, target], {
      env: { ...process.env, BOBBIN_CACHE: bobbin.cacheDir },
      stdio: ['ignore', 'ignore', 'pipe'],
    })
    const ended = exitOf(child)
    while (filesIn(target).length < 3 && child.exitCode === null) await sleep(2)
    child.kill(signal)
    const { code, stderr } = await ended
    t.equal(code, status, stderr)
    t.match(stderr, /interrupted/)
    t.strictSame(readdirSync(target), ['d'], 'no temporary folder is left')
    for (const path of filesIn(target)) t.equal(readFileSync(path).length, 400_000, 'what is there is whole')
    t.strictSame(readdirSync(join(bobbin.cacheDir, 'tmp')), [])
    await bobbin.text('install', reference, target)
    t.match(await bobbin.json('verify', reference, target), { ok: true })
  }
})

t.test('settings come from flag, environment, config file and default, in this order', async t => {
  const { bobbin, registry, folder, written } = await fixture(t)
  mkdirSync(join(folder, 'bobbin'))
  write(join(folder, 'bobbin'), 'config.toml', `registry = "${registry}"\nio-timeout = "7s"\n`)
  t.equal(await bobbin.text('resolve', 'ns/pkg'), `${written.topHash}\n`)
  const other = join(folder, 'other')
  const moved = await writeRegistry(other, 'ns/pkg', { x: 'x' })
  const fromEnvironment = new Bobbin(bobbin.cacheDir, { HOME: folder, XDG_CONFIG_HOME: folder, BOBBIN_REGISTRY: other })
  t.equal(await fromEnvironment.text('resolve', 'ns/pkg'), `${moved.topHash}\n`)
  t.equal(await fromEnvironment.text('resolve', 'ns/pkg', '--registry', registry), `${written.topHash}\n`)
})

t.test('doctor checks this machine, and says how to mend what is missing', async t => {
  const { bobbin } = await fixture(t)
  const { status, stdout } = await bobbin.try('doctor', '--json')
  const rows = stdout
    .trimEnd()
    .split('\n')
    .map(line => JSON.parse(line) as { check: string; ok: boolean; found: string; fix: string })
  for (const check of ['node', '/dev/fuse', 'libfuse', 'flock', 'cache', 'credentials'])
    t.ok(rows.some(row => row.check === check))
  t.ok(rows.every(({ ok, fix }) => ok || fix !== ''))
  t.equal(status, cannotMount() ? 14 : 0)
})

t.test(
  'doctor sees that root has no right to mount, as in a container without SYS_ADMIN',
  { skip: process.getuid?.() !== 0 && 'only root has the right to mount to give up' },
  async t => {
    const { bobbin } = await fixture(t)
    const { status, stdout } = await runProgram(
      'setpriv',
      ['--bounding-set', '-sys_admin', process.execPath, bobbinPath, 'doctor'],
      { env: { ...process.env, BOBBIN_CACHE: bobbin.cacheDir } },
    )
    t.equal(status, 14, 'it ends as mount does', { stdout })
    t.match(stdout, /FAIL +unmount .*CAP_SYS_ADMIN\)\n.*--cap-add SYS_ADMIN/)
  },
)

function write(folder: string, name: string, text: string): string {
  const path = join(folder, name)
  writeFileSync(path, text)
  return path
}

function filesIn(folder: string): string[] {
  try {
    return readdirSync(join(folder, 'd')).map(name => join(folder, 'd', name))
  } catch {
    return []
  }
}

function exitOf(child: ChildProcess): Promise<{ code: number | null; stderr: string }> {
  let stderr = ''
  child.stderr?.on('data', chunk => {
    stderr += chunk
  })
  return new Promise(resolve => child.once('close', code => resolve({ code, stderr })))
}
