/** Mounts by users who are not the owner of the cache (--mounts-for-group), tried by such users, who mean no good. */
import { type ChildProcess, spawn } from 'node:child_process'
import { chownSync, existsSync, mkdirSync, readFileSync, statSync, symlinkSync, writeFileSync } from 'node:fs'
import { chmod } from 'node:fs/promises'
import { connect, type Socket } from 'node:net'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { daemonCommand, findBobbinFuse } from '../../daemon/control/bobbin-fuse.js'
import { mountsPath } from '../../daemon/control/doors.js'
import { formatRegistry, parseRegistry } from '../../daemon/registry/reference.js'
import { AS_USERS_DO, type Outcome, runProgram } from '../support/cli.js'
import { cannotMount, reach, testFolder, until } from '../support/daemon.js'
import { bobbinPath } from '../support/parts.js'
import { writeRegistry } from '../support/registry.js'

t.setTimeout(300_000)

const GROUP = 61_400
const [MEMBER, OTHER] = [61_401, 61_402]
const as = (uid: number) => ['setpriv', `--reuid=${uid}`, `--regid=${GROUP}`, '--clear-groups', '--reset-env']

function whyNot(): string | false {
  if (process.getuid?.() !== 0) return 'needs root, to become other users'
  if (findBobbinFuse().path === undefined) return 'no bobbin-fuse here'
  return cannotMount()
}

async function stage(t: Test) {
  const folder = testFolder(t)
  await chmod(folder, 0o755)
  const written = await writeRegistry(join(folder, 'registry'), 'test/small', { f: 'text' })
  const [cacheDir, below] = [join(folder, 'cache'), join(folder, 'below')]
  mkdirSync(cacheDir, { mode: 0o750 })
  chownSync(cacheDir, 0, GROUP)
  mkdirSync(below)
  const options = { cacheDir, ioTimeoutMs: 10_000, offline: false, freeBytesMin: 0 }
  const allow = [formatRegistry(parseRegistry(written.registry))]
  const { argv } = daemonCommand({ ...options, allow })
  const flags = ['--mounts-for-group', '--mount-below', below]
  const prefix = ['setpriv', `--regid=${GROUP}`, '--clear-groups', ...AS_USERS_DO]
  const [command, ...args] = [...prefix, argv[0]!, ...flags, ...argv.slice(1)]
  const child: ChildProcess = spawn(command!, args, { stdio: ['ignore', 'ignore', 'pipe'] })
  let said = ''
  child.stderr!.setEncoding('utf8').on('data', chunk => {
    said += chunk
  })
  const ended = new Promise(resolve => child.once('exit', resolve))
  t.teardown(async () => {
    child.kill('SIGTERM')
    await ended
  })
  const client = await reach(cacheDir, child, () => said)
  const bobbin = (uid: number, ...words: string[]): Promise<Outcome> => {
    const [command, ...rest] = [...as(uid), 'env', 'HOME=/nonexistent', `BOBBIN_CACHE=${cacheDir}`]
    return runProgram(command!, [...rest, process.execPath, bobbinPath, ...words])
  }
  const run = (uid: number, ...words: string[]) => runProgram(as(uid)[0]!, [...as(uid).slice(1), ...words])
  const folderOf = (uid: number, name: string) => {
    const path = join(below, name)
    mkdirSync(path)
    chownSync(path, uid, GROUP)
    return path
  }
  const mounts = () =>
    readFileSync('/proc/self/mountinfo', 'utf8')
      .split('\n')
      .filter(line => line.includes(folder))
  const door = mountsPath(join(cacheDir, 'daemon.sock'))
  return { folder, written, cacheDir, client, child, bobbin, run, folderOf, mounts, door, log: () => said }
}

/** One line of a caller, as whoever. */
async function say(uid: number, door: string, line: string): Promise<string> {
  const script = `import socket, sys
s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.sendall(sys.argv[2].encode() + b"\\n")
print(b"".join(iter(lambda: s.recv(65536), b"")).decode())`
  const [command, ...rest] = as(uid)
  return (await runProgram(command!, [...rest, 'python3', '-c', script, door, line])).stdout.trim()
}

