/** Logs: what repeats is counted, and files do not grow without end. */
import { spawn } from 'node:child_process'
import { appendFileSync, closeSync, openSync, readFileSync, statSync, writeFileSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { cutLog } from '../../../../daemon/control/own-log.js'
import { LINES_MAX, type Log, QuietLog } from '../../../../daemon/model/index.js'

function recorded() {
  const lines: string[] = []
  const say = (level: string) => (fields: object, message: string) =>
    void lines.push(`${level} ${message} ${JSON.stringify(fields)}`)
  const log: Log = { info: say('info'), warn: say('warn'), error: say('error') }
  return { lines, log: new QuietLog(log) }
}

t.test('what fails again and again is one line per object and minute, and a count (S88)', async t => {
  const { lines, log } = recorded()
  for (let i = 0; i < 5000; i++)
    for (const key of ['a', 'b']) log.error({ key, error: `request ${i} failed` }, 'a file could not be opened')
  log.warn({ key: 'a' }, 'a file could not be opened')
  log.info({}, 'mounted')
  log.info({}, 'mounted')
  t.strictSame(lines, [
    'error a file could not be opened {"key":"a","error":"request 0 failed"}',
    'error a file could not be opened {"key":"b","error":"request 0 failed"}',
    'warn a file could not be opened {"key":"a"}',
    'info mounted {}',
    'info mounted {}',
  ])
  log.flush()
  t.strictSame(lines.slice(5), [
    'error a file could not be opened: 4,999 more like this in the last minute {"key":"a","error":"request 0 failed"}',
    'error a file could not be opened: 4,999 more like this in the last minute {"key":"b","error":"request 0 failed"}',
  ])
  log.error({ key: 'a' }, 'a file could not be opened')
  t.equal(lines.length, 8, 'the next minute has a line of its own')
  log.flush()
  t.equal(lines.length, 8)
})

t.test('a loop over more objects than a minute has lines is counted together (S88)', async t => {
  const { lines, log } = recorded()
  for (let turn = 0; turn < 3; turn++)
    for (let i = 0; i < 10_000; i++) log.error({ key: `train/${i}` }, 'a file could not be opened')
  t.equal(lines.length, LINES_MAX)
  log.flush()
  t.equal(lines.length, 2 * LINES_MAX + 1)
  t.match(lines.at(-1), `warn ${((10_000 - LINES_MAX) * 3).toLocaleString('en-US')} other warnings and errors`)
})

t.test('a log that is too long becomes the one before it, and its writers go on (S88)', async t => {
  const path = join(t.testdir(), 'daemon.log')
  const fd = openSync(path, 'a')
  t.teardown(() => closeSync(fd))
  writeSync(fd, 'x'.repeat(1000))
  cutLog(fd, path, 1000)
  t.equal(statSync(path).size, 1000, 'it is not too long yet')
  // Another process that has inherited it, as bobbin-fuse has.
  const child = spawn('sh', ['-c', 'read _; echo other'], { stdio: ['pipe', fd, 'ignore'] })
  writeSync(fd, 'y')
  cutLog(fd, path, 1000)
  t.equal(readFileSync(`${path}.1`, 'utf8'), `${'x'.repeat(1000)}y`)
  child.stdin!.end('\n')
  await new Promise(resolve => child.once('exit', resolve))
  writeSync(fd, 'ours')
  t.equal(readFileSync(path, 'utf8'), 'other\nours')
})

t.test('a file that is not our log, or is not appended to, is left as it is', async t => {
  const folder = t.testdir()
  const [log, other] = [join(folder, 'daemon.log'), join(folder, 'other')]
  writeFileSync(log, 'log')
  appendFileSync(other, 'somebody else redirected stderr here')
  const fds = [openSync(other, 'a'), openSync(log, 'r+')]
  t.teardown(() => fds.forEach(closeSync))
  for (const fd of fds) cutLog(fd, log, 1)
  t.equal(readFileSync(log, 'utf8'), 'log')
  t.match(readFileSync(other, 'utf8'), /^somebody/)
  cutLog(fds[0]!, join(folder, 'missing'), 1)
})
