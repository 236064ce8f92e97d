/**
 * Overlays above packages, for programs that write beside the data: the mount of the package is the lower layer, and a scratch
 * folder has the upper one. The kernel makes them for root; fuse-overlayfs, where it is installed, for everybody.
 *
 * The mount table is what says which there are. An overlay of the kernel has its scratch folder as its source. fuse-overlayfs
 * shows no source of ours, so its overlay is found by the package's mount, beside which the scratch folder names it.
 */
import { spawn } from 'node:child_process'
import { accessSync, closeSync, constants, openSync, statfsSync } from 'node:fs'
import { delimiter, dirname, join } from 'node:path'
import { BobbinError } from '../../daemon/model/index.js'
import { type MountedAt, readMountTable } from '../../daemon/mount/mount-table.js'
import { lowerOf, readMarker, type ScratchFolder } from './scratch-folder.js'

export type OverlayMaker = 'kernel' | 'fuse-overlayfs'

/** native/session/leftover.cpp knows it, too. */
const SOURCE = 'bobbin-scratch:'
const FUSE_OVERLAYFS = 'fuse.fuse-overlayfs'
/** What a program leaves is nobody's way to other rights, and no device. */
const SAFE = 'nosuid,nodev'
/** What was written lies in the upper layer whole and as plain files, whatever the kernel was built with. */
const PLAIN = 'redirect_dir=off,metacopy=off,index=off'
const TIMEOUT_MS = 30_000

/** statfs(2): filesystems that overlayfs takes no upper layer on. */
const NAMES_BY_TYPE: Readonly<Record<number, string>> = {
  26985: 'NFS',
  4283649346: 'CIFS',
  4266872130: 'SMB',
  16914839: '9p',
  1702057286: 'FUSE',
  2035054128: 'overlay',
  19780: 'FAT',
  538032816: 'exFAT',
  12805120: 'Ceph',
  198183888: 'Lustre',
}

/** A scratch folder that is in use. */
export interface Scratch {
  readonly folder: string
  /** Where the overlay is, or was. */
  readonly mountpoint: string
  /** The package's own mountpoint. */
  readonly lower: string
  /** undefined: the overlay is gone, and the package is mounted still. */
  readonly overlay: OverlayMaker | undefined
}

/** Those that this user may know of, in this mount namespace. No mount is touched. */
export function findScratches(table: readonly MountedAt[] = readMountTable()): Scratch[] {
  const byKernel = table.flatMap(({ type, source, mountpoint }): Scratch[] => {
    if (type !== 'overlay' || !source.startsWith(`${SOURCE}/`)) return []
    const folder = source.slice(SOURCE.length)
    return [{ folder, mountpoint, lower: lowerOf(folder), overlay: 'kernel' }]
  })
  const known = new Set(byKernel.map(({ lower }) => lower))
  const others = table.flatMap(({ type, mountpoint: lower, userId }): Scratch[] => {
    const folder = dirname(lower)
    // A folder of somebody else may be on a filesystem that never answers.
    const isOwn = type === 'fuse.bobbin' && userId === process.geteuid?.()
    if (!isOwn || lower !== lowerOf(folder) || known.has(lower)) return []
    const mountpoint = readMarker(folder)?.mountpoint
    if (mountpoint === undefined) return []
    const isThere = table.findLast(one => one.mountpoint === mountpoint)?.type === FUSE_OVERLAYFS
    return [{ folder, mountpoint, lower, overlay: isThere ? 'fuse-overlayfs' : undefined }]
  })
  return [...byKernel, ...others]
}

/** By its mountpoint, its folder, or the package's own mountpoint. `path` is absolute and free of links. */
export function findScratch(path: string): Scratch | undefined {
  const all = findScratches()
  return (
    all.find(({ mountpoint, overlay }) => mountpoint === path && overlay !== undefined) ??
    all.find(({ folder, lower, mountpoint }) => [folder, lower, mountpoint].includes(path)) ??
    orphanOf(path)
  )
}

/** An overlay of fuse-overlayfs whose package is not mounted any more: its scratch folder alone says where it is. */
function orphanOf(folder: string): Scratch | undefined {
  const table = readMountTable()
  // What is mounted there may never answer.
  if (table.some(({ mountpoint }) => mountpoint === folder)) return undefined
  const mountpoint = readMarker(folder)?.mountpoint
  const top = table.findLast(one => one.mountpoint === mountpoint)
  if (mountpoint === undefined || top === undefined || !isForeignOverlay(top)) return undefined
  return { folder, mountpoint, lower: lowerOf(folder), overlay: 'fuse-overlayfs' }
}

/** It may be one of ours: it does not say for whom it is. */
export function isForeignOverlay({ type }: MountedAt): boolean {
  return type === FUSE_OVERLAYFS
}

