/**
 * The folder of `mount --scratch DIR`: what programs write above a package, and which revision that is above.
 *
 *   scratch.json  the revision, and where it was mounted last
 *   lower/        the package itself, while it is mounted
 *   upper/        what was written, as overlays keep it: a file that was deleted is a device 0:0, or `.wh.NAME`
 *   work/         the overlay's own
 *
 * The folder is for its owner alone (0700), whatever the mount above it lets others do: a container may leave a file in it that
 * is setuid root. It is held by a descriptor while it is used, so that nobody can put another folder in its place.
 */
import {
  chmodSync,
  chownSync,
  closeSync,
  constants,
  fstatSync,
  lstatSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  realpathSync,
} from 'node:fs'
import { basename, dirname, join, resolve } from 'node:path'
import { type Static, Type } from '@sinclair/typebox'
import { Value } from '@sinclair/typebox/value'
import { BobbinError, localError, systemCode } from '../../daemon/model/index.js'
import { readMountTable } from '../../daemon/mount/mount-table.js'
import { writeDurablySync } from '../../daemon/store/index.js'
import { openRecordFileSync } from '../record/record-file.js'

const MARKER = 'scratch.json'
/** A path of the kernel's has at most 4096 bytes, each of which JSON may write as six. */
const MARKER_BYTES_MAX = 64 * 1024

const Marker = Type.Object({
  version: Type.Literal(1),
  package: Type.String(),
  topHash: Type.String({ pattern: '^[0-9a-f]{64}$' }),
  mountpoint: Type.String({ pattern: '^/' }),
})
type Marker = Static<typeof Marker>

export interface ScratchFolder {
  /** Absolute, without links. */
  readonly path: string
  readonly lower: string
  readonly upper: string
  /** Of the folder itself; the owner of this closes it. */
  readonly fd: number
}

export interface ScratchOwner {
  readonly package: string
  readonly topHash: string
  /** Where the overlay will be. */
  readonly mountpoint: string
  readonly cacheDir: string
}

/** Where the parts of a scratch folder are. */
export function lowerOf(folder: string): string {
  return join(folder, 'lower')
}
export function upperOf(folder: string): string {
  return join(folder, 'upper')
}

/**
 * Makes the folder, or takes up again what was written above the same revision. Throws FOLDER_DIFFERS for that of another one,
 * MOUNTPOINT_UNUSABLE for a folder inside the mount, the cache or another mount of ours, ACCESS_DENIED, INVALID_ARGUMENT for a folder with
 * something else in it, LOCAL_IO.
 */
export function takeScratchFolder(dir: string, owner: ScratchOwner): ScratchFolder {
  const path = makeFolder(resolve(dir), owner)
  const fd = openOwn(path)
  try {
    const marker = readMarker(path)
    const names = readdirSync(here(fd))
    if (marker === undefined && names.length > 0) {
      const what = names.includes(MARKER) ? `its ${MARKER} is damaged` : `it holds ${JSON.stringify(names[0])}`
      throw new BobbinError(
        'INVALID_ARGUMENT',
        `${path} is not a scratch folder of bobbin (${what}): name an empty folder, or one that does not exist yet`,
      )
    }
    if (marker !== undefined && marker.topHash !== owner.topHash)
      throw new BobbinError(
        'FOLDER_DIFFERS',
        `${path} holds what was written above ${marker.package}@${marker.topHash}, and is not for ${owner.package}@${owner.topHash}: name another folder for --scratch, or remove this one`,
      )
    chmodSync(here(fd), 0o700)
    const scratch = { path, lower: lowerOf(path), upper: upperOf(path), fd }
    if (marker === undefined) {
      if (readdirSync(here(fd)).length > 0)
        throw new BobbinError('INVALID_ARGUMENT', `${path} is used by others: name another folder`)
      markScratch(scratch, owner)
    }
    for (const name of ['lower', 'upper', 'work']) makePart(fd, path, name)
    return scratch
  } catch (error) {
    closeSync(fd)
    throw localError(`use the scratch folder ${path}`, error)
  }
}

