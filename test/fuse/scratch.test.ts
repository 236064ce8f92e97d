/** `bobbin mount --scratch`: real overlays on real mounts, by the kernel for root and by fuse-overlayfs for a user. */
import { spawn, spawnSync } from 'node:child_process'
import {
  chmodSync,
  chownSync,
  existsSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { findBobbinFuse } from '../../daemon/control/bobbin-fuse.js'
import { mountAt } from '../../daemon/mount/mount-table.js'
import { AS_USERS_DO, Bobbin, runProgram } from '../support/cli.js'
import { cannotMount, mountsBelow, testFolder } from '../support/daemon.js'
import { noise } from '../support/objects.js'
import { bobbinPath } from '../support/parts.js'
import { writeRegistry } from '../support/registry.js'

t.setTimeout(900_000)

const isRoot = process.getuid?.() === 0
const skip = cannotMount() || (!isRoot && 'needs root, for whom the kernel makes overlays')
const skipFuse =
  cannotMount() ||
  (!isRoot && 'needs root, to become another user') ||
  (spawnSync('fuse-overlayfs', ['--version']).error !== undefined && 'there is no fuse-overlayfs here')
const skipNative = skip || (findBobbinFuse().reason ?? false)
const NOBODY = 65_534
const LARGE = noise(9 * 2 ** 20, 1)

interface Fixture {
  readonly folder: string
  readonly bobbin: Bobbin
  readonly reference: string
  readonly at: (name: string) => string
  /** A command of the shell, in the mount. */
  readonly inside: (script: string) => Promise<string>
  readonly mount: (...flags: string[]) => Promise<MountAnswer>
}

interface MountAnswer {
  readonly mountpoint: string
  readonly topHash: string
  readonly openMode: string
  readonly scratch: { readonly folder: string; readonly lower: string; readonly overlay: string }
}

/** All of it on a tmpfs: the folder of tests may lie on an overlay, which takes no upper layer. */
async function fixture(t: Test, env: Readonly<Record<string, string>> = {}): Promise<Fixture> {
  const folder = testFolder(t)
  t.equal((await runProgram('mount', ['-t', 'tmpfs', 'tmpfs', folder])).status, 0)
  const bobbin = new Bobbin(join(folder, 'cache'), {
    BOBBIN_FREE_FLOOR: '0',
    BOBBIN_STATE: join(folder, 'state'),
    ...env,
  })
  t.teardown(async () => {
    await bobbin.try('stop', '--force')
    spawnSync('sh', [
      '-c',
      'grep -o " $1/[^ ]*" /proc/self/mountinfo | tac | xargs -r umount -l; umount -l "$1"',
      'sh',
      folder,
    ])
  })
  const files = {
    'images/large.bin': LARGE,
    'images/a.jpg': 'a',
    'labels/a.txt': 'one',
    'labels/b.txt': 'two',
    top: 'top',
  }
  const { reference } = await writeRegistry(join(folder, 'registry'), 'test/small', files)
  const at = (name: string) => join(folder, name)
  return {
    folder,
    bobbin,
    reference,
    at,
    mount: (...flags) =>
      bobbin.json<MountAnswer>('mount', reference, at('data'), '--mkdir', '--scratch', at('scratch'), ...flags),
    inside: async script => {
      const { status, stdout, stderr } = await runProgram('sh', ['-ec', `cd "$1"; ${script}`, 'sh', at('data')])
      if (status !== 0) throw new Error(`${script}: ${stderr}`)
      return stdout
    },
  }
}

for (const openMode of ['passthrough', 'cached', 'none']) {
  const name = `what is written above a mount (${openMode}) lies in its scratch folder, also after another mount (S163)`
  t.test(name, { skip: skipNative }, async t => {
    const { bobbin, at, inside, mount } = await fixture(t)
    const facts = await mount('--open-mode', openMode)
    t.match(facts, { mountpoint: at('data'), scratch: { folder: at('scratch'), overlay: 'kernel' } })
    t.equal(facts.openMode, openMode)
    await inside(`
      echo cache > labels/labels.cache
      printf x | dd of=images/large.bin bs=1 seek=5 conv=notrunc status=none
      mv labels/a.txt labels/c.txt
      rm images/a.jpg
      rm -r labels/b.txt; mkdir new; ln -s ../top new/link`)
    const seen = async () => {
      t.equal(await inside('cd labels && ls && cat labels.cache c.txt'), 'c.txt\nlabels.cache\ncache\none')
      t.equal(await inside('ls images'), 'large.bin\n')
      const large = readFileSync(join(at('data'), 'images/large.bin'))
      const expected = Buffer.from(LARGE)
      expected[5] = 'x'.charCodeAt(0)
      t.ok(large.equals(expected), 'a file over 8 MiB that was cold is copied whole before it changes')
      t.equal(await inside('cat new/link top'), 'toptop')
    }
    await seen()
    t.match(await bobbin.json('status'), {
      mounts: [{ mountpoint: at('data'), scratch: { folder: at('scratch'), lower: join(at('scratch'), 'lower') } }],
    })
    t.match(await bobbin.text('status'), `scratch folder ${at('scratch')}`)
    await bobbin.text('umount', at('data'))
    t.same(readdirSync(at('data')), [], 'nothing is mounted there any more')
    t.same(readdirSync(join(at('scratch'), 'lower')), [])
    t.equal(readFileSync(join(at('scratch'), 'upper/labels/labels.cache'), 'utf8'), 'cache\n')
    await mount('--open-mode', openMode)
    await seen()
    await bobbin.text('umount', at('data'))
  })
}

t.test(
  'a scratch folder is refused that belongs to another revision or user, or lies where it cannot (S164)',
  { skip },
  async t => {
    const { folder, bobbin, reference, at, mount } = await fixture(t)
    await mount()
    await bobbin.text('umount', at('data'))
    const other = await writeRegistry(join(folder, 'registry'), 'test/other', { 'a.txt': 'other' })
    const refused = async (status: number, stderr: RegExp, scratch: string, pkg = reference, data = at('data')) => {
      t.match(await bobbin.try('mount', pkg, data, '--scratch', scratch), { status, stderr }, scratch)
    }
    await refused(13, /holds what was written above test\/small@.*name another folder/, at('scratch'), other.reference)
    await refused(2, /lies in the mountpoint/, join(at('data'), 'scratch'))
    t.same(readdirSync(at('data')), [], 'and nothing is made in the mountpoint')
    mkdirSync(at('around/data'), { recursive: true })
    await refused(2, /holds the mountpoint/, at('around'), reference, at('around/data'))
    await refused(2, /lies in the cache/, at('cache/scratch'))
    t.notOk(existsSync(at('cache/scratch')))
    await refused(2, /holds the cache/, folder, reference, testFolder(t))
    mkdirSync(at('full'))
    writeFileSync(at('full/file'), '')
    await refused(2, /is not a scratch folder .*"file"/, at('full'))
    t.equal(statSync(at('full')).mode & 0o777, 0o755, 'which is left as it was')
    mkdirSync(at('foreign'))
    chownSync(at('foreign'), NOBODY, NOBODY)
    await refused(12, /belongs to user 65534/, at('foreign'))
    symlinkSync(at('foreign'), at('link'))
    await refused(12, /belongs to user 65534/, at('link'))
    // What somebody put into a folder that was open to them.
    mkdirSync(at('planted'))
    symlinkSync(at('full'), at('planted/upper'))
    await refused(2, /is not a scratch folder/, at('planted'))
    symlinkSync('/etc/passwd', at('planted/scratch.json'))
    await refused(2, /is not a scratch folder .*damaged/, at('planted'))
    t.match(await bobbin.json('status'), { mounts: { length: 0 } }, 'nothing stays mounted')
    t.same(ofPackages(folder), [])
  },
)

t.test(
  'a scratch folder where no overlay can have its upper layer is refused, and nothing stays mounted (S164)',
  { skip },
  async t => {
    const { folder, bobbin, reference, at } = await fixture(t)
    for (const name of ['a', 'b', 'c', 'over']) mkdirSync(at(name))
    const options = `lowerdir=${at('a')},upperdir=${at('b')},workdir=${at('c')}`
    t.equal((await runProgram('mount', ['-t', 'overlay', 'overlay', '-o', options, at('over')])).status, 0)
    const without = new Bobbin(join(folder, 'cache'), { BOBBIN_FREE_FLOOR: '0', PATH: programsWithout(at('programs')) })
    const refused = await without.try(
      'mount',
      reference,
      at('data'),
      '--mkdir',
      '--scratch',
      join(at('over'), 'scratch'),
    )
    t.match(refused, {
      status: 14,
      stderr: /is on overlay, which cannot keep the upper layer: name a folder on a local disk/,
    })
    t.same(ofPackages(folder), [])
    t.match(await bobbin.json('status'), { mounts: { length: 0 } })
  },
)

t.test(
  'an overlay that is in use stays whole when it is not unmounted, and a second one is refused (S165)',
  { skip },
  async t => {
    const { bobbin, reference, at, inside, mount } = await fixture(t)
    await mount()
    t.match(await bobbin.try('mount', reference, at('data'), '--scratch', at('scratch')), {
      status: 11,
      stderr: /bobbin umount/,
    })
    const again = await bobbin.try('mount', reference, at('more'), '--mkdir', '--scratch', at('scratch'))
    t.match(again, { status: 11, stderr: /the scratch folder .* is in use at .*data: bobbin umount/ })
    const reader = spawnHolding(join(at('data'), 'top'))
    await reader.isOpen
    t.match(await bobbin.try('umount', at('data')), { status: 11, stderr: /in use.*--force/ })
    t.match(await bobbin.try('stop'), { status: 11, stderr: /in use/ })
    t.equal(await inside('echo more > more; cat more top'), 'more\ntop')
    await reader.end()
    // Each of its names will do.
    await bobbin.text('umount', at('scratch'))
    t.equal(mountAt(at('data')), undefined)
    await mount()
    await bobbin.text('umount', join(at('scratch'), 'lower'))
    t.equal(mountAt(at('data')), undefined)
    await mount()
    await bobbin.text('stop')
    t.equal(mountAt(at('data')), undefined)
    t.same(readdirSync(join(at('scratch'), 'upper')), ['more'])
  },
)

t.test(
  'what a command or a daemon that was killed has left is cleared by the next one (S165)',
  { skip: skipNative },
  async t => {
    const { bobbin, reference, at, inside, mount } = await fixture(t)
    const { scratch } = await mount()
    await inside('echo kept > kept')
    // As after a command that was killed between the two mounts.
    t.equal((await runProgram('umount', [at('data')])).status, 0)
    t.equal(mountAt(scratch.lower)?.type, 'fuse.bobbin')
    await mount()
    t.equal(await inside('cat kept top'), 'kept\ntop')
    t.equal((await runProgram('umount', [at('data')])).status, 0)
    await bobbin.text('umount', at('data'))
    t.equal(mountAt(scratch.lower), undefined, 'umount takes what is left')
    await mount()
    const { daemon } = await bobbin.json<{ daemon: { pid: number; supervisorPid: number } }>('status')
    for (const pid of [daemon.supervisorPid, daemon.pid]) process.kill(pid, 'SIGKILL')
    t.match(await bobbin.try('status'), {
      status: 1,
      stderr: new RegExp(`${at('data')} .*is dead.*bobbin umount ${at('data')}`),
    })
    await bobbin.text('umount', at('data'))
    t.same([mountAt(at('data')), mountAt(scratch.lower)], [undefined, undefined])
    await mount()
    t.equal(await inside('cat kept top'), 'kept\ntop')
    const forced = spawnHolding(join(at('data'), 'top'))
    await forced.isOpen
    await bobbin.text('umount', at('data'), '--force')
    t.equal(mountAt(at('data')), undefined)
    await forced.end()
    t.match(await bobbin.text('mount', reference, at('data')), /mounted on/, 'also without the scratch folder')
  },
)

t.test('a scratch folder is private, and no program gets rights from what lies in it (S166)', { skip }, async t => {
  const { at, bobbin, inside, mount } = await fixture(t)
  mkdirSync(at('scratch'), { mode: 0o755 })
  chmodSync(at('scratch'), 0o777)
  chmodSync(at(''), 0o755)
  await mount()
  t.equal(lstatSync(at('scratch')).mode & 0o777, 0o700)
  await inside('cp "$(command -v id)" setuid; chown 65534 setuid; chmod 4755 setuid; mknod null c 1 3; chmod 666 null')
  t.match(await inside('./setuid -u'), /^0\n$/, 'setuid is ignored')
  t.match(
    await runProgram('cat', [join(at('data'), 'null')]),
    { status: 1, stderr: /Permission denied/ },
    'and so are devices',
  )
  const asNobody = (script: string) =>
    runProgram('setpriv', ['--reuid=65534', '--regid=65534', '--clear-groups', 'sh', '-c', script, 'sh', at('data')])
  t.match(
    await asNobody('cat "$1/top"'),
    { status: 0, stdout: 'top' },
    'root lets others read, as it does without a scratch folder',
  )
  t.match(await asNobody('echo x > "$1/top" || echo x > "$1/new"'), { status: 2 }, 'but not write')
  t.match(await asNobody(`ls ${at('scratch')}/upper ${at('scratch')}/lower`), {
    status: 2,
    stderr: /Permission denied/,
  })
  await bobbin.text('umount', at('data'))
  await mount('--umask', '0', '--uid', '65534', '--gid', '65534')
  t.match(await asNobody('echo mine > "$1/labels/new" && echo more >> "$1/labels/a.txt" && cat "$1/labels/a.txt"'), {
    status: 0,
    stdout: 'onemore\n',
  })
  await bobbin.text('umount', at('data'))
})

function ofPackages(folder: string) {
  return mountsBelow(folder).filter(({ type }) => type === 'fuse.bobbin')
}

/** As a user on most systems, where /dev/fuse is everybody's: in a mount namespace of its own. */
const AS_NOBODY = `
device="$1/fuse"; [ -e "$device" ] || mknod "$device" c 10 229; chmod 666 "$device"; mount --bind "$device" /dev/fuse
exec setpriv --reuid=65534 --regid=65534 --clear-groups env HOME="$1/home" sh -ec "$2" sh "$1"`

t.test('a user writes through fuse-overlayfs, and is told when it is missing (S167)', { skip: skipFuse }, async t => {
  const { folder, at, reference } = await fixture(t)
  for (const name of ['home', 'data', 'cache']) {
    mkdirSync(at(name), { mode: 0o750 })
    chownSync(at(name), NOBODY, NOBODY)
  }
  chmodSync(folder, 0o755)
  const bobbin = `bobbin() { ${[...AS_USERS_DO, process.execPath, bobbinPath].join(' ')} "$@"; }`
  const asNobody = (script: string) => {
    const whole = `cd "$1"; ${bobbin}; trap 'bobbin stop --force' EXIT; ${script}`
    const words = ['-m', '--propagation', 'private', 'sh', '-ec', AS_NOBODY, 'sh', folder, whole]
    const env = { ...process.env, BOBBIN_CACHE: at('cache'), BOBBIN_FREE_FLOOR: '0', BOBBIN_STATE: at('home/state') }
    return runProgram('unshare', words, { env })
  }
  const written = await asNobody(`
    bobbin mount '${reference}' data --scratch home/scratch
    bobbin status --json
    echo cache > data/labels/labels.cache; echo more >> data/labels/a.txt; rm data/labels/b.txt
    printf x | dd of=data/images/large.bin bs=1 seek=5 conv=notrunc status=none
    bobbin umount data; ls data
    bobbin mount '${reference}' data --scratch home/scratch
    ls data/labels; cat data/labels/a.txt; head -c 6 data/images/large.bin | tail -c 1; stat -c '%n %U' data/labels/*; echo
    kill -9 $(bobbin status --json | grep -o 'id":[0-9]*' | cut -d: -f2)
    bobbin umount data
    bobbin mount '${reference}' data --scratch home/scratch
    kill -9 $(bobbin status --json | grep -o 'id":[0-9]*' | cut -d: -f2)
    fusermount3 -u -z home/scratch/lower
    bobbin umount data || echo refused
    bobbin umount home/scratch; grep -c "$1/" /proc/self/mountinfo || true`)
  t.match(written, { status: 0 }, written.stderr)
  t.match(written.stdout, /"overlay":"fuse-overlayfs"/)
  t.match(written.stdout, 'a.txt\nlabels.cache\nonemore\nx')
  t.match(written.stdout, 'refused')
  t.match(written.stderr, /is a mount of fuse-overlayfs, .*give its scratch folder to bobbin umount/)
  t.match(written.stdout, /\n0\n$/, 'nothing stays mounted')
  const missing = await asNobody(
    `PATH='${programsWithout(at('programs'))}' bobbin mount '${reference}' data --scratch home/scratch`,
  )
  t.match(missing, {
    status: 14,
    stderr: /install fuse-overlayfs \(apt-get install fuse-overlayfs\), or run this as root/,
  })
})

/** Without fuse-overlayfs, which asks less of a filesystem. */
function programsWithout(folder: string): string {
  mkdirSync(folder)
  for (const program of ['mount', 'umount', 'stat', 'flock', 'env', 'fusermount3']) {
    const found = spawnSync('sh', ['-c', `command -v ${program}`], { encoding: 'utf8' }).stdout.trim()
    symlinkSync(found, join(folder, program))
  }
  return folder
}

function spawnHolding(path: string) {
  const child = spawn('sh', ['-c', 'exec 3< "$1"; echo open; exec sleep 100', 'sh', path], {
    stdio: ['ignore', 'pipe', 'ignore'],
  })
  const ended = new Promise(resolve => child.once('exit', resolve))
  return {
    isOpen: new Promise(resolve => child.stdout.once('data', resolve)),
    end: async () => {
      child.kill('SIGKILL')
      await ended
    },
  }
}
