/**
 * The units in systemd/: checked by systemd-analyze, and run by a real systemd, which is process 1 of
 * namespaces of its own (systemd-machine.sh) and has the store of descriptors that mounts outlive us in.
 */
import { type ChildProcess, spawn, spawnSync } from 'node:child_process'
import {
  chmodSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmdirSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { findBobbinFuse } from '../../daemon/control/bobbin-fuse.js'
import type { StatusFacts } from '../../daemon/control/schema.js'
import { type Outcome, runProgram } from '../support/cli.js'
import { cannotMount, testFolder, until } from '../support/daemon.js'
import { noise } from '../support/objects.js'
import { bobbinPath, repository } from '../support/parts.js'
import { writeRegistry } from '../support/registry.js'

t.setTimeout(600_000)

const unitPath = (name: string) => join(repository, 'systemd', name)
const LOADER_UNITS = ['bobbin-loader.service', 'bobbin-loader.socket'] as const
const LOADER_SOCKET = '/run/bobbin-loader/loader.sock'
const CACHE = '/var/cache/bobbin'
const SNIPPETS = ['bobbin.sysusers.conf', 'bobbin.tmpfiles.conf'] as const
const MOUNTPOINT = '/mnt/bobbin/coco'
/** What `systemd-analyze security` may say at most, of 10. */
const EXPOSURE = { 'bobbin.service': 4.3, 'bobbin-loader.service': 1.5 } as const
const FILE = 'warm.bin'
const BYTES = noise(3 * 2 ** 20, 1)
const START_MS = 30_000
const { version: VERSION } = JSON.parse(readFileSync(join(repository, 'package.json'), 'utf8')) as { version: string }
/** As long as this one. */
const NEXT_VERSION = VERSION.replaceAll(/\d/g, '9')

const systemd = ['/lib/systemd/systemd', '/usr/lib/systemd/systemd'].find(path => existsSync(path))
const program = findBobbinFuse().path

t.test(
  'the units are what systemd understands',
  { skip: !hasProgram('systemd-analyze') && 'no systemd here' },
  async t => {
    const folder = testFolder(t)
    const names = ['bobbin.service', ...LOADER_UNITS]
    for (const name of names) writeFileSync(join(folder, name), unitText(name, process.execPath))
    const { stderr } = await runProgram(
      'systemd-analyze',
      ['verify', '--man=no', ...names.map(name => join(folder, name))],
      { env: { ...process.env, SYSTEMD_UNIT_PATH: `${folder}:` } },
    )
    const isForUs = (line: string) => line.includes('bobbin')
    // systemd 254 has it; an older one does without.
    const isNewer = (line: string) => line.includes("Unknown key 'FileDescriptorStorePreserve'")
    t.same(
      stderr.split('\n').filter(line => isForUs(line) && !isNewer(line)),
      [],
    )
  },
)

t.test(
  'the units are as closed as visible mounts allow (S72)',
  { skip: !hasProgram('systemd-analyze') && 'no systemd here' },
  async t => {
    for (const [name, most] of Object.entries(EXPOSURE)) {
      const args = ['security', '--offline=true', `--threshold=${most * 10}`, '--no-pager', unitPath(name)]
      const { status, stdout } = await runProgram('systemd-analyze', args)
      t.equal(status, 0, `${name}: ${stdout.split('\n').find(line => line.includes('Overall exposure'))}`)
    }
  },
)

t.test('the unit makes no mount namespace, which would hide the mounts', async t => {
  const settings = readFileSync(unitPath('bobbin.service'), 'utf8')
    .split('\n')
    .filter(line => /^[A-Z]/.test(line))
  t.ok(settings.includes('Type=notify'))
  t.same(
    settings.filter(line =>
      /^(?:Private|Protect(?!Clock|Hostname)|ReadOnly|ReadWrite|Inaccessible|Bind|TemporaryFileSystem|Root|MemoryDeny|DynamicUser)/.test(
        line,
      ),
    ),
    [],
  )
})

/** Of this checkout, with a program of ours where the package would have put it. */
function unitText(name: string, program: string | ((name: string) => string)): string {
  return readFileSync(join(repository, 'systemd', name), 'utf8').replaceAll(
    /\/usr\/bin\/(bobbin(?:-fuse)?)\b/g,
    (_, found: string) => (typeof program === 'string' ? program : program(found)),
  )
}

function hasProgram(name: string): boolean {
  return spawnSync(name, ['--version']).status === 0
}

function cannotBoot(): string | undefined {
  if (process.getuid?.() !== 0) return 'needs root'
  if (systemd === undefined) return 'no systemd here'
  if (program === undefined) return 'no bobbin-fuse here'
  if (cgroupRoot() === undefined) return 'no cgroup2 that can be written to'
  return undefined
}

function cgroupRoot(): string | undefined {
  const line = readFileSync('/proc/self/mounts', 'utf8')
    .split('\n')
    .find(mount => mount.split(' ')[2] === 'cgroup2')
  const [, path, , options = ''] = line?.split(' ') ?? []
  return options.split(',').includes('rw') ? path : undefined
}

interface User {
  readonly uid: number
  readonly gid: number
}

interface Machine {
  readonly users: Readonly<Record<'bobbin' | 'bobbin-fuse' | 'bobbin-loader', User>>
  /** As one of them, with the groups that it has. */
  runAs(user: keyof Machine['users'], command: string, ...args: readonly string[]): Promise<Outcome>
  /** Runs a program beside the units, as root. */
  run(command: string, ...args: readonly string[]): Promise<Outcome>
  spawn(command: string, ...args: readonly string[]): ChildProcess
  show(property: string): Promise<string>
  log(): string
}

/** A journal, which the system has units of its own for, with more than a test has. */
const JOURNAL_UNITS = {
  'systemd-journald.socket': `[Unit]
DefaultDependencies=no
[Socket]
ListenDatagram=/run/systemd/journal/socket
ListenStream=/run/systemd/journal/stdout
PassCredentials=yes
`,
  'systemd-journald.service': `[Unit]
DefaultDependencies=no
Requires=systemd-journald.socket
[Service]
Type=notify
ExecStart=${['/lib/systemd/systemd-journald', '/usr/lib/systemd/systemd-journald'].find(path => existsSync(path))}
Sockets=systemd-journald.socket
`,
}
/** A daemon that cannot start, since everybody may write to its cache, and then one that can. */
const SAID_UNIT = `[Unit]
DefaultDependencies=no
[Service]
Type=exec
ExecStart=/bin/sh -c 'mkdir -m 777 /var/cache/said; bobbin daemon --cache /var/cache/said; chmod 750 /var/cache/said; exec bobbin daemon --cache /var/cache/said'
StandardOutput=journal
StandardError=journal
`

/** Both programs in a folder of their own, as a version of them is installed; with the number that they say they have. */
async function installVersion(folder: string, name: string, version: string): Promise<string> {
  const root = join(folder, 'versions', name)
  mkdirSync(join(root, 'dist'), { recursive: true })
  for (const room of ['cli', 'daemon', 'loader'])
    await runProgram('cp', ['-r', join(repository, 'dist', room), join(root, 'dist')])
  symlinkSync(join(repository, 'node_modules'), join(root, 'node_modules'))
  const facts = JSON.parse(readFileSync(join(repository, 'package.json'), 'utf8')) as object
  writeFileSync(join(root, 'package.json'), JSON.stringify({ ...facts, version }))
  // In its text, as its compiler has put it there.
  const text = readFileSync(program!).toString('latin1').replaceAll(VERSION, version)
  writeFileSync(join(root, 'bobbin-fuse'), Buffer.from(text, 'latin1'), { mode: 0o755 })
  return root
}

function moveTo(folder: string, name: string): void {
  rmSync(join(folder, 'current'), { force: true })
  symlinkSync(join('versions', name), join(folder, 'current'))
}

/** A systemd that starts bobbin.service with this checkout's programs. */
async function boot(t: Test, folder: string): Promise<Machine> {
  chmodSync(folder, 0o755)
  const units = join(folder, 'units')
  const bin = join(folder, 'bin')
  const etc = join(folder, 'root/etc')
  const log = join(folder, 'log')
  for (const path of [units, bin, etc]) mkdirSync(path, { recursive: true })
  for (const name of SNIPPETS) copyFileSync(join(repository, 'systemd', name), join(units, name))
  for (const file of ['passwd', 'group']) copyFileSync(`/etc/${file}`, join(etc, file))
  const made = await runProgram('systemd-sysusers', [`--root=${join(folder, 'root')}`, join(units, SNIPPETS[0])])
  if (made.status !== 0) throw new Error(`systemd-sysusers: ${made.stderr}`)
  await installVersion(folder, 'first', VERSION)
  moveTo(folder, 'first')
  symlinkSync('../current/bobbin-fuse', join(bin, 'bobbin-fuse'))
  symlinkSync('../current/dist/cli/main.js', join(bin, 'bobbin'))
  symlinkSync(process.execPath, join(bin, 'node'))
  for (const name of ['bobbin.service', ...LOADER_UNITS]) {
    writeFileSync(
      join(units, name),
      unitText(name, found => join(bin, found)),
    )
    mkdirSync(join(units, `${name}.d`))
    const allowed = `BOBBIN_ALLOW=file://${join(folder, 'registry')}`
    const service = `[Service]\nEnvironment=${allowed} PATH=${bin}:/usr/bin:/bin BOBBIN_FREE_FLOOR=0\nStandardError=append:${log}\n`
    // PrivateTmp= hides /tmp, where this test is.
    const seen = name === 'bobbin-loader.service' ? `BindReadOnlyPaths=${folder} ${repository}\n` : ''
    const settings = `[Unit]\nDefaultDependencies=no\n${name.endsWith('.service') ? service + seen : ''}`
    writeFileSync(join(units, `${name}.d/test.conf`), settings)
  }

  for (const [name, text] of Object.entries(JOURNAL_UNITS)) writeFileSync(join(units, name), text)
  const environment = `Environment=PATH=${bin}:/usr/bin:/bin BOBBIN_FREE_FLOOR=0`
  writeFileSync(join(units, 'said.service'), `${SAID_UNIT}${environment}\n`)

  const cgroup = join(cgroupRoot()!, `bobbin-test-${process.pid}`)
  mkdirSync(cgroup)
  const script = `echo $$ > "$1/cgroup.procs" && shift && exec setpriv --pdeathsig KILL unshare --fork --kill-child --pid --mount --cgroup --uts --ipc --propagation private "$@"`
  const machine = spawn(
    'sh',
    ['-c', script, 'sh', cgroup, join(repository, 'test/native/systemd-machine.sh'), folder],
    {
      stdio: ['ignore', 'pipe', 'pipe'],
    },
  )
  let said = ''
  for (const output of [machine.stdout, machine.stderr]) {
    output.setEncoding('utf8').on('data', chunk => {
      said += chunk
    })
  }
  const ended = new Promise(resolve => machine.once('close', resolve))
  t.teardown(async () => {
    // Process 1 goes with it, and with process 1 everything that it has started.
    machine.kill('SIGKILL')
    await ended
    await until('its cgroup is empty', () => removeFolders(cgroup))
  })

  const init = () => readFileSync(`/proc/${machine.pid}/task/${machine.pid}/children`, 'utf8').split(' ')[0]!
  await until('process 1 is there', () => init() !== '')
  const inside = (command: string, args: readonly string[]) => {
    if (init() === '') throw new Error(`systemd has ended: ${said}`)
    return ['-t', init(), '--mount', '--pid', '--', command, ...args]
  }
  const run = (command: string, ...args: readonly string[]) => runProgram('nsenter', inside(command, args))
  const passwd = readFileSync(join(etc, 'passwd'), 'utf8').split('\n')
  const userNamed = (name: string): User => {
    const [, , uid, gid] = passwd.find(line => line.startsWith(`${name}:`))!.split(':')
    return { uid: Number(uid), gid: Number(gid) }
  }
  const users = {
    bobbin: userNamed('bobbin'),
    'bobbin-fuse': userNamed('bobbin-fuse'),
    'bobbin-loader': userNamed('bobbin-loader'),
  }
  return {
    users,
    run,
    runAs: (user, command, ...args) =>
      run(
        'setpriv',
        ...[`--reuid=${user}`, `--regid=${users[user].gid}`, '--init-groups', '--reset-env', command],
        ...args,
      ),
    spawn: (command, ...args) => spawn('nsenter', inside(command, args), { stdio: ['pipe', 'pipe', 'inherit'] }),
    show: async property =>
      (await run('systemctl', 'show', '--value', `--property=${property}`, 'bobbin')).stdout.trim(),
    log: () => said + (existsSync(log) ? readFileSync(log, 'utf8') : ''),
  }
}

/** Only folders can be removed from a cgroup, the innermost first. False: somebody is still in one. */
function removeFolders(path: string): boolean {
  try {
    for (const entry of readdirSync(path, { withFileTypes: true })) {
      if (entry.isDirectory() && !removeFolders(join(path, entry.name))) return false
    }
    rmdirSync(path)
    return true
  } catch {
    return !existsSync(path)
  }
}

/** Reads `FILE`, and does it again on the same handle for each line it is sent. */
const READER = `
import hashlib, os, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
for line in sys.stdin:
    print(hashlib.sha256(os.pread(fd, 1 << 30, 0)).hexdigest(), flush=True)`

function nextLine(child: ChildProcess): Promise<string> {
  return new Promise((resolve, reject) => {
    child.stdout!.once('data', chunk => resolve(String(chunk).trim()))
    child.once('close', () => reject(new Error('the reader has ended')))
  })
}

t.test('the unit, run by a real systemd', { skip: cannotMount() || (cannotBoot() ?? false) }, async t => {
  const folder = testFolder(t)
  const machine = await boot(t, folder)
  t.teardown(() => {
    if (!t.passing()) t.comment(machine.log())
  })
  await until('it is ready', async () => (await machine.run('systemctl', 'is-active', 'bobbin')).status === 0, START_MS)
  const mainPid = () => machine.show('MainPID')
  const first = await mainPid()

  const { users } = machine
  const statusOf = async (pid: string) => (await machine.run('cat', `/proc/${pid}/status`)).stdout
  t.match(await statusOf(first), new RegExp(`^Uid:(?:\\s+${users['bobbin-fuse'].uid}){4}$`, 'm'), 'it is not root')
  t.match(await statusOf(first), new RegExp(`^Gid:(?:\\s+${users.bobbin.gid}){4}$`, 'm'), 'it reads the store by group')
  t.match(await statusOf(first), /^CapEff:\s+0*200000$/m, 'CAP_SYS_ADMIN is in effect and nothing else')

  const written = await writeRegistry(join(folder, 'registry'), 'test/small', { [FILE]: BYTES, other: 'other' })
  const mountpoint = MOUNTPOINT
  const bobbinOf = (user: keyof Machine['users'], ...args: string[]) =>
    machine.runAs(user, 'env', `BOBBIN_CACHE=${CACHE}`, join(folder, 'bin/node'), bobbinPath, ...args)
  const bobbin = (...args: string[]) => bobbinOf('bobbin', ...args)

  await t.test('the daemon has a user of its own, and no power over bobbin-fuse (S72)', async t => {
    const { daemon } = JSON.parse((await bobbin('status', '--json')).stdout) as StatusFacts
    const status = await statusOf(String(daemon.pid))
    t.match(status, new RegExp(`^Uid:(?:\\s+${users.bobbin.uid}){4}$`, 'm'))
    t.match(status, /^CapPrm:\s+0+$/m, 'the daemon has no capability')
    for (const signal of ['STOP', 'KILL', 'TERM', 'USR2']) {
      const killed = await machine.runAs('bobbin', 'kill', `-${signal}`, first)
      t.match(killed, { status: 1, stderr: /not permitted/ }, signal)
    }
    t.notMatch(await statusOf(first), /^State:\s+T/m)
    t.equal(await mainPid(), first)
    t.not((await machine.runAs('bobbin', 'cat', `/proc/${first}/environ`)).status, 0, 'nor does it look into it')
  })

  await t.test('mounts are made below /mnt/bobbin, and nowhere else (S72)', async t => {
    const elsewhere = join(folder, 'elsewhere')
    mkdirSync(elsewhere)
    const refused = await bobbin('mount', written.reference, elsewhere, '--allow-other')
    t.match(refused, { status: 2, stderr: /--mount-below/ })
    t.notMatch((await machine.run('cat', '/proc/mounts')).stdout, elsewhere)
  })

  const mounted = await bobbin('mount', written.reference, mountpoint, '--mkdir', '--allow-other', '--json')
  if (!t.equal(mounted.status, 0, 'it mounts', { stderr: mounted.stderr })) return
  t.match(JSON.parse(mounted.stdout), { transport: 'native', openMode: 'passthrough' })
  t.equal((await machine.run('cat', join(mountpoint, 'other'))).stdout, 'other', 'root reads what is mounted')
  t.ok(Number(await machine.show('NFileDescriptorStore')) >= 3, 'systemd holds its connection')

  const reader = machine.spawn('python3', '-c', READER, join(mountpoint, FILE))
  const read = () => {
    const line = nextLine(reader)
    reader.stdin!.write('\n')
    return line
  }
  const digest = await read()
  t.equal(digest.length, 64)

  await t.test('systemctl reload replaces it in place', async t => {
    t.equal((await machine.run('systemctl', 'reload', 'bobbin')).status, 0)
    t.ok(machine.log().includes('was replaced in place'))
    t.equal(await mainPid(), first)
    t.equal(await read(), digest)
  })

  const daemonNow = async () => (JSON.parse((await bobbin('status', '--json')).stdout) as StatusFacts).daemon
  const reload = () => machine.run('systemctl', 'reload', 'bobbin')

  await t.test('an upgrade moves a link: after a reload both programs are the new ones (S134)', async t => {
    await installVersion(folder, 'next', NEXT_VERSION)
    const before = await daemonNow()
    t.match(before, { version: VERSION, supervisorVersion: VERSION })
    moveTo(folder, 'next')
    rmSync(join(folder, 'versions/first'), { recursive: true })
    t.match(
      await daemonNow(),
      { version: VERSION, pid: before.pid },
      'the status needs nothing of the folder that has gone',
    )
    t.match(await reload(), { status: 0 })
    const after = await daemonNow()
    t.match(after, { version: NEXT_VERSION, supervisorVersion: NEXT_VERSION })
    t.not(after.pid, before.pid)
    t.equal(await mainPid(), first)
    t.match((await machine.run('readlink', `/proc/${first}/exe`)).stdout, /versions\/next\/bobbin-fuse$/m)
    t.equal(await read(), digest)
    t.equal((await machine.run('cat', join(mountpoint, 'other'))).stdout, 'other')
  })

  await t.test('a reload fails when one of them cannot be replaced (S134)', async t => {
    const before = await daemonNow()
    const foreign = await installVersion(folder, 'foreign', NEXT_VERSION)
    writeFileSync(join(foreign, 'bobbin-fuse'), '#!/bin/sh\necho 1\n')
    moveTo(folder, 'foreign')
    // By the program that is there: the unit's own would be the one that is wrong.
    const [asRoot, ...words] = [join(folder, 'versions/next/bobbin-fuse'), '--reload', first, '--cache', CACHE]
    t.match(await machine.run(asRoot!, ...words), { status: 1, stderr: /bin\/bobbin-fuse cannot take over/ })
    t.equal((await daemonNow()).pid, before.pid, 'then the daemon stays, too')
    t.equal(await read(), digest)

    const broken = await installVersion(folder, 'broken', NEXT_VERSION)
    writeFileSync(join(broken, 'dist/cli/main.js'), '#!/usr/bin/env node\nprocess.exit(3)')
    moveTo(folder, 'broken')
    t.not((await reload()).status, 0)
    t.match((await machine.run(asRoot!, ...words)).status, 1)
    t.match(await daemonNow(), { pid: before.pid, notReplaced: /exit code 3/ }, 'the daemon that works is kept (S171)')
    t.equal(await read(), digest)
    moveTo(folder, 'next')
    t.equal((await reload()).status, 0, 'back again')
    t.match(await daemonNow(), { version: NEXT_VERSION })
  })

  await t.test('a killed daemon is no matter for systemd', async t => {
    const { daemon } = JSON.parse((await bobbin('status', '--json')).stdout) as StatusFacts
    await machine.run('kill', '-KILL', String(daemon.pid))
    t.equal(await read(), digest)
    await until('there is another one', async () => (await bobbin('status')).status === 0)
    t.equal(await mainPid(), first)
  })

  await t.test('a killed bobbin-fuse goes on with what systemd has kept', async t => {
    await machine.run('kill', '-KILL', first)
    await until('it is started again', async () => !['0', first].includes(await mainPid()))
    t.equal(await read(), digest, 'an open file is read on')
    t.equal((await machine.run('cat', join(mountpoint, 'other'))).stdout, 'other')
    await until('its daemon is there', async () => (await bobbin('status')).status === 0)
    const { mounts } = JSON.parse((await bobbin('status', '--json')).stdout) as StatusFacts
    t.match(mounts, [{ mountpoint, transport: 'native' }])
    t.equal(await machine.show('NRestarts'), '1')
  })

  await t.test('the loader is started by its socket, and is no more than its clients need', async t => {
    const member = ['--reuid=65534', `--regid=${users.bobbin.gid}`, '--clear-groups', '--reset-env']
    const curl = (...args: string[]) =>
      machine.run('setpriv', ...member, 'curl', '-sSf', '--max-time', '30', '--unix-socket', LOADER_SOCKET, ...args)
    const property = async (name: string) =>
      (await machine.run('systemctl', 'show', '--value', `--property=${name}`, 'bobbin-loader')).stdout.trim()
    t.equal((await machine.run('systemctl', 'start', 'bobbin-loader.socket')).status, 0)
    t.equal(await property('ActiveState'), 'inactive', 'nobody has asked for anything')
    const body = JSON.stringify({ package: written.reference, batch: { global: 2 } })
    const json = ['-H', 'content-type: application/json', '-d', body]
    const plan = await curl(...json, 'http://loader/v1/plans')
    if (
      !t.equal(plan.status, 0, 'the first client waits until it is there', {
        stderr: plan.stderr,
        unit: (
          await machine.run(
            'systemctl',
            'show',
            'bobbin-loader',
            '-pResult',
            '-pExecMainStatus',
            '-pExecMainCode',
            '-pNRestarts',
            '-pSubState',
          )
        ).stdout,
      })
    )
      return
    const { planId } = JSON.parse(plan.stdout) as { planId: string }
    const pid = await property('MainPID')
    const facts = (await machine.run('cat', `/proc/${pid}/status`)).stdout
    t.match(facts, new RegExp(`^Uid:(?:\\s+${users['bobbin-loader'].uid}){4}$`, 'm'), 'its user is a third one')
    t.match(facts, /^CapEff:\s+0+$/m, 'it has no capability')
    const shard = ['-o', '/dev/null', '-w', '%{size_download}', `http://loader/v1/plans/${planId}/batches`]
    t.ok(Number((await curl(...shard)).stdout) > BYTES.length)
    for (const path of ['objects/v1/x', 'loader/x', 'x'])
      t.not((await machine.runAs('bobbin-loader', 'touch', join(CACHE, path))).status, 0, `it cannot write ${path}`)
    t.match(await bobbinOf('bobbin-loader', 'umount', mountpoint, '--force'), { status: 12 }, 'it may not unmount')
    t.match(await bobbinOf('bobbin-loader', 'status'), { status: 0 })
    t.not(
      (
        await machine.run(
          'setpriv',
          '--reuid=65534',
          '--regid=65534',
          '--clear-groups',
          'curl',
          '--unix-socket',
          LOADER_SOCKET,
          'http://loader/livez',
        )
      ).status,
      0,
      'others may not ask',
    )

    await machine.run('kill', '-KILL', pid)
    t.ok(Number((await curl(...shard)).stdout) > BYTES.length, 'killed, it is there for the next one')
    t.not(await property('MainPID'), pid)
    t.equal((await machine.run('systemctl', 'stop', 'bobbin-loader.service', 'bobbin-loader.socket')).status, 0)
    t.equal(await property('Result'), 'success')
  })

  await t.test('journalctl finds errors by their priority (S137)', async t => {
    t.match(await machine.run('systemctl', 'start', 'systemd-journald.socket', 'said.service'), { status: 0 })
    const journal = async (...args: string[]) =>
      (await machine.run('journalctl', '-D', '/run/log/journal', '-u', 'said', '-o', 'cat', '--no-pager', ...args))
        .stdout
    await until('the second one is ready', async () => (await journal()).includes('the daemon is ready'))
    const errors = (await journal('-p', 'err')).trimEnd().split('\n')
    t.ok(errors.length > 0 && errors.every(line => line.includes('everybody may write')), 'the number is taken away', {
      errors,
    })
    t.equal((await machine.run('systemctl', 'stop', 'said')).status, 0)
  })

  await t.test('systemctl stop leaves nothing', async t => {
    reader.stdin!.end()
    await new Promise(resolve => reader.once('close', resolve))
    t.equal((await machine.run('systemctl', 'stop', 'bobbin')).status, 0)
    t.equal(await machine.show('Result'), 'success')
    t.equal(await machine.show('NFileDescriptorStore'), '0')
    t.notMatch((await machine.run('cat', '/proc/mounts')).stdout, mountpoint)
    t.notMatch((await machine.run('ps', '-eo', 'user:20,args')).stdout, /^bobbin(?:-fuse|-loader)? /m)
  })
})