/** Says in the folder where it is mounted. */
export function markScratch(
  { fd }: ScratchFolder,
  { package: name, topHash, mountpoint }: Omit<ScratchOwner, 'cacheDir'>,
): void {
  const marker: Marker = { version: 1, package: name, topHash, mountpoint }
  writeDurablySync(join(here(fd), MARKER), `${JSON.stringify(marker)}\n`)
}

/** The root of the overlay looks like this folder. */
export function ownUpper({ fd }: ScratchFolder, { mode, uid, gid }: Record<'mode' | 'uid' | 'gid', number>): void {
  const upper = join(here(fd), 'upper')
  chmodSync(upper, mode)
  if (process.geteuid?.() === 0) chownSync(upper, uid, gid)
}

/** Undefined: there is none, or it is damaged. */
export function readMarker(folder: string): Marker | undefined {
  let fd: number | undefined
  try {
    fd = openRecordFileSync(join(folder, MARKER))
    if (fstatSync(fd).size > MARKER_BYTES_MAX) return undefined
    const marker: unknown = JSON.parse(readFileSync(fd, 'utf8'))
    return Value.Check(Marker, marker) ? marker : undefined
  } catch {
    return undefined
  } finally {
    if (fd !== undefined) closeSync(fd)
  }
}

/** Names below it lead into the very folder that was opened. */
function here(fd: number): string {
  return `/proc/self/fd/${fd}`
}

/** Looked at before it is made: nothing is left in a folder where it may not be. */
function makeFolder(dir: string, owner: ScratchOwner): string {
  try {
    refusePlace(wouldBe(dir), owner)
    mkdirSync(dir, { recursive: true, mode: 0o700 })
    const path = realpathSync(dir)
    refusePlace(path, owner)
    return path
  } catch (error) {
    throw localError(`make the scratch folder ${dir}`, error)
  }
}

/** Its path without links, as far as it is there. */
function wouldBe(dir: string): string {
  const isThere = lstatSync(dir, { throwIfNoEntry: false }) !== undefined
  return isThere || dirname(dir) === dir ? realpathSync(dir) : join(wouldBe(dirname(dir)), basename(dir))
}

function refusePlace(path: string, { mountpoint, cacheDir }: ScratchOwner): void {
  const isIn = (inner: string, outer: string) => inner === outer || inner.startsWith(outer === '/' ? '/' : `${outer}/`)
  const unusable = (what: string) => {
    throw new BobbinError('MOUNTPOINT_UNUSABLE', `the scratch folder ${path} ${what}: choose a folder elsewhere`)
  }
  if (isIn(path, mountpoint)) unusable(`lies in the mountpoint ${mountpoint}, which would hide it`)
  if (isIn(mountpoint, path)) unusable(`holds the mountpoint ${mountpoint}`)
  if (isIn(path, cacheDir)) unusable(`lies in the cache ${cacheDir}, whose files go when room is needed`)
  if (isIn(cacheDir, path)) unusable(`holds the cache ${cacheDir}`)
  const outer = readMountTable().find(one => one.type === 'fuse.bobbin' && isIn(path, one.mountpoint))
  if (outer !== undefined) unusable(`lies in the mount ${outer.mountpoint}`)
}

/** Of this user: what others own they could exchange, or read. */
function openOwn(path: string): number {
  let fd: number
  try {
    fd = openSync(path, constants.O_RDONLY | constants.O_DIRECTORY | constants.O_NOFOLLOW)
  } catch (error) {
    throw localError(`open the scratch folder ${path}`, error)
  }
  const { uid } = fstatSync(fd)
  if (uid === process.geteuid?.()) return fd
  closeSync(fd)
  throw new BobbinError(
    'ACCESS_DENIED',
    `the scratch folder ${path} belongs to user ${uid}, and this is user ${process.geteuid?.()}: name a folder of your own`,
  )
}

function makePart(fd: number, path: string, name: string): void {
  const part = join(here(fd), name)
  try {
    mkdirSync(part, { mode: 0o700 })
  } catch (error) {
    if (systemCode(error) !== 'EEXIST') throw error
    if (lstatSync(part).isDirectory()) return
    throw new BobbinError('INVALID_ARGUMENT', `${join(path, name)} is not a folder: remove it`)
  }
}
