/** `bobbin doctor` on what others may do with a cache, its sockets, records and credentials: real files, and its own commands to mend them. */
import { chmodSync, existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { cannotMount } from '../support/can-mount.js'
import { Bobbin, runProgram } from '../support/cli.js'
import { testFolder } from '../support/daemon.js'
import { writeRegistry } from '../support/registry.js'

t.setTimeout(300_000)

const folder = testFolder(t)
const written = await writeRegistry(join(folder, 'registry'), 'ns/pkg', { 'a.txt': 'a' })
const cache = join(folder, 'odd cache')
const state = join(folder, 'state')
const key = join(folder, 'key.pem')
const bobbin = new Bobbin(cache, {
  HOME: folder,
  XDG_CONFIG_HOME: undefined,
  XDG_DATA_HOME: undefined,
  XDG_RUNTIME_DIR: undefined,
  AWS_SHARED_CREDENTIALS_FILE: undefined,
  BOBBIN_CONFIG: undefined,
  BOBBIN_STATE: state,
  BOBBIN_FREE_FLOOR: '0',
  BOBBIN_RUN_KEY: key,
})
t.teardown(() => bobbin.try('stop', '--force'))
const quilt = join(folder, '.local/share/Quilt')
const secrets: readonly string[] = [
  ...['credentials.json', 'auth.json', 'config.yml'].map(name => join(quilt, name)),
  join(folder, '.aws/credentials'),
  join(folder, '.config/bobbin/config.toml'),
]
for (const path of secrets) {
  mkdirSync(join(path, '..'), { recursive: true })
  writeFileSync(path, path.endsWith('.json') ? '{}' : '', { mode: 0o600 })
}
await runProgram('openssl', ['genpkey', '-algorithm', 'ed25519', '-out', key])
chmodSync(key, 0o600)

interface Row {
  readonly check: string
  readonly ok: boolean
  readonly found: string
  readonly fix: string
}
async function rights(): Promise<Row[]> {
  const { stdout } = await bobbin.try('doctor', '--json')
  const rows = stdout
    .trimEnd()
    .split('\n')
    .map(line => JSON.parse(line) as Row)
  return rows.filter(({ check }) => check === 'rights')
}

t.test('what Bobbin makes is narrow: doctor finds nothing after a run, with its daemon up (S79)', async t => {
  await bobbin.text('install', written.reference, join(folder, 'installed'))
  const data = join(folder, 'data')
  const mount = cannotMount() ? [] : ['--mount', `${written.reference}:${data}`]
  const command = cannotMount() ? ['true'] : ['cat', join(data, 'a.txt')]
  const run = await bobbin.try('run', '--host', '--no-code', '--json', ...mount, '--', ...command)
  t.equal(run.status, 0, run.stderr)
  t.ok(existsSync(join(cache, 'daemon.sock')), 'the daemon is there')
  t.match(await rights(), [{ ok: true, found: 'nothing of yours is open to others' }])
})

t.test('doctor names each thing that is wider than it should be, and its own command mends it (S79)', async t => {
  const objects = readdirSync(join(cache, 'objects'), { recursive: true, encoding: 'utf8' })
    .filter(path => /[0-9a-f]{64}$/.test(path))
    .map(path => join(cache, 'objects', path))
  t.equal(objects.length, cannotMount() ? 0 : 1)
  const run = join(state, 'runs', readdirSync(join(state, 'runs'))[0]!)
  const wide: readonly [string, number][] = [
    [cache, 0o755],
    [join(cache, 'objects'), 0o777],
    ...objects.map((path): [string, number] => [path, 0o444]),
    [join(cache, 'owner'), 0o644],
    [join(cache, 'daemon.sock'), 0o660],
    [join(cache, 'daemon.leases.sock'), 0o666],
    [join(cache, 'daemon.status.sock'), 0o777],
    [join(state, 'runs'), 0o755],
    [run, 0o750],
    [join(quilt, 'auth.json'), 0o644],
    [join(quilt, 'credentials.json'), 0o640],
    [join(quilt, 'config.yml'), 0o666],
    [join(folder, '.aws/credentials'), 0o604],
    [join(folder, '.config/bobbin/config.toml'), 0o666],
    [key, 0o640],
    [folder, 0o777],
  ]
  const missing = wide.map(([path]) => path).filter(path => !existsSync(path))
  t.same(missing, [])
  for (const [path, mode] of wide) chmodSync(path, mode)
  const found = await rights()
  for (const [path, mode] of wide) {
    const row = found.find(one => one.found.startsWith(`${path} `))
    t.match(row, { ok: false }, path)
    t.match(row?.found, mode.toString(8).padStart(4, '0'), path)
  }
  const { status, stdout } = await bobbin.try('doctor')
  t.match(stdout, /^note {2}rights .*wider than it should be: 0755, not 0750\n +→ chmod 0750 /m)
  t.not(status, 1, 'others may look, and Bobbin works')
  for (const { fix } of found) t.equal((await runProgram('sh', ['-c', fix])).status, 0, fix)
  t.match(await rights(), [{ ok: true }], 'after its own commands')
})

t.test('a loader says of a token that others may read, and how to mend it (S79)', async t => {
  const token = join(folder, 'token')
  writeFileSync(token, 'x'.repeat(32), { mode: 0o600 })
  // It ends at once, since the address is not one of this machine; what it was told is looked at before.
  const said = async () =>
    (await bobbin.try('loader', '--listen', '203.0.113.1:1', '--serve', written.reference, '--token-file', token))
      .stderr
  t.notMatch(await said(), 'wider than it should be')
  chmodSync(token, 0o644)
  t.match(await said(), `${token} (the token) is wider than it should be: 0644, not 0600`)
})

t.test('doctor looks at where the sockets are, also outside of the cache (S79)', async t => {
  const deep = join(folder, 'd'.repeat(100))
  const other = new Bobbin(deep, {
    HOME: folder,
    BOBBIN_STATE: state,
    BOBBIN_FREE_FLOOR: '0',
    XDG_RUNTIME_DIR: undefined,
  })
  t.teardown(() => other.try('stop', '--force'))
  t.equal((await other.try('run', '--host', '--no-code', '--no-loader', '--', 'true')).status, 0)
  const { socketPath } = JSON.parse(readFileSync(join(deep, 'owner'), 'utf8'))
  t.notOk(socketPath.startsWith(deep))
  chmodSync(socketPath, 0o666)
  const { stdout } = await other.try('doctor')
  t.match(stdout, `${socketPath} (the daemon's socket for control) is wider than it should be: 0666, not 0600`)
})
