/** Can this machine do it? Each check says what was found, and how to mend what is missing. */
import { spawnSync } from 'node:child_process'
import { accessSync, constants, existsSync, mkdirSync, readdirSync, readFileSync, statfsSync } from 'node:fs'
import { release } from 'node:os'
import { dirname, join } from 'node:path'
import { findBobbinFuse, prebuiltPackage } from '../daemon/control/bobbin-fuse.js'
import { findDaemon } from '../daemon/control/client.js'
import { BobbinError, formatBytes, homeFolder, userName } from '../daemon/model/index.js'
import { findDeadMounts } from '../daemon/mount/dead-mounts.js'
import { formatRegistry, parseRegistry } from '../daemon/registry/reference.js'
import { listPackages } from '../daemon/registry/registry.js'
import { quiltDataFolder } from '../daemon/source/quilt-login.js'
import { foreignOwner, readOwner } from '../daemon/store/index.js'
import { type Context, requireCache, withContext } from './context.js'
import { daemonDiffers } from './daemon-differs.js'
import { unkeptText } from './daemon-status.js'
import { lookAtRights } from './doctor-rights.js'
import { commandLine } from './run/running.js'
import type { CommonFlags } from './settings.js'

interface Check {
  readonly check: string
  readonly ok: boolean
  readonly found: string
  /** What to do; empty when nothing is to be done. */
  readonly fix: string
  /** Bobbin works without it, but for what `found` says. */
  readonly isOptional?: boolean
}

export async function doctor(flags: CommonFlags): Promise<void> {
  await withContext(
    flags,
    async context => {
      const checks = [
        node(),
        fuseDevice(),
        bobbinFuse(),
        openMode(),
        libfuse(),
        unmounting(),
        flock(),
        allowOther(),
        cacheFolder(context),
        ...rights(context, flags),
        daemon(context),
        ...(await settingsOfDaemon(context)),
        ...(await keptMounts(context)),
        ...(await deadMounts()),
        credentials(),
        ...(await registry(context)),
      ]
      for (const { check, ok, found, fix, isOptional } of checks) {
        const mark = ok ? 'ok  ' : isOptional ? 'note' : 'FAIL'
        await context.output.row({ check, ok, found, fix }, [
          `${mark}  ${check.padEnd(12)} ${found}`,
          ...(fix === '' ? [] : [`                  → ${fix}`]),
        ])
      }
      const failed = checks.filter(({ ok, isOptional }) => !ok && !isOptional)
      if (failed.length === 0) return
      await context.output.flush()
      const isFuse = failed.every(({ check }) => FUSE_CHECKS.includes(check))
      throw new BobbinError(
        isFuse ? 'FUSE_UNAVAILABLE' : 'LOCAL_IO',
        `missing here: ${failed.map(({ check }) => check).join(', ')}`,
      )
    },
    { onlyAsks: true },
  )
}

const FINDINGS_SHOWN_MAX = 20

const FUSE_CHECKS = ['/dev/fuse', 'libfuse', 'unmount']

function isRoot(): boolean {
  return process.getuid?.() === 0
}

function node(): Check {
  const [major = 0, minor = 0] = process.versions.node.split('.').map(Number)
  const ok = major > 20 || (major === 20 && minor >= 19)
  return {
    check: 'node',
    ok,
    found: `${process.version} on Linux ${release()}`,
    fix: ok ? '' : 'install Node.js 20.19 or newer',
  }
}

function fuseDevice(): Check {
  const check = '/dev/fuse'
  if (!existsSync(check)) {
    return {
      check,
      ok: false,
      found: 'not there',
      fix: 'modprobe fuse (as root); in a container: docker run --device /dev/fuse --cap-add SYS_ADMIN',
    }
  }
  try {
    accessSync(check, constants.R_OK | constants.W_OK)
    return { check, ok: true, found: 'readable and writable', fix: '' }
  } catch {
    return {
      check,
      ok: false,
      found: `not open to ${userName()}`,
      fix: 'chmod 666 /dev/fuse (as root), which is how most systems have it',
    }
  }
}

/** Linux 6.9. */
const PASSTHROUGH_SINCE = [6, 9] as const

/** Where the dynamic loader looks on Debian, Ubuntu, Fedora, Arch and Alpine. */
const LIBRARY_FOLDERS = ['/lib', '/lib64', '/usr/lib', '/usr/lib64', '/usr/local/lib']

function bobbinFuse(): Check {
  const { path, reason } = findBobbinFuse()
  return path !== undefined
    ? { check: 'bobbin-fuse', ok: true, found: path, fix: '' }
    : {
        check: 'bobbin-fuse',
        ok: false,
        isOptional: true,
        found: `${reason}: mounts go through fuse-native, are slower, and end with the daemon`,
        fix: `npm run build:native (needs cmake and g++), or install ${prebuiltPackage()}`,
      }
}

