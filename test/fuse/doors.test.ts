/** The daemon's doors, tried by people who are really other users: what a member of the cache's group may do, and a stranger. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { chownSync, lstatSync, mkdirSync, readdirSync, statSync, writeFileSync } from 'node:fs'
import { chmod } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import t, { type Test } from 'tap'
import { findBobbinFuse } from '../../daemon/control/bobbin-fuse.js'
import { DOORS, type Door, doorPath } from '../../daemon/control/doors.js'
import type { StatusFacts } from '../../daemon/control/schema.js'
import { type Outcome, runProgram } from '../support/cli.js'
import { bodyOf, cannotMount, mountsBelow, startDaemon, type TestDaemon, testFolder, until } from '../support/daemon.js'
import { bobbinPath } from '../support/parts.js'
import { type WrittenPackage, writeRegistry } from '../support/registry.js'

t.setTimeout(600_000)

const GROUP = 61_300
const MEMBER = ['setpriv', '--reuid=61301', `--regid=${GROUP}`, '--clear-groups', '--reset-env']
const STRANGER = ['setpriv', '--reuid=61302', '--regid=61302', '--clear-groups', '--reset-env']

const needsRoot = process.getuid?.() === 0 ? false : 'needs root, to become other users'
const cannot = needsRoot || cannotMount()
const cannotNative = cannot || (findBobbinFuse().path === undefined && 'no bobbin-fuse here')

interface Stage {
  readonly daemon: TestDaemon
  readonly written: WrittenPackage
  readonly control: string
}

/** A daemon of root, whose cache is also of a group. */
async function stage(t: Test, transport: 'native' | 'fuse-native'): Promise<Stage> {
  const folder = testFolder(t)
  await chmod(folder, 0o755)
  const written = await writeRegistry(join(folder, 'registry'), 'test/small', { f: 'text' })
  const cacheDir = join(folder, 'cache')
  mkdirSync(cacheDir, { mode: 0o750 })
  chownSync(cacheDir, 0, GROUP)
  const prefix = ['setpriv', `--regid=${GROUP}`, '--clear-groups']
  const daemon = await startDaemon(t, { folder, cacheDir, transport, prefix })
  return { daemon, written, control: join(cacheDir, 'daemon.sock') }
}

interface Answer {
  /** 0: there was no connection. */
  readonly status: number
  readonly body: { readonly code?: string; readonly detail?: string }
}

async function ask(
  who: readonly string[],
  socket: string,
  method: string,
  path: string,
  body?: object,
): Promise<Answer> {
  const [command, ...before] = who
  const data = body === undefined ? [] : ['-H', 'content-type: application/json', '-d', JSON.stringify(body)]
  const args = [
    'curl',
    '-s',
    '--max-time',
    '60',
    '-w',
    '\n%{http_code}',
    '--unix-socket',
    socket,
    '-X',
    method,
    ...data,
  ]
  const { stdout } = await runProgram(command!, [...before, ...args, `http://daemon${path}`])
  const end = stdout.lastIndexOf('\n')
  const text = stdout.slice(0, end).trim()
  return { status: Number(stdout.slice(end + 1)), body: text.startsWith('{') ? JSON.parse(text) : {} }
}

function bobbin(who: readonly string[], cacheDir: string, ...args: string[]): Promise<Outcome> {
  const [command, ...before] = who
  const env = ['env', `BOBBIN_CACHE=${cacheDir}`, 'HOME=/nonexistent', process.execPath, bobbinPath]
  return runProgram(command!, [...before, ...env, ...args])
}

for (const transport of ['fuse-native', 'native'] as const) {
  const skip = transport === 'native' ? cannotNative : cannot
  t.test(`${transport}: a member of the group mounts, unmounts and stops at no door (S70)`, { skip }, async t => {
    const { daemon, written, control } = await stage(t, transport)
    const mounted = await daemon.mount(written, 'mnt')
    const victim = join(daemon.folder, 'python-imports-from-here')
    mkdirSync(victim)
    const attacks: readonly (readonly [method: string, path: string, body: object])[] = [
      ['POST', '/v1/mounts', { ...bodyOf(written, victim), allowOther: true, uid: 0, gid: 0 }],
      ['DELETE', '/v1/mounts', { mountpoint: mounted.path, force: true }],
      ['POST', '/v1/stop', { force: true }],
      // Where objects come from, and what the owner's credentials are a digest of.
      [
        'POST',
        '/v1/reload',
        { environment: { AWS_ENDPOINT_URL: 'http://127.0.0.1:1' }, ioTimeoutMs: 1, offline: true },
      ],
      ['GET', '/v1/surroundings', {}],
    ]
    for (const [method, path, body] of attacks) {
      t.match(await ask(MEMBER, control, method, path, body), { status: 0 }, 'the door of the owner stays shut')
      for (const door of ['leases', 'status'] as const) {
        const answer = await ask(MEMBER, doorPath(control, door), method, path, body)
        t.match(answer, { status: 403, body: { code: 'ACCESS_DENIED' } }, `${method} ${path} at ${door}`)
        t.match(answer.body.detail, control, 'it names the right door')
      }
    }
    t.same(
      mountsBelow(daemon.folder).map(({ mountpoint }) => mountpoint),
      [mounted.path],
      'nothing has changed',
    )
    t.equal(await daemon.client.isAlive(), true)
    await daemon.client.unmount(mounted.path, false)
  })
}

