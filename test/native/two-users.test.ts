/** bobbin-fuse and its daemon with a user each, started by root: what the daemon can do to bobbin-fuse, and whose the files are. */
import { spawn } from 'node:child_process'
import { chownSync, mkdirSync, readFileSync, statSync } from 'node:fs'
import { chmod, readdir } from 'node:fs/promises'
import { join } from 'node:path'
import t from 'tap'
import { daemonCommand, findBobbinFuse } from '../../daemon/control/bobbin-fuse.js'
import { DOORS, doorPath } from '../../daemon/control/doors.js'
import { AS_USERS_DO, runProgram } from '../support/cli.js'
import { cannotMount, reach, testFolder, until } from '../support/daemon.js'

t.setTimeout(300_000)

const BOBBIN_FUSE = 'games'
const DAEMON = 'nobody'

function idOf(user: string): number {
  const line = readFileSync('/etc/passwd', 'utf8')
    .split('\n')
    .find(line => line.startsWith(`${user}:`))
  return Number(line?.split(':')[2])
}

function whyNot(): string | false {
  if (process.getuid?.() !== 0) return 'needs root, to become other users'
  if (findBobbinFuse().path === undefined) return 'no bobbin-fuse here'
  for (const user of [BOBBIN_FUSE, DAEMON]) if (Number.isNaN(idOf(user))) return `there is no user ${user}`
  return cannotMount()
}

t.test('a daemon with a user of its own has no power over bobbin-fuse (S73)', { skip: whyNot() }, async t => {
  const folder = testFolder(t)
  await chmod(folder, 0o755)
  const cacheDir = join(folder, 'cache')
  mkdirSync(cacheDir, { mode: 0o750 })
  chownSync(cacheDir, idOf(DAEMON), 65_534)
  const { argv } = daemonCommand({ cacheDir, ioTimeoutMs: 10_000, offline: false, freeBytesMin: 0 })
  const users = ['--user', BOBBIN_FUSE, '--daemon-user', DAEMON]
  const [command, ...args] = [...AS_USERS_DO, argv[0]!, ...users, ...argv.slice(1)]
  const child = spawn(command!, args, { stdio: ['ignore', 'ignore', 'pipe'] })
  let said = ''
  child.stderr.setEncoding('utf8').on('data', chunk => {
    said += chunk
  })
  const ended = new Promise(resolve => child.once('exit', resolve))
  t.teardown(async () => {
    child.kill('SIGKILL')
    await ended
  })
  const client = await reach(cacheDir, child, () => said)
  const statusOf = (pid: number) => readFileSync(`/proc/${pid}/status`, 'utf8')
  const daemonPid = async () => (await client.status()).daemon.pid

  t.match(statusOf(child.pid!), new RegExp(`^Uid:(?:\\s+${idOf(BOBBIN_FUSE)}){4}$`, 'm'))
  t.match(statusOf(child.pid!), /^CapEff:\s+0*200000$/m, 'CAP_SYS_ADMIN is in effect and nothing else')
  const daemon = statusOf(await daemonPid())
  t.match(daemon, new RegExp(`^Uid:(?:\\s+${idOf(DAEMON)}){4}$`, 'm'))
  for (const set of ['CapPrm', 'CapEff', 'CapInh', 'CapAmb']) t.match(daemon, new RegExp(`^${set}:\\s+0+$`, 'm'))
  t.same(
    ['owner', ...DOORS.map(door => doorPath('daemon.sock', door))].map(name => statSync(join(cacheDir, name)).uid),
    Array.from({ length: 4 }, () => idOf(DAEMON)),
    'its files are its own',
  )

  const asDaemon = ['setpriv', `--reuid=${DAEMON}`, `--regid=65534`, '--clear-groups']
  for (const signal of ['STOP', 'KILL', 'USR2']) {
    const killed = await runProgram(asDaemon[0]!, [...asDaemon.slice(1), 'kill', `-${signal}`, String(child.pid)])
    t.match(killed, { status: 1, stderr: /not permitted/ }, signal)
  }

  await t.test('it is started again as the same, also by a bobbin-fuse that has replaced itself', async t => {
    child.kill('SIGUSR2')
    await until('it was replaced', () => said.includes('was replaced in place'))
    const first = await daemonPid()
    process.kill(first, 'SIGKILL')
    const now = () => daemonPid().catch(() => first)
    await until('there is another one', async () => (await now()) !== first)
    t.match(statusOf(await daemonPid()), new RegExp(`^Uid:(?:\\s+${idOf(DAEMON)}){4}$`, 'm'))
    t.match(statusOf(child.pid!), /^CapEff:\s+0*200000$/m)
  })

  await t.test('bobbin-fuse ends the daemon, which it may signal, and leaves no socket', async t => {
    child.kill('SIGTERM')
    t.equal(await ended, 0)
    t.same(
      (await readdir(cacheDir)).filter(name => name.endsWith('.sock')),
      [],
    )
  })
})

t.test('a user that is not there is refused', { skip: whyNot() }, async t => {
  const folder = testFolder(t)
  for (const option of ['--user', '--daemon-user']) {
    const refused = await runProgram(findBobbinFuse().path!, ['--cache', folder, option, 'nobody-here', '--', 'true'])
    t.match(refused, { status: 1, stderr: new RegExp(`no user nobody-here \\(${option}\\)`) })
  }
})