/** What `auto` comes to; a mount says so of itself, and knows it for sure. */
function openMode(): Check {
  const check = 'open-mode'
  const note = (found: string, fix: string): Check => ({ check, ok: false, isOptional: true, found, fix })
  if (findBobbinFuse().path === undefined) return note('cached, through fuse-native', '')
  const [major = 0, minor = 0] = release().split('.').map(Number)
  if (major < PASSTHROUGH_SINCE[0] || (major === PASSTHROUGH_SINCE[0] && minor < PASSTHROUGH_SINCE[1])) {
    return note(`cached: passthrough needs Linux ${PASSTHROUGH_SINCE.join('.')}, and this is ${release()}`, '')
  }
  if (!isRoot() || !mayMount())
    return note(
      'cached: passthrough needs CAP_SYS_ADMIN',
      'run the daemon as root, or under systemd (systemd/bobbin.service)',
    )
  return { check, ok: true, found: 'passthrough, where the filesystem of the cache is fit for it', fix: '' }
}

/** Where bobbin-fuse is, fuse-native is not needed. */
function libfuse(): Check {
  const isOptional = findBobbinFuse().path !== undefined
  const folders = LIBRARY_FOLDERS.flatMap(folder => [folder, ...listFolders(folder)])
  const found = folders.map(folder => join(folder, 'libfuse.so.2')).find(path => existsSync(path))
  return found === undefined
    ? {
        check: 'libfuse',
        ok: false,
        isOptional,
        found: 'libfuse.so.2 is not there, which fuse-native needs',
        fix: 'apt-get install libfuse2 (Ubuntu 24.04, Debian 13: libfuse2t64)',
      }
    : { check: 'libfuse', ok: true, found, fix: '' }
}

function listFolders(folder: string): string[] {
  try {
    return readdirSync(folder)
      .filter(name => name.endsWith('-linux-gnu') || name.endsWith('-linux-musl'))
      .map(name => join(folder, name))
  } catch {
    return []
  }
}

function unmounting(): Check {
  const helper = ['fusermount3', 'fusermount'].find(name => onPath(name))
  if (isRoot()) {
    return mayMount()
      ? { check: 'unmount', ok: true, found: 'root mounts and unmounts by itself', fix: '' }
      : {
          check: 'unmount',
          ok: false,
          found: 'root, but without the right to mount (CAP_SYS_ADMIN)',
          fix: 'docker run --device /dev/fuse --cap-add SYS_ADMIN --security-opt apparmor=unconfined',
        }
  }
  return helper === undefined
    ? { check: 'unmount', ok: false, found: 'no fusermount', fix: 'apt-get install fuse3, or run as root' }
    : { check: 'unmount', ok: true, found: helper, fix: '' }
}

/** Root in a container seldom may. */
function mayMount(): boolean {
  const capSysAdmin = 1n << 21n
  const path = '/proc/self/status'
  if (!existsSync(path)) return true
  const effective = /^CapEff:\s*([0-9a-f]+)$/m.exec(readFileSync(path, 'utf8'))?.[1]
  return effective === undefined || (BigInt(`0x${effective}`) & capSysAdmin) !== 0n
}

function onPath(name: string): boolean {
  return (process.env.PATH ?? '').split(':').some(folder => folder !== '' && existsSync(join(folder, name)))
}

function flock(): Check {
  const ok = spawnSync('flock', ['--version']).status === 0
  return { check: 'flock', ok, found: ok ? 'there' : 'no flock(1)', fix: ok ? '' : 'apt-get install util-linux' }
}

function allowOther(): Check {
  const check = 'allow_other'
  if (isRoot()) return { check, ok: true, found: 'root may let other users and containers in', fix: '' }
  let isSet = false
  try {
    isSet = /^\s*user_allow_other\b/m.test(readFileSync('/etc/fuse.conf', 'utf8'))
  } catch {
    // Without the file it is not set.
  }
  return isSet
    ? { check, ok: true, found: 'user_allow_other is set', fix: '' }
    : {
        check,
        ok: false,
        isOptional: true,
        found: 'only you can enter your mounts; containers cannot',
        fix: 'echo user_allow_other >> /etc/fuse.conf (as root)',
      }
}

function cacheFolder({ settings }: Context): Check {
  const { cacheDir } = settings
  try {
    let nearest = cacheDir
    while (!existsSync(nearest)) nearest = dirname(nearest)
    const owner = foreignOwner(nearest)
    if (nearest === cacheDir && owner !== undefined) {
      return {
        check: 'cache',
        ok: false,
        isOptional: true,
        found: `${cacheDir} belongs to user ${owner}, and root leaves nothing in it`,
        fix: `sudo -u '#${owner}' bobbin doctor looks at it as its owner`,
      }
    }
    requireCache(cacheDir)
    accessSync(nearest, constants.W_OK)
    if (nearest === cacheDir) mkdirSync(join(cacheDir, 'tmp'), { recursive: true, mode: 0o750 })
    const { bavail, bsize } = statfsSync(nearest)
    return { check: 'cache', ok: true, found: `${cacheDir}, ${formatBytes(bavail * bsize)} free`, fix: '' }
  } catch (error) {
    return {
      check: 'cache',
      ok: false,
      found: `${cacheDir}: ${error instanceof Error ? error.message : error}`,
      fix: 'choose another folder with --cache or BOBBIN_CACHE',
    }
  }
}