t.test('each door lets in whom it is for, and nobody else (S70)', { skip: cannot }, async t => {
  const { daemon, control } = await stage(t, 'fuse-native')
  const livez = async (who: readonly string[], door: Door) =>
    (await ask(who, doorPath(control, door), 'GET', '/livez')).status
  for (const door of DOORS) {
    const { mode, gid } = statSync(doorPath(control, door))
    t.same({ mode: mode & 0o777, gid }, { mode: door === 'control' ? 0o600 : 0o660, gid: GROUP }, door)
    t.equal(await livez([...STRANGER], door), 0, `a stranger at ${door}`)
  }
  // Also where the folder stops nobody.
  await chmod(daemon.cacheDir, 0o755)
  for (const door of DOORS) t.equal(await livez([...STRANGER], door), 0, `a stranger in front of ${door}`)
  t.equal(await livez(MEMBER, 'control'), 0)
  t.equal(await livez(MEMBER, 'leases'), 200)
  t.equal(await livez(MEMBER, 'status'), 200)
  const renewal = { owner: 'me' }
  t.match(await ask(MEMBER, doorPath(control, 'status'), 'POST', '/v1/objects/renew', renewal), {
    status: 403,
    body: { code: 'ACCESS_DENIED', detail: doorPath(control, 'leases') },
  })
  t.match(await ask(MEMBER, doorPath(control, 'leases'), 'POST', '/v1/objects/renew', renewal), { status: 200 })
  t.match(await ask(MEMBER, doorPath(control, 'leases'), 'GET', '/v2/nothing'), { status: 404 })
})

