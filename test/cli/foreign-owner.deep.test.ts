/** Root on a cache, or in a folder, of somebody else: nothing is left there that the owner cannot read. */
import { chownSync, existsSync, mkdirSync, readdirSync } from 'node:fs'
import { chmod } from 'node:fs/promises'
import { join } from 'node:path'
import t from 'tap'
import { findBobbinFuse } from '../../daemon/control/bobbin-fuse.js'
import { AS_USERS_DO, Bobbin, runProgram } from '../support/cli.js'
import { run, testFolder } from '../support/daemon.js'
import { bobbinPath } from '../support/parts.js'
import { writeRegistry } from '../support/registry.js'

t.setTimeout(300_000)

const OWNER = 65_534
const skip = process.getuid?.() !== 0 && 'needs root, to be root in the folder of another user'

t.test(
  'root leaves nothing in a cache of somebody else, and is told to act as its owner (S133) (S173)',
  { skip },
  async t => {
    const folder = testFolder(t)
    await chmod(folder, 0o755)
    const written = await writeRegistry(join(folder, 'registry'), 'ns/pkg', { 'a.txt': 'a' })
    const cache = join(folder, 'cache')
    mkdirSync(cache, { mode: 0o750 })
    chownSync(cache, OWNER, OWNER)
    const owners = async () => {
      const found = await run('find', [cache, '-not', '-user', String(OWNER)])
      return found.stdout.toString()
    }
    const root = new Bobbin(cache)
    const asOwner = ['setpriv', `--reuid=${OWNER}`, `--regid=${OWNER}`, '--clear-groups', 'env', `HOME=${folder}`]
    const service = (...args: string[]) => {
      const [command, ...words] = [...AS_USERS_DO, ...asOwner, `BOBBIN_CACHE=${cache}`, process.execPath, bobbinPath]
      return runProgram(command!, [...words, ...args])
    }
    t.match(await service('ls', written.reference), { status: 0, stdout: /a\.txt/ })

    const data = join(folder, 'data')
    mkdirSync(data)
    const verbs: string[][] = [
      ['ls', written.reference],
      ['cat', written.reference, 'a.txt'],
      ['install', written.reference, join(folder, 'installed')],
      ['verify', written.reference, data],
      ['log', written.reference],
      ['packages', join(folder, 'registry')],
      ['push', data, `file://${folder}/other/ns/new`, '-m', 'new'],
      ['mount', written.reference, data],
      ['daemon'],
      ['loader'],
    ]
    for (const verb of verbs) {
      const refused = await root.try(...verb)
      t.match(refused, { status: 12, stderr: /the cache .* belongs to user 65534.*sudo -u '#65534'/ }, String(verb[0]))
    }
    const fuse = findBobbinFuse().path
    if (fuse !== undefined) {
      // It has given up its power over files of others, so the second folder is one that root's group may write to.
      for (const [group, mode] of [
        [OWNER, 0o750],
        [0, 0o770],
      ] as const) {
        chownSync(cache, OWNER, group)
        await chmod(cache, mode)
        const refused = await runProgram(fuse, ['--cache', cache, '--', 'true'])
        t.match(
          refused,
          { status: 12, stderr: /the cache .* belongs to user 65534.*--daemon-user/ },
          'bobbin-fuse by hand',
        )
        t.equal(await owners(), '', 'leaves nothing')
      }
      chownSync(cache, OWNER, OWNER)
      await chmod(cache, 0o750)
    }
    t.equal(await owners(), '', 'everything in it is its owner’s')
    t.equal((await root.try('stop')).status, 0, 'what only asks the daemon is root’s to do')
    t.match(await root.try('doctor'), { stdout: /belongs to user 65534, and root leaves nothing in it/ })
    t.equal(await owners(), '')
    t.match(await service('cat', written.reference, 'a.txt'), { status: 0, stdout: 'a' }, 'the service goes on')

    await run('sh', ['-c', 'find "$1"/packages -name "*.index" -exec chown 0:0 {} +', 'sh', cache])
    const doctor = await service('doctor')
    t.match(doctor.stdout, /1 files and folders in the cache belong to another user, such as .*\.index/)
    const [mend] = doctor.stdout.match(/chown -hR .*(?= \(as root\))/)!
    await run('sh', ['-c', mend!])
    t.equal(await owners(), '', 'by the command that doctor says')
  },
)

t.test(
  'root makes no cache in the home of somebody else, and installs over no folder of theirs (S133)',
  { skip },
  async t => {
    const folder = testFolder(t)
    const written = await writeRegistry(join(folder, 'registry'), 'ns/pkg', { 'a.txt': 'a' })
    const home = join(folder, 'home')
    mkdirSync(home)
    chownSync(home, OWNER, OWNER)
    const env = { ...process.env, HOME: home, BOBBIN_CACHE: undefined, XDG_CACHE_HOME: undefined }
    const [command, ...words] = AS_USERS_DO
    const kept = await runProgram(command!, [...words, process.execPath, bobbinPath, 'ls', written.reference], { env })
    t.match(kept, { status: 12, stderr: /the home .* belongs to user 65534/ })
    t.same(readdirSync(home), [])

    const bobbin = new Bobbin(join(folder, 'cache'))
    const refused = await bobbin.try('install', written.reference, home)
    t.match(refused, { status: 12, stderr: /the folder .* belongs to user 65534/ })
    t.same(readdirSync(home), [])
    t.equal(
      (await bobbin.try('install', written.reference, join(home, 'new'))).status,
      0,
      'a folder of its own it makes',
    )
    t.ok(existsSync(join(home, 'new/a.txt')))
  },
)