t.test('others mount on their own folders, for themselves, what is allowed (S74)', { skip: whyNot() }, async t => {
  const at = await stage(t)
  const { written, bobbin, run, folderOf, mounts, door, client, cacheDir } = at
  t.equal(statSync(door).mode & 0o777, 0o660)
  const mine = folderOf(MEMBER, 'mine')
  const mounted = await bobbin(MEMBER, 'mount', written.reference, mine, '--json')
  if (!t.equal(mounted.status, 0, mounted.stderr)) return
  t.match(JSON.parse(mounted.stdout), { mountpoint: mine, uid: MEMBER })
  t.match(mounts(), [new RegExp(`user_id=${MEMBER},group_id=${GROUP}`)])
  t.notMatch(mounts()[0], 'allow_other')
  t.equal((await run(MEMBER, 'cat', join(mine, 'f'))).stdout, 'text')
  t.match((await run(MEMBER, 'stat', '-c', '%u', join(mine, 'f'))).stdout, String(MEMBER))
  t.match(await run(OTHER, 'cat', join(mine, 'f')), { status: 1, stderr: /denied/ }, 'another member cannot enter')
  t.equal(readFileSync(join(cacheDir, 'mounts'), 'utf8'), '', 'no later daemon unmounts by a path that is theirs')

  await t.test('no other member unmounts it', async t => {
    t.not((await bobbin(OTHER, 'umount', mine, '--force')).status, 0)
    t.equal(mounts().length, 1)
  })

  await t.test('it outlives the daemon, and is that user’s as before', async t => {
    const { daemon } = await client.status()
    process.kill(daemon.pid, 'SIGKILL')
    const now = () =>
      client.status().then(
        status => status.daemon.pid,
        () => daemon.pid,
      )
    await until('there is another one', async () => (await now()) !== daemon.pid)
    t.match((await client.status()).mounts, [{ mountpoint: mine, uid: MEMBER }])
    t.equal((await run(MEMBER, 'cat', join(mine, 'f'))).stdout, 'text')
  })

  await t.test('its user unmounts it, and so does the owner of the cache', async t => {
    const unmounted = await bobbin(MEMBER, 'umount', mine)
    t.equal(unmounted.status, 0, unmounted.stderr)
    t.same(mounts(), [])
    t.equal((await bobbin(MEMBER, 'mount', written.reference, mine)).status, 0)
    await client.unmount(mine, false)
    t.same(mounts(), [])
  })
})