/** Nothing fails of it, but others may get what they should not. */
function rights({ settings }: Context, { config }: CommonFlags): Check[] {
  const check = 'rights'
  const findings = lookAtRights(settings.cacheDir, config ?? process.env.BOBBIN_CONFIG)
  if (findings.length === 0) return [{ check, ok: true, found: 'nothing of yours is open to others', fix: '' }]
  const shown = findings.slice(0, FINDINGS_SHOWN_MAX)
  const left = findings.length - shown.length
  return [
    ...shown.map(finding => ({ check, ok: false, isOptional: true, ...finding })),
    ...(left === 0
      ? []
      : [{ check, ok: false, isOptional: true, found: `and ${left} more`, fix: 'mend these, and look again' }]),
  ]
}

function daemon({ settings }: Context): Check {
  const owner = existsSync(settings.cacheDir) ? readOwner(settings.cacheDir) : undefined
  return owner?.isHeld
    ? { check: 'daemon', ok: true, found: `runs as process ${owner.facts?.pid ?? '?'}`, fix: '' }
    : { check: 'daemon', ok: true, found: 'none runs; mount starts one', fix: '' }
}

/** Only where a running daemon has others than this command. */
async function settingsOfDaemon({ settings }: Context): Promise<Check[]> {
  try {
    const client = existsSync(settings.cacheDir) ? findDaemon(settings.cacheDir) : undefined
    const found = client && (await daemonDiffers(client, settings))
    return found === undefined ? [] : [{ check: 'settings', ok: false, isOptional: true, found, fix: '' }]
  } catch {
    // A daemon that does not answer is another check's.
    return []
  }
}

/** Only where mounts would not outlive a death of bobbin-fuse that others do. */
async function keptMounts({ settings }: Context): Promise<Check[]> {
  const check = 'kept mounts'
  try {
    const count = (await findDaemon(settings.cacheDir)?.status())?.daemon.unkeptMounts ?? 0
    return count === 0
      ? []
      : [{ check, ok: false, isOptional: true, found: `${count} mounts are not kept`, fix: unkeptText(count) }]
  } catch {
    // A daemon that does not answer is another check's.
    return []
  }
}

/** Of any cache: each mount of ours in this mount namespace is looked at. */
async function deadMounts(): Promise<Check[]> {
  return (await findDeadMounts()).map(mount => ({
    check: 'dead mounts',
    ok: false,
    isOptional: true,
    found: `nobody serves ${mount.mountpoint} (${mount.source}) any more`,
    fix: commandLine(['bobbin', 'umount', mount.mountpoint]),
  }))
}

function credentials(): Check {
  const check = 'credentials'
  const places: [boolean, string][] = [
    [existsSync(join(quiltDataFolder(), 'credentials.json')), "Quilt's credentials.json"],
    [Boolean(process.env.AWS_ACCESS_KEY_ID), 'AWS_ACCESS_KEY_ID'],
    [Boolean(process.env.AWS_PROFILE), `AWS_PROFILE=${process.env.AWS_PROFILE}`],
    [
      existsSync(process.env.AWS_SHARED_CREDENTIALS_FILE ?? join(homeFolder(), '.aws', 'credentials')),
      '~/.aws/credentials',
    ],
    [
      Boolean(
        process.env.AWS_WEB_IDENTITY_TOKEN_FILE ??
          process.env.AWS_CONTAINER_CREDENTIALS_RELATIVE_URI ??
          process.env.AWS_CONTAINER_CREDENTIALS_FULL_URI,
      ),
      'a role of this container',
    ],
  ]
  const found = places.filter(([isThere]) => isThere).map(([, name]) => name)
  return found.length > 0
    ? { check, ok: true, found: found.join(', '), fix: '' }
    : {
        check,
        ok: false,
        isOptional: true,
        found: 'none seen: only public buckets and folders (an EC2 role is asked for when it is needed)',
        fix: 'quilt3 login, aws configure, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY',
      }
}

async function registry({ settings, source, signal }: Context): Promise<Check[]> {
  if (settings.registry === undefined) return []
  const check = 'registry'
  try {
    const parsed = parseRegistry(settings.registry)
    const first = await listPackages(source, parsed, { signal }).next()
    return [
      {
        check,
        ok: true,
        found: `${formatRegistry(parsed)} answers${first.done ? ', and holds no package' : ''}`,
        fix: '',
      },
    ]
  } catch (error) {
    return [
      {
        check,
        ok: false,
        found: error instanceof Error ? error.message : String(error),
        fix: 'look at BOBBIN_REGISTRY, the network and the credentials',
      },
    ]
  }
}
