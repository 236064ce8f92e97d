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

const UNIT = join(repository, 'systemd/bobbin.service')
const LOADER_UNITS = ['bobbin-loader.service', 'bobbin-loader.socket'] as const
const LOADER_SOCKET = '/run/bobbin-loader/loader.sock'
const CACHE = '/var/cache/bobbin'
const USER_ID = 61_234
const FILE = 'warm.bin'
const BYTES = noise(3 * 2 ** 20, 1)
const START_MS = 30_000

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

t.test('the unit makes no mount namespace, which would hide the mounts', async t => {
  const settings = readFileSync(UNIT, 'utf8')
    .split('\n')
    .filter(line => /^[A-Z]/.test(line))
  t.ok(settings.includes('Type=notify'))
  t.same(
    settings.filter(line =>
      /^(?:Private|Protect|ReadOnly|ReadWrite|Inaccessible|Bind|TemporaryFileSystem|Root|Memory|DynamicUser)/.test(
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

interface Machine {
  /** Runs a program beside the units, as root. */
  run(command: string, ...args: readonly string[]): Promise<Outcome>
  spawn(command: string, ...args: readonly string[]): ChildProcess
  show(property: string): Promise<string>
  log(): string
}

/** A systemd that starts bobbin.service with this checkout's programs. */
async function boot(t: Test, folder: string): Promise<Machine> {
  chmodSync(folder, 0o755)
  const units = join(folder, 'units')
  const bin = join(folder, 'bin')
  const home = join(folder, 'home')
  const log = join(folder, 'log')
  for (const path of [units, bin, home]) mkdirSync(path, { recursive: true })
  for (const [file, line] of [
    ['passwd', `bobbin:x:${USER_ID}:${USER_ID}::${home}:/bin/false`],
    ['group', `bobbin:x:${USER_ID}:`],
  ] as const)
    writeFileSync(join(folder, file), `${readFileSync(`/etc/${file}`, 'utf8').trimEnd()}\n${line}\n`)
  copyFileSync(program!, join(bin, 'bobbin-fuse'))
  symlinkSync(bobbinPath, join(bin, 'bobbin'))
  symlinkSync(process.execPath, join(bin, 'node'))
  for (const name of ['bobbin.service', ...LOADER_UNITS]) {
    writeFileSync(
      join(units, name),
      unitText(name, found => join(bin, found)),
    )
    mkdirSync(join(units, `${name}.d`))
    const service = `[Service]\nEnvironment=PATH=${bin}:/usr/bin:/bin BOBBIN_FREE_FLOOR=0\nStandardError=append:${log}\n`
    // PrivateTmp= hides /tmp, where this test is.
    const seen = name === 'bobbin-loader.service' ? `BindReadOnlyPaths=${folder} ${repository}\n` : ''
    const settings = `[Unit]\nDefaultDependencies=no\n${name.endsWith('.service') ? service + seen : ''}`
    writeFileSync(join(units, `${name}.d/test.conf`), settings)
  }

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
  return {
    run,
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

t.test('the unit, run by a real systemd', { skip: cannotMount() }, async t => {
  const why = cannotBoot()
  if (why !== undefined) return void t.comment(`skipped: ${why}`)
  const folder = testFolder(t)
  const machine = await boot(t, folder)
  t.teardown(() => {
    if (!t.passing()) t.comment(machine.log())
  })
  await until('it is ready', async () => (await machine.run('systemctl', 'is-active', 'bobbin')).status === 0, START_MS)
  const mainPid = () => machine.show('MainPID')
  const first = await mainPid()

  const status = (await machine.run('cat', `/proc/${first}/status`)).stdout
  t.match(status, new RegExp(`^Uid:\\s+${USER_ID}\\b`, 'm'), 'it is not root')
  t.match(status, /^CapEff:\s+0*200000$/m, 'it has CAP_SYS_ADMIN and nothing else')

  const written = await writeRegistry(join(folder, 'registry'), 'test/small', { [FILE]: BYTES, other: 'other' })
  const mountpoint = join(folder, 'mnt')
  mkdirSync(mountpoint)
  const bobbin = (...args: string[]) => {
    const user = [`--reuid=${USER_ID}`, `--regid=${USER_ID}`, '--clear-groups', '--reset-env']
    const command = ['env', `BOBBIN_CACHE=${CACHE}`, join(folder, 'bin/node'), bobbinPath, ...args]
    return machine.run('setpriv', ...user, ...command)
  }
  const mounted = await bobbin('mount', written.reference, mountpoint, '--allow-other', '--json')
  if (!t.equal(mounted.status, 0, 'it mounts', { stderr: mounted.stderr })) return
  t.match(JSON.parse(mounted.stdout), { transport: 'native' })
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
    await until('it has', () => machine.log().includes('was replaced in place'))
    t.equal(await mainPid(), first)
    t.equal(await read(), digest)
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
    const asBobbin = ['--reuid', String(USER_ID), '--regid', String(USER_ID), '--clear-groups', '--reset-env']
    const curl = (...args: string[]) =>
      machine.run('setpriv', ...asBobbin, 'curl', '-sSf', '--max-time', '30', '--unix-socket', LOADER_SOCKET, ...args)
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
    t.match(facts, new RegExp(`^Uid:\\s+${USER_ID}\\b`, 'm'), 'it is not root')
    t.match(facts, /^CapEff:\s+0+$/m, 'it has no capability')
    const shard = ['-o', '/dev/null', '-w', '%{size_download}', `http://loader/v1/plans/${planId}/batches`]
    t.ok(Number((await curl(...shard)).stdout) > BYTES.length)
    t.not(
      (
        await machine.run(
          'setpriv',
          '--reuid=65534',
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

  await t.test('systemctl stop leaves nothing', async t => {
    reader.stdin!.end()
    await new Promise(resolve => reader.once('close', resolve))
    t.equal((await machine.run('systemctl', 'stop', 'bobbin')).status, 0)
    t.equal(await machine.show('Result'), 'success')
    t.equal(await machine.show('NFileDescriptorStore'), '0')
    t.notMatch((await machine.run('cat', '/proc/mounts')).stdout, mountpoint)
    t.notMatch((await machine.run('ps', '-eo', 'user:20,args')).stdout, /^bobbin /m)
  })
})