t.test('no mount by others widens what they may do (S74)', { skip: whyNot() }, async t => {
  const { folder, written, bobbin, run, folderOf, mounts, door, client } = await stage(t)
  const { registry, topHash } = written
  const body = (mountpoint: string, more: object = {}) =>
    JSON.stringify({ mount: { registry, package: 'test/small', topHash, mountpoint, ...more } })

  await t.test('not on a folder of root, nor of another member, nor outside', async t => {
    const ofRoot = folderOf(0, 'root')
    const ofOther = folderOf(OTHER, 'other')
    const outside = join(folder, 'outside')
    mkdirSync(outside)
    chownSync(outside, MEMBER, GROUP)
    for (const path of [ofRoot, ofOther]) t.match(await say(MEMBER, door, body(path)), /not yours/, path)
    t.match(await say(MEMBER, door, body(outside)), /--mount-below/)
    t.match(await say(MEMBER, door, body(`${folder}/below/../outside`)), /MOUNTPOINT_UNUSABLE/)
  })

  await t.test('not as somebody else, nor for others', async t => {
    const mine = folderOf(MEMBER, 'mine')
    for (const more of [{ uid: 0 }, { gid: 0 }, { allowOther: true }, { run: folder }])
      t.match(await say(MEMBER, door, body(mine, more)), /INVALID_ARGUMENT/, JSON.stringify(more))
    for (const line of ['', '{}', '[]', 'null', '{"stop":{}}', `{"mount":${'['.repeat(1000)}`])
      t.match(await say(MEMBER, door, line), /INVALID_ARGUMENT/, line.slice(0, 20))
    t.equal(await say(MEMBER, door, 'x'.repeat(70_000)), '', 'a line without an end is hung up on')
  })

  await t.test('not what its owner did not allow, nor what lies elsewhere', async t => {
    const secret = join(folder, 'credentials')
    writeFileSync(secret, 'aws_secret', { mode: 0o600 })
    const own = await writeRegistry(join(folder, 'own'), 'test/small', {
      f: { bytes: 'x', physicalKey: `file://${secret}` },
    })
    const mine = folderOf(MEMBER, 'mine2')
    const refused = await bobbin(MEMBER, 'mount', own.reference, mine)
    t.equal(refused.status, 10, refused.stderr)
    // Somebody has pushed into the registry that is allowed.
    const pushed = await writeRegistry(join(folder, 'registry'), 'test/pushed', {
      f: { bytes: 'aws_secret', physicalKey: `file://${secret}` },
    })
    const mounted = await bobbin(MEMBER, 'mount', pushed.reference, mine)
    t.equal(mounted.status, 0, mounted.stderr)
    const read = await run(MEMBER, 'cat', join(mine, 'f'))
    t.equal(read.status, 1)
    t.notMatch(read.stdout, 'aws_secret')
    await client.unmount(mine, true)
  })

  await t.test('not a package behind a link that leads out of the registry', async t => {
    const hidden = await writeRegistry(join(folder, 'hidden'), 'secret/pkg', { 'patients/alice.txt': 'x' })
    symlinkSync(hidden.manifestPath, join(folder, 'registry/.quilt/packages', hidden.topHash))
    const mine = folderOf(MEMBER, 'mine4')
    const answer = await say(MEMBER, door, body(mine, { topHash: hidden.topHash }))
    t.match(answer, /NOT_SERVED/)
    t.notMatch(answer, /hidden/)
    t.same(mounts(), [])
  })

  await t.test('they learn nothing of the folders of others', async t => {
    const closed = folderOf(OTHER, 'closed')
    await chmod(closed, 0o700)
    for (const name of ['full', 'empty']) mkdirSync(join(closed, name))
    writeFileSync(join(closed, 'full/file'), '')
    symlinkSync('/', join(closed, 'link'))
    const answers = new Set<string>()
    for (const name of ['full', 'empty', 'full/file', 'none', 'link', 'none/below', 'link/etc'])
      answers.add((await say(MEMBER, door, body(join(closed, name)))).replaceAll(join(closed, name), ''))
    t.equal(answers.size, 1, [...answers].join('\n'))
  })

  await t.test('who asks and hangs up, again and again, stops nobody, and takes no memory', async t => {
    const fuse = (await client.status()).daemon.supervisorPid
    const before = (await client.status()).daemon.pid
    const script = `import socket, sys, time
line = b'{"mount":{"registry":"' + b"x" * 60000 + b'"}}\\n'
end = time.time() + 4
while time.time() < end:
    s = socket.socket(socket.AF_UNIX)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 200000)
    try:
        s.connect(sys.argv[1]); s.sendall(line)
    except OSError:
        pass
    s.close()`
    const [command, ...rest] = as(MEMBER)
    await runProgram(command!, [...rest, 'python3', '-c', script, door])
    const kilobytes = Number(/VmHWM:\s*(\d+)/.exec(readFileSync(`/proc/${fuse}/status`, 'utf8'))?.[1])
    t.ok(kilobytes < 32 * 1024, `bobbin-fuse took ${kilobytes} KiB`)
    const mine = folderOf(MEMBER, 'mine5')
    await until('there is room for a caller', async () => /"facts"/.test(await say(MEMBER, door, body(mine))))
    t.equal((await client.status()).daemon.pid, before, 'the daemon goes on')
    await client.unmount(mine, false)
  })

  await t.test('whoever says nothing holds up nobody', async t => {
    const silent: Socket[] = Array.from({ length: 20 }, () => connect(door).on('error', () => {}))
    t.teardown(() => silent.map(socket => socket.destroy()))
    await until('most are hung up on', () => silent.filter(socket => socket.destroyed).length >= 12)
    const mine = folderOf(MEMBER, 'mine3')
    t.match(await say(MEMBER, door, body(mine)), /"facts"/)
    await client.unmount(mine, false)
  })
  t.same(mounts(), [])
})

t.test('without --mounts-for-group there is no such door (S74)', { skip: whyNot() }, async t => {
  const { path } = findBobbinFuse()
  const folder = testFolder(t)
  const refused = await runProgram(path!, ['--cache', folder, '--mounts-for-group', '--', 'true'])
  t.match(refused, { status: 2, stderr: /--mount-below/ }, 'nor anywhere')
  await runProgram(path!, ['--cache', folder, '--', 'sh', '-c', `ls ${folder} > ${folder}/seen`])
  t.match(readFileSync(join(folder, 'seen'), 'utf8'), 'daemon.sock')
  t.notMatch(readFileSync(join(folder, 'seen'), 'utf8'), 'mounts.sock')
  t.notOk(existsSync(join(folder, 'daemon.mounts.sock')))
})
