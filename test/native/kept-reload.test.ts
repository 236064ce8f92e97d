/** A daemon that bobbin-fuse starts again has what the last reload gave; and commands that rely on a daemon say what differs. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdirSync, readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { findBobbinFuse } from '../../daemon/control/bobbin-fuse.js'
import { doorPath } from '../../daemon/control/doors.js'
import type { StatusFacts } from '../../daemon/control/schema.js'
import { AS_USERS_DO, Bobbin, runProgram } from '../support/cli.js'
import { cannotMount, testFolder, until } from '../support/daemon.js'
import { bobbinPath } from '../support/parts.js'
import { writeRegistry } from '../support/registry.js'

t.setTimeout(200_000)

const skip = cannotMount() || (findBobbinFuse().path === undefined && 'no bobbin-fuse here')
const SECRET = 'a-secret-of-the-second-shell'

interface Shown extends StatusFacts {
  readonly differences: {
    readonly reload: readonly string[]
    readonly start: readonly string[]
    readonly loaders: readonly { readonly pid: number; readonly names: readonly string[] }[]
  }
}

async function stage(t: Parameters<typeof testFolder>[0]) {
  const folder = testFolder(t)
  const written = await writeRegistry(join(folder, 'registry'), 'ns/pkg', { 'a.txt': 'a', 'b.txt': 'b' })
  const cache = join(folder, 'cache')
  const mountpoint = join(folder, 'mnt')
  mkdirSync(mountpoint)
  const plain = { BOBBIN_FREE_FLOOR: '0', BOBBIN_STATE: join(folder, 'state'), NODE_EXTRA_CA_CERTS: undefined }
  const env = Object.fromEntries(
    Object.keys(process.env)
      .filter(name => name.startsWith('AWS_'))
      .map(name => [name, undefined]),
  )
  const first = new Bobbin(cache, { ...env, ...plain, AWS_PROFILE: 'first' })
  const secondEnv = {
    ...env,
    ...plain,
    AWS_PROFILE: 'second',
    AWS_SECRET_ACCESS_KEY: SECRET,
    BOBBIN_CACHE_LIMIT: '1GiB',
  }
  const second = new Bobbin(cache, secondEnv)
  t.teardown(() => first.try('stop', '--force'))
  return { folder, written, cache, mountpoint, first, second, secondEnv }
}

t.test('a daemon that starts again has what the last reload gave, from memory alone (S176)', { skip }, async t => {
  const { folder, written, cache, mountpoint, first, second } = await stage(t)
  await first.text('mount', written.reference, mountpoint)
  t.match((await second.json<Shown>('status')).differences.reload, [
    'AWS_PROFILE',
    'AWS_SECRET_ACCESS_KEY',
    'cache-limit',
  ])
  await second.text('reload', '--io-timeout', '20s')
  const asReloaded = async () => second.json<Shown>('status', '--io-timeout', '20s')
  const { daemon, differences } = await asReloaded()
  t.same(differences, { reload: [], start: [], loaders: [] })
  let { pid } = daemon
  const { supervisorPid } = daemon

  const killed = async (kill: () => void) => {
    const before = pid
    kill()
    await until('the next daemon answers', async () => {
      const { status, stdout } = await second.try('status', '--json', '--io-timeout', '20s')
      if (status === 0) pid = (JSON.parse(stdout) as Shown).daemon.pid
      return pid !== before
    })
    const now = await asReloaded()
    t.same(now.differences, { reload: [], start: [], loaders: [] }, 'nothing differs from the shell of the reload')
    t.equal(now.cache.limitBytes, 2 ** 30)
    t.equal(now.mounts.length, 1)
    t.same((await first.json<Shown>('status')).differences.reload, [
      'AWS_PROFILE',
      'AWS_SECRET_ACCESS_KEY',
      'io-timeout',
    ])
  }
  await killed(() => process.kill(pid, 'SIGKILL'))
  // bobbin-fuse replaces itself, and then its daemon.
  process.kill(supervisorPid!, 'SIGUSR2')
  await until('bobbin-fuse is the next one', async () =>
    readFileSync(join(cache, 'daemon.log'), 'utf8').includes('bobbin-fuse replaces itself'),
  )
  await killed(() => process.kill(pid, 'SIGTERM'))

  for (const entry of readdirSync(folder, { recursive: true, withFileTypes: true })) {
    if (!entry.isFile() || entry.parentPath.startsWith(mountpoint)) continue
    const path = join(entry.parentPath, entry.name)
    t.notOk(readFileSync(path, 'latin1').includes(SECRET), `${path} has no secret`)
  }
  const environ = readFileSync(`/proc/${pid}/environ`, 'latin1')
  t.ok(environ.includes(SECRET), 'a daemon has it from its start, as it has all of its environment')
})

t.test('commands that rely on a daemon say in what it differs (S181)', { skip }, async t => {
  const { folder, written, cache, mountpoint, first, second, secondEnv } = await stage(t)
  await first.text('mount', written.reference, mountpoint)
  const SAID =
    /the daemon \(process \d+\) has other settings than this command: AWS_PROFILE, AWS_SECRET_ACCESS_KEY, cache-limit \(bobbin reload/
  const run = await second.try('run', '--host', '--mount', `${written.reference}:${join(folder, 'data')}`, '--', 'true')
  t.equal(run.status, 0, run.stderr)
  t.match(run.stderr, SAID)
  t.notMatch(
    (await first.try('run', '--host', '--mount', `${written.reference}:${join(folder, 'data')}`, '--', 'true')).stderr,
    /other settings/,
  )

  const [command, ...words] = [...AS_USERS_DO, process.execPath, bobbinPath, 'loader', '--cache', cache]
  const loader = spawn(command!, words, {
    stdio: ['ignore', 'pipe', 'pipe'],
    env: { ...process.env, AWS_EC2_METADATA_DISABLED: 'true', ...secondEnv },
  })
  t.teardown(async () => {
    const ended = once(loader, 'exit')
    loader.kill('SIGTERM')
    await ended
  })
  let said = ''
  loader.stderr.setEncoding('utf8').on('data', text => {
    said += text
  })
  await once(loader.stdout, 'data')
  t.match(said, SAID)
  const owners = async () =>
    (await first.json<Shown>('status')).loader?.owners.filter(({ pid }) => pid !== undefined) ?? []
  await until('the daemon has heard of the loader', async () => (await owners()).length > 0)
  const { differences, loader: facts } = await first.json<Shown>('status')
  t.match(differences.loaders, [{ names: ['AWS_PROFILE', 'AWS_SECRET_ACCESS_KEY'] }])
  t.notOk(JSON.stringify(facts).includes('salt'))
  const asked = async (door: 'control' | 'status') => {
    const path = doorPath(join(cache, 'daemon.sock'), door)
    return (await runProgram('curl', ['-sS', '--unix-socket', path, 'http://daemon/v1/status'])).stdout
  }
  t.match(await asked('control'), /"surroundings":\{"salt"/)
  const others = await asked('status')
  t.match(others, /"owners":\[\{/)
  t.notMatch(others, /surroundings|salt/, 'the digests are for the owner alone')
  t.match(
    await first.text('status'),
    /the loader \(process \d+\) has other settings than this command: AWS_PROFILE, AWS_SECRET_ACCESS_KEY \(/,
  )
  t.same((await second.json<Shown>('status')).differences.loaders, [])
})
