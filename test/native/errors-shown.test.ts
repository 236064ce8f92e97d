/** Where an operator finds what went wrong: the journal by its priorities, and `bobbin status`. */
import { spawn } from 'node:child_process'
import { closeSync, fstatSync, mkdirSync, openSync, readFileSync, rmSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { findBobbinFuse } from '../../daemon/control/bobbin-fuse.js'
import { doorPath } from '../../daemon/control/doors.js'
import { isJournal } from '../../daemon/control/journal.js'
import type { StatusFacts } from '../../daemon/control/schema.js'
import { AS_USERS_DO, Bobbin, runProgram } from '../support/cli.js'
import { cannotMount, testFolder, until } from '../support/daemon.js'
import { bobbinPath } from '../support/parts.js'
import { writeRegistry } from '../support/registry.js'

t.setTimeout(300_000)

const skip = cannotMount() || (findBobbinFuse().path === undefined && 'no bobbin-fuse here')

/** A daemon in the foreground whose stderr is a file, which passes for the journal: what systemd tells its services is that file's number. */
async function stage(t: Test, { isToldJournal }: { readonly isToldJournal: boolean }) {
  const folder = testFolder(t)
  const written = await writeRegistry(join(folder, 'registry'), 'ns/pkg', { 'a.txt': 'a', 'gone.txt': 'gone' })
  rmSync(join(folder, 'registry/ns/pkg/gone.txt'), { force: true })
  const cache = join(folder, 'cache')
  const mountpoint = join(folder, 'mnt')
  mkdirSync(mountpoint)
  const log = join(folder, 'log')
  const fd = openSync(log, 'a')
  const { dev, ino } = fstatSync(fd, { bigint: true })
  const env = { ...process.env, BOBBIN_FREE_FLOOR: '0', JOURNAL_STREAM: isToldJournal ? `${dev}:${ino}` : '1:1' }
  const [command, ...words] = [...AS_USERS_DO, process.execPath, bobbinPath, 'daemon', '--cache', cache]
  const child = spawn(command!, words, { stdio: ['ignore', 'ignore', fd], env })
  closeSync(fd)
  const ended = new Promise(resolve => child.once('exit', resolve))
  t.teardown(async () => {
    child.kill('SIGTERM')
    await ended
  })
  const bobbin = new Bobbin(cache, { BOBBIN_FREE_FLOOR: '0' })
  await until('the daemon answers', async () => (await bobbin.try('status')).status === 0)
  const lines = () => readFileSync(log, 'utf8').trimEnd().split('\n')
  const statusDoor = doorPath(join(cache, 'daemon.sock'), 'status')
  return { statusDoor, written, mountpoint, bobbin, lines }
}

t.test('the journal is told how severe each line is, and status has the last errors (S137)', { skip }, async t => {
  const { written, mountpoint, bobbin, lines, statusDoor } = await stage(t, { isToldJournal: true })
  t.same(
    lines().filter(line => !/^<[3467]>\{"level":\d0,.*\}$/.test(line)),
    [],
  )
  t.ok(lines().some(line => /^<6>\{"level":30,.*"the daemon is ready"/.test(line)))
  t.same((await bobbin.json<StatusFacts>('status')).lastErrors, [])

  await bobbin.text('mount', written.reference, mountpoint)
  await t.rejects(readFile(join(mountpoint, 'gone.txt')), { code: 'EIO' })
  const isLogged = (what: RegExp) => lines().some(line => what.test(line))
  t.ok(isLogged(/^<3>\{"level":50,.*"key":"gone\.txt".*\}$/), 'the daemon’s')
  t.ok(isLogged(/^<6>\{"level":30,.*"program":"bobbin-fuse".*"serving a mount"\}$/), 'and what bobbin-fuse says')

  const { lastErrors } = await bobbin.json<StatusFacts>('status')
  t.match(lastErrors, [
    { message: 'a file could not be opened', about: { key: 'gone.txt', package: 'ns/pkg' }, reason: /gone/ },
  ])
  const group = await runProgram('curl', ['-sSf', '--unix-socket', statusDoor, 'http://daemon/v1/status'])
  t.same(JSON.parse(group.stdout).lastErrors, [], 'which are nothing for the group')
  t.match(await bobbin.text('status'), /ago: a file could not be opened \(.*gone\.txt.*\): .*/)
})

t.test(
  'what bobbin-fuse has said is in the status, with the reasons and its side of the link (S172)',
  { skip },
  async t => {
    const { bobbin, lines, statusDoor, written, mountpoint } = await stage(t, { isToldJournal: false })
    await bobbin.text('mount', written.reference, mountpoint)
    const before = await bobbin.json<StatusFacts>('status')
    t.match(before.link, { daemonsStarted: 1, waiting: 0, openObjects: 0 })
    process.kill(before.daemon.pid, 'SIGKILL')
    // No daemon was there to be told of it.
    await until('the next one answers', async () => {
      const { status, stdout } = await bobbin.try('status', '--json')
      return status === 0 && (JSON.parse(stdout) as StatusFacts).daemon.pid !== before.daemon.pid
    })
    const { lastErrors, link } = await bobbin.json<StatusFacts>('status')
    const said = { program: 'bobbin-fuse', level: 'error', message: 'the daemon has ended and is started again' }
    t.match(lastErrors, [{ ...said, about: { exitCode: '137' } }])
    t.match(link, { daemonsStarted: 2 })
    const text = await bobbin.text('status')
    t.match(text, /ago: bobbin-fuse: the daemon has ended and is started again \(137/)
    t.match(text, /^link .*; 2 daemons were started$/m)

    process.kill(before.daemon.supervisorPid!, 'SIGUSR2')
    await until('it has replaced itself', () => lines().some(line => line.includes('was replaced in place')))
    t.match((await bobbin.json<StatusFacts>('status')).lastErrors, [said], 'also after it was replaced in place')
    const group = await runProgram('curl', ['-sSf', '--unix-socket', statusDoor, 'http://daemon/v1/status'])
    t.match(
      JSON.parse(group.stdout),
      { lastErrors: [], daemon: { notReplaced: null } },
      'which is nothing for the group',
    )
  },
)

t.test('another stderr than the journal gets no numbers, whatever the variable says (S137)', { skip }, async t => {
  const { lines } = await stage(t, { isToldJournal: false })
  t.same(
    lines().filter(line => !line.startsWith('{"level":')),
    [],
  )
  t.equal(isJournal(2, {}), false)
  t.equal(isJournal(2, { JOURNAL_STREAM: 'x' }), false)
})
