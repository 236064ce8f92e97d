/** Where the daemon's sockets lie when the cache's path is too long for one, and somebody else knows the names. */
import { chmodSync, chownSync, lstatSync, mkdirSync, readdirSync, statSync, symlinkSync } from 'node:fs'
import { dirname, join } from 'node:path'
import t, { type Test } from 'tap'
import { DOORS, doorPath, fitDoors, fitsSocket, SOCKET_PATH_BYTES_MAX } from '../../../../daemon/control/doors.js'
import { chooseSocketPath } from '../../../../daemon/control/socket-path.js'
import { testFolder } from '../../../support/daemon.js'

const uid = process.getuid?.() ?? 0
const needsRoot = uid === 0 ? false : 'needs root, to give a folder to another user'
const LONG = `/${'long/'.repeat(30)}cache`

/** Both folders of sockets are in a folder of this test. */
function stage(t: Test, runtimeMode = 0o700) {
  const folder = testFolder(t)
  const [runtime, temporary] = [join(folder, 'run'), join(folder, 'tmp')]
  made(runtime, runtimeMode)
  made(temporary, 0o1777)
  const before = { XDG_RUNTIME_DIR: process.env.XDG_RUNTIME_DIR, TMPDIR: process.env.TMPDIR }
  Object.assign(process.env, { XDG_RUNTIME_DIR: runtime, TMPDIR: temporary })
  t.teardown(() => {
    for (const [name, value] of Object.entries(before)) {
      if (value === undefined) delete process.env[name]
      else process.env[name] = value
    }
  })
  return { folder, runtime, temporary }
}

function made(path: string, mode: number): string {
  mkdirSync(path)
  chmodSync(path, mode)
  return path
}

function isOurs(folder: string): boolean {
  const stats = lstatSync(folder)
  return stats.isDirectory() && stats.uid === uid && (stats.mode & 0o777) === 0o700
}

t.test('chooseSocketPath takes the cache folder where all of its sockets fit', async t => {
  stage(t)
  t.equal(chooseSocketPath('/var/cache/bobbin'), '/var/cache/bobbin/daemon.sock')
  const longest = '/c'.padEnd(SOCKET_PATH_BYTES_MAX - '/daemon.leases.sock'.length, 'x')
  t.equal(chooseSocketPath(longest), `${longest}/daemon.sock`)
  t.notOk(chooseSocketPath(`${longest}x`).startsWith(longest))
  t.equal(fitsSocket('x'.repeat(107)), true)
  t.equal(fitsSocket('ä'.repeat(54)), false, 'bytes count, not characters')
})

t.test('chooseSocketPath takes the runtime folder of this user, then a temporary one', async t => {
  const { runtime, temporary } = stage(t)
  const path = chooseSocketPath(LONG)
  t.equal(dirname(path), join(runtime, 'bobbin'))
  t.ok(isOurs(dirname(path)))
  t.equal(chooseSocketPath(LONG), path, 'the same one each time')
  t.not(chooseSocketPath(`${LONG}2`), path)
  t.same(
    DOORS.map(door => doorPath(path, door).slice(path.length - 5)),
    ['.sock', '.leases.sock', '.status.sock'],
  )
  t.equal(fitDoors(path), true)
  t.same(readdirSync(temporary), [])
})

t.test('a name that somebody else has taken leads to another name (S71)', { skip: needsRoot }, async t => {
  const squats: readonly (readonly [what: string, take: (path: string, elsewhere: string) => void])[] = [
    ['a folder of another user', path => chownSync(made(path, 0o755), 61_001, 61_001)],
    ['a link to a folder of ours', (path, elsewhere) => symlinkSync(elsewhere, path)],
    ['a folder that others may enter', path => made(path, 0o755)],
    ['a link to nothing', path => symlinkSync('/nonexistent', path)],
  ]
  for (const [what, take] of squats) {
    await t.test(what, async t => {
      const { folder, runtime, temporary } = stage(t)
      const elsewhere = join(folder, 'elsewhere')
      mkdirSync(elsewhere, { mode: 0o700 })
      for (const path of [
        join(runtime, 'bobbin'),
        join(temporary, `bobbin-${uid}`),
        join(temporary, `bobbin-${uid}-a`),
      ])
        take(path, elsewhere)
      const path = chooseSocketPath(LONG)
      t.ok(isOurs(dirname(path)), dirname(path))
      t.notOk(path.startsWith(`${runtime}/bobbin/`))
      t.equal(chooseSocketPath(LONG), path, 'the next daemon of this user takes it, too')
      t.same(readdirSync(elsewhere), [], 'nothing was made behind the link')
    })
  }
})

t.test('a runtime folder that others may write to is not used (S71)', async t => {
  const { runtime } = stage(t, 0o777)
  const path = chooseSocketPath(LONG)
  t.notOk(path.startsWith(runtime))
  t.equal(statSync(dirname(path)).mode & 0o077, 0)
})
