/**
 * What is mounted where, from /proc/self/mountinfo: a text of the kernel's that can be read without
 * touching any mount, as `stat` on a mountpoint would.
 */
import { readFileSync } from 'node:fs'
import { lstat, opendir, realpath } from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'
import { BobbinError, hasCode, localError, systemCode } from '../model/index.js'

export interface MountedAt {
  readonly id: number
  readonly mountpoint: string
  readonly type: string
  readonly source: string
  /** The user whose mount a FUSE one is. */
  readonly userId?: number
}

/** Every mount of this mount namespace, in the order in which they were mounted. */
export function readMountTable(text = readFileSync('/proc/self/mountinfo', 'utf8')): MountedAt[] {
  return text
    .split('\n')
    .filter(line => line !== '')
    .map(line => {
      // 36 35 98:0 /root /mountpoint options [tags …] - type source superoptions
      const fields = line.split(' ')
      const dash = fields.indexOf('-', 6)
      const userId = /(?:^|,)user_id=(\d+)/.exec(fields[dash + 3] ?? '')?.[1]
      return {
        id: Number(fields[0]),
        mountpoint: unescapeOctal(fields[4] ?? ''),
        type: fields[dash + 1] ?? '',
        source: unescapeOctal(fields[dash + 2] ?? ''),
        ...(userId !== undefined && { userId: Number(userId) }),
      }
    })
}

/** Space, tab, newline and backslash are written as octal escapes; other bytes as they are. */
function unescapeOctal(text: string): string {
  return text.replace(/\\([0-7]{3})/g, (_, digits: string) => String.fromCharCode(Number.parseInt(digits, 8)))
}

/** What is on top at a path, which must be absolute and free of symbolic links. */
export function mountAt(path: string): MountedAt | undefined {
  return readMountTable().findLast(({ mountpoint }) => mountpoint === path)
}

/**
 * The path of a mountpoint without symbolic links, found without touching what is mounted there:
 * only the folder above is resolved.
 */
export async function resolveMountpoint(path: string): Promise<string> {
  if (mountAt(path) !== undefined) return path
  try {
    const parent = await realpath(dirname(path))
    const inParent = join(parent, basename(path))
    if (mountAt(inParent) !== undefined) return inParent
    // Not a mount, so it may be looked at; a symbolic link leads somewhere else.
    return await realpath(inParent)
  } catch (error) {
    if (systemCode(error) === 'ENOENT') throw missing(path)
    throw localError(`look at the mountpoint ${path}`, error)
  }
}

/** The same for what is to be unmounted. Throws NOT_MOUNTED where nothing is. */
export async function resolveMounted(path: string): Promise<string> {
  try {
    return await resolveMountpoint(path)
  } catch (error) {
    if (!hasCode(error, 'MOUNTPOINT_UNUSABLE')) throw error
    throw new BobbinError(
      'NOT_MOUNTED',
      `${path} is not mounted: there is no such folder (bobbin status lists the mounts)`,
    )
  }
}

function missing(path: string): BobbinError {
  return new BobbinError('MOUNTPOINT_UNUSABLE', `the mountpoint ${path} does not exist: make it, or pass --mkdir`)
}

/** Throws MOUNTPOINT_UNUSABLE or ALREADY_MOUNTED, and says what to do. `path` comes from resolveMountpoint. */
export async function checkMountpoint(path: string): Promise<void> {
  const mounted = mountAt(path)
  // One that a process serves is not looked into, since it might not answer. Others (a volume of a container, a tmpfs) are
  // folders like any other, when they are empty.
  if (mounted?.type.startsWith('fuse')) {
    const isOurs = mounted.type === 'fuse.bobbin'
    const advice = isOurs ? `bobbin umount ${path}` : 'choose another folder'
    throw new BobbinError('ALREADY_MOUNTED', `${path} is a mountpoint already (${mounted.source}): ${advice}`)
  }
  try {
    const stats = await lstat(path)
    if (!stats.isDirectory()) {
      throw new BobbinError('MOUNTPOINT_UNUSABLE', `the mountpoint ${path} is not a folder`)
    }
    const folder = await opendir(path)
    const first = await folder.read()
    await folder.close()
    if (first !== null && mounted !== undefined) {
      throw new BobbinError(
        'ALREADY_MOUNTED',
        `${path} is a mountpoint already (${mounted.source}, ${mounted.type}) and is not empty (${JSON.stringify(first.name)}, …): choose another folder`,
      )
    }
    if (first !== null) {
      throw new BobbinError(
        'MOUNTPOINT_UNUSABLE',
        `the mountpoint ${path} is not empty: a mount would hide what it holds (${JSON.stringify(first.name)}, …); choose an empty folder`,
      )
    }
  } catch (error) {
    if (systemCode(error) === 'ENOENT') throw missing(path)
    throw localError(`look at the mountpoint ${path}`, error)
  }
}