/** Who could make one here, best first. Throws FUSE_UNAVAILABLE when nobody could. */
export function overlayMakers(): OverlayMaker[] {
  const isLinux = process.platform === 'linux'
  const makers: OverlayMaker[] = [
    ...(isLinux && process.geteuid?.() === 0 ? (['kernel'] as const) : []),
    ...(isLinux && hasProgram('fuse-overlayfs') ? (['fuse-overlayfs'] as const) : []),
  ]
  if (makers.length > 0) return makers
  throw new BobbinError(
    'FUSE_UNAVAILABLE',
    isLinux
      ? '--scratch needs an overlay, which the kernel makes for root alone: install fuse-overlayfs (apt-get install fuse-overlayfs), or run this as root'
      : `--scratch needs an overlay, which ${process.platform} does not have`,
  )
}

function hasProgram(name: string): boolean {
  return (process.env.PATH ?? '').split(delimiter).some(folder => {
    try {
      accessSync(join(folder, name), constants.X_OK)
      return folder !== ''
    } catch {
      return false
    }
  })
}

/** The package is mounted already. Throws FUSE_UNAVAILABLE, with what each maker said, when there is no overlay then. */
export async function mountOverlay(
  scratch: ScratchFolder,
  mountpoint: string,
  { allowOther }: { readonly allowOther: boolean },
): Promise<OverlayMaker> {
  const said: string[] = []
  for (const maker of overlayMakers()) {
    const problem =
      maker === 'kernel'
        ? await mountByKernel(scratch, mountpoint)
        : await mountByFuseOverlayfs(scratch, mountpoint, allowOther)
    if (problem === undefined) return maker
    said.push(`${maker}: ${problem}`)
  }
  const { type } = statfsSync(scratch.path)
  const filesystem = NAMES_BY_TYPE[type]
  const why =
    filesystem === undefined
      ? ''
      : `; ${scratch.path} is on ${filesystem}, which cannot keep the upper layer: name a folder on a local disk (ext4, xfs, btrfs) or a tmpfs`
  throw new BobbinError(
    'FUSE_UNAVAILABLE',
    `cannot make an overlay of the scratch folder ${scratch.path} on ${mountpoint} (${said.join('; ')})${why}`,
  )
}

/** By descriptors, so that a folder which somebody exchanges meanwhile is not the one that is mounted on. */
async function mountByKernel({ path, fd }: ScratchFolder, mountpoint: string): Promise<string | undefined> {
  const target = openSync(mountpoint, constants.O_RDONLY | constants.O_DIRECTORY | constants.O_NOFOLLOW)
  try {
    const options = `${SAFE},lowerdir=lower,upperdir=upper,workdir=work,${PLAIN}`
    // The dot makes a folder of what would be a link, which mount(8) of some versions does not follow.
    const args = ['-i', '-c', '-t', 'overlay', '-o', options, '--', `${SOURCE}${path}`, '/proc/self/fd/3/.']
    return await problemOf('mount', args, fd, target)
  } finally {
    closeSync(target)
  }
}

function mountByFuseOverlayfs({ fd }: ScratchFolder, mountpoint: string, allowOther: boolean) {
  const [uid, gid] = [process.geteuid?.() ?? 0, process.getegid?.() ?? 0]
  const options = [
    SAFE,
    'lowerdir=lower,upperdir=upper,workdir=work',
    // It may give files to nobody else, so there is nobody else; a container's root could write nothing otherwise.
    ...(uid === 0 ? [] : [`squash_to_uid=${uid}`, `squash_to_gid=${gid}`]),
    ...(allowOther && uid !== 0 ? ['allow_other'] : []),
  ]
  return problemOf('fuse-overlayfs', ['-o', options.join(','), mountpoint], fd)
}

/** What a program said when it failed. It works in a folder, and has a descriptor of another one. */
function problemOf(
  command: string,
  args: readonly string[],
  folder: number,
  third?: number,
): Promise<string | undefined> {
  return new Promise(resolve => {
    const child = spawn(command, args, {
      cwd: `/proc/self/fd/${folder}`,
      stdio: ['ignore', 'ignore', 'pipe', ...(third === undefined ? [] : [third])],
      timeout: TIMEOUT_MS,
      env: { ...process.env, LC_ALL: 'C' },
    })
    let said = ''
    child.stderr!.setEncoding('utf8').on('data', chunk => {
      said += chunk
    })
    child.once('error', error => resolve(error.message))
    // Not `close`: what goes on serving the overlay may have kept its end of the pipe.
    child.once('exit', (status, signal) => {
      child.stderr!.destroy()
      resolve(status === 0 ? undefined : said.trim() || `it ended with ${status ?? signal}`)
    })
  })
}