t.test(
  'the command line of a member reads the status, and is told why it may do no more (S70)',
  { skip: cannot },
  async t => {
    const { daemon, written } = await stage(t, 'fuse-native')
    const mounted = await daemon.mount(written, 'mnt')
    const status = await bobbin(MEMBER, daemon.cacheDir, 'status', '--json')
    t.equal(status.status, 0, status.stderr)
    t.match(JSON.parse(status.stdout), { mounts: [{ mountpoint: mounted.path }] })
    for (const args of [['stop'], ['umount', mounted.path]]) {
      const refused = await bobbin(MEMBER, daemon.cacheDir, ...args)
      t.equal(refused.status, 12, args.join(' '))
      t.match(refused.stderr, /for its owner alone: run this as the owner/)
    }
    const mine = join(daemon.folder, 'member')
    mkdirSync(mine)
    chownSync(mine, 61_301, GROUP)
    t.equal((await bobbin(MEMBER, daemon.cacheDir, 'mount', written.reference, mine)).status, 12)
    const stranger = await bobbin(STRANGER, daemon.cacheDir, 'status')
    t.equal(stranger.status, 12)
    t.match(stranger.stderr, /another user's.*--cache/)
    t.same(
      mountsBelow(daemon.folder).map(({ mountpoint }) => mountpoint),
      [mounted.path],
    )
  },
)

t.test('a member leases what is mounted, and nothing by a registry of its own (S70)', { skip: cannot }, async t => {
  const { daemon, written, control } = await stage(t, 'fuse-native')
  await daemon.mount(written, 'mnt')
  const secret = join(daemon.folder, 'credentials')
  writeFileSync(secret, 'aws_secret_access_key = wJalrXUtnFEMI')
  const evil = await writeRegistry(join(daemon.folder, 'evil'), 'test/small', {
    f: { bytes: 'x', physicalKey: `file://${secret}` },
  })
  const lease = ({ registry, name, topHash }: WrittenPackage) =>
    ask(MEMBER, doorPath(control, 'leases'), 'POST', '/v1/objects/lease', {
      ...{ owner: 'me', lease: 'mine', registry, package: name, topHash, inos: [2], priority: 'demand' },
    })
  t.match(await lease(written), { status: 200, body: { failed: [] } })
  const refused = await lease(evil)
  t.match(refused, { status: 404, body: { code: 'NOT_SERVED' } })
  t.notMatch(JSON.stringify(refused), /credentials|[0-9a-f]{64}/, 'it says nothing of what it found')
  const byHash = { owner: 'me', lease: 'mine', ids: [`sha256/${'0'.repeat(64)}`] }
  t.match(await ask(MEMBER, doorPath(control, 'leases'), 'POST', '/v1/objects/find', byHash), { status: 404 })
})

t.test(
  'a member can neither let go what the loaders of the owner hold, nor read their words (S70)',
  { skip: cannot },
  async t => {
    const { daemon, written, control } = await stage(t, 'fuse-native')
    const { registry, name, topHash } = written
    const lease = {
      owner: 'secret-word',
      lease: 'held',
      registry,
      package: name,
      topHash,
      inos: [2],
      priority: 'demand' as const,
    }
    t.same(await daemon.client.leaseObjects(lease), { failed: [] })
    const leases = doorPath(control, 'leases')
    t.equal(
      (await ask(MEMBER, leases, 'POST', '/v1/objects/release', { owner: 'secret-word', leases: [{ lease: 'held' }] }))
        .status,
      204,
    )
    t.equal((await daemon.client.renewOwner({ owner: 'secret-word' })).leases, 1, 'it is held as before')
    for (const door of ['leases', 'status'] as const) {
      const facts = (await ask(MEMBER, doorPath(control, door), 'GET', '/v1/status')).body as StatusFacts
      t.equal(facts.loader?.owners.length, 2)
      t.notMatch(JSON.stringify(facts), 'secret-word', door)
    }
  },
)

t.test('a member uses up no place, room or memory of the owner (S70)', { skip: cannot }, async t => {
  const { daemon, control } = await stage(t, 'fuse-native')
  const { limitBytes } = (await daemon.client.status()).cache
  const script = `import http.client, json, select, socket, sys
path, large = sys.argv[1], int(sys.argv[2])
def connected():
    s = socket.socket(socket.AF_UNIX); s.settimeout(20); s.connect(path); return s
client = http.client.HTTPConnection("daemon"); client.sock = connected()
def ask(path, body):
    client.request("POST", path, json.dumps(body), {"content-type": "application/json"})
    answer = client.getresponse(); answer.read(); return answer.status
room = ask("/v1/room", {"hold": "large", "what": "x", "bytes": large})
owners = [ask("/v1/objects/renew", {"owner": f"o{i}"}) for i in range(1001)]
holds = [ask("/v1/room", {"hold": f"h{i}", "what": "x", "bytes": 1}) for i in range(1001)]
head = b"POST /v1/objects/lease HTTP/1.1\\r\\nHost: x\\r\\nContent-Type: application/json\\r\\nContent-Length: 4000000\\r\\n\\r\\n"
begun = [connected() for _ in range(40)]
for s in begun: s.sendall(head)
refused = 0
while refused < 24:
    for s in select.select(begun, [], [], 20)[0]:
        refused += b" 429 " in s.recv(100)
        begun.remove(s)
print(json.dumps({"room": room, "owners": owners[-1], "holds": holds[-1], "refused": refused}))
sys.stdout.flush()
sys.stdin.read()`
  const [command, ...before] = MEMBER
  const args = [...before, 'python3', '-c', script, doorPath(control, 'leases'), String(Math.ceil(limitBytes / 6))]
  const member = spawn(command!, args, { stdio: ['pipe', 'pipe', 'inherit'] })
  t.teardown(() => member.kill('SIGKILL'))
  const [said] = (await once(member.stdout, 'data')) as [Buffer]
  const answers = JSON.parse(said.toString()) as Record<string, number>
  // 64 MiB of bodies are let in.
  t.match(answers, { room: 507, owners: 429, holds: 429, refused: 24 })
  // While all that lasts.
  t.same(await daemon.client.renewOwner({ owner: 'mine' }), { leases: 0 })
  await daemon.client.askRoom({ hold: 'mine', what: 'a package', bytes: Math.ceil(limitBytes / 6) })
  member.stdin.end()
})

t.test('the doors outlive the daemon, and bobbin-fuse that replaces itself (S70)', { skip: cannotNative }, async t => {
  const { daemon, control } = await stage(t, 'native')
  const inodes = () => DOORS.map(door => lstatSync(doorPath(control, door)).ino)
  const before = inodes()
  const areOpen = async () => {
    t.equal((await ask([...MEMBER], control, 'GET', '/livez')).status, 0)
    t.equal(await daemon.client.isAlive(), true)
    for (const door of ['leases', 'status'] as const)
      t.equal((await ask(MEMBER, doorPath(control, door), 'GET', '/livez')).status, 200, door)
    t.same(inodes(), before)
  }
  daemon.process.kill('SIGUSR2')
  await until('it was replaced', () => daemon.log().includes('was replaced in place'))
  await areOpen()
  const { daemon: facts } = await daemon.client.status()
  process.kill(facts.pid, 'SIGKILL')
  const pidNow = () =>
    daemon.client.status().then(
      status => status.daemon.pid,
      () => facts.pid,
    )
  await until('there is another one', async () => (await pidNow()) !== facts.pid)
  await areOpen()
  await daemon.client.stop(false)
  t.equal(await daemon.ended, 0)
  t.same(
    readdirSync(dirname(control)).filter(name => name.endsWith('.sock')),
    [],
    'none is left',
  )
})
