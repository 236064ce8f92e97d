/**
 * One owner a cache: the process that holds an flock(2) on `<cache>/owner`.
 *
 * The kernel drops the lock when we end, however we end, so there is no stale lock and no pid to guess.
 * The file's text is for clients: who the owner is and where it listens.
 */
import {
  closeSync,
  constants,
  fstatSync,
  ftruncateSync,
  mkdirSync,
  openSync,
  readFileSync,
  statSync,
  writeSync,
} from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { BobbinError, localError, systemCode } from '../model/index.js'
import { flock } from './flock.js'
import { refuseForeignFolder } from './foreign-folder.js'

export interface OwnerFacts {
  readonly pid: number
  /** Where it answers; `undefined` for an owner that serves nobody. */
  readonly socketPath?: string | undefined
  /** Where it takes the cache's group; `undefined` for an owner of an earlier version. */
  readonly leasesPath?: string | undefined
  readonly statusPath?: string | undefined
  /** Where others may mount; `undefined`: they may not. */
  readonly mountsPath?: string | undefined
  readonly version: string
  /** Unix time, milliseconds. */
  readonly startedAt: number
}

export interface Ownership {
  readonly cacheDir: string
  readonly facts: OwnerFacts
  /** Somebody has deleted the cache, or its owner file: nobody finds us any more, and another process can become its owner. */
  isLost(): boolean
  /** Lets the cache go. Ending the process does the same. */
  release(): void
}

/** Far more than there can be looks in a row. */
const LOCK_TRIES_MAX = 100

/** Throws CACHE_IN_USE, and ACCESS_DENIED for a folder that everybody may write to. */
export async function acquireOwnership(
  cacheDir: string,
  facts: OwnerFacts,
  options: {
    /** The owner file, locked by whoever started us: the lock is theirs, and outlives us. */
    readonly inheritedFd?: number | undefined
  } = {},
): Promise<Ownership> {
  makeCacheFolder(cacheDir)
  const fd = options.inheritedFd ?? (await lockOwnerFile(cacheDir))
  try {
    // Over what an earlier owner has left, which is cut afterwards: on a full disk, this block can still be had.
    const text = Buffer.from(`${JSON.stringify(facts)}\n`)
    writeSync(fd, text, 0, text.length, 0)
    ftruncateSync(fd, text.length)
  } catch (error) {
    closeSync(fd)
    throw localError(`write ${ownerPath(cacheDir)}`, error)
  }
  let isHeld = true
  return {
    cacheDir,
    facts,
    isLost: () => isHeld && !isSameFile(fd, ownerPath(cacheDir)),
    release() {
      if (!isHeld) return
      isHeld = false
      try {
        if (options.inheritedFd === undefined) ftruncateSync(fd)
      } finally {
        closeSync(fd)
      }
    },
  }
}

/** Who owns the cache: the facts that the last owner left, and whether it is still there. */
export function readOwner(cacheDir: string): { readonly isHeld: boolean; readonly facts: OwnerFacts | undefined } {
  let fd: number
  try {
    fd = openSync(ownerPath(cacheDir), constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK)
  } catch (error) {
    if (['ENOENT', 'ENOTDIR'].includes(systemCode(error) ?? '')) return { isHeld: false, facts: undefined }
    if (systemCode(error) === 'EACCES') {
      throw new BobbinError(
        'ACCESS_DENIED',
        `cannot read ${ownerPath(cacheDir)}: the cache is another user's; name one of your own with --cache, or join the group of that folder`,
        { cause: error },
      )
    }
    throw localError(`read ${ownerPath(cacheDir)}`, error)
  }
  try {
    const isHeld = !flock(fd, 'shared')
    return { isHeld, facts: parseFacts(readFileSync(fd, 'utf8')) }
  } finally {
    closeSync(fd)
  }
}

function ownerPath(cacheDir: string): string {
  return join(cacheDir, 'owner')
}

/** Readable by the owner's group alone: bytes fetched with one person's credentials are not another's. */
function makeCacheFolder(cacheDir: string): void {
  let isOpen: boolean
  try {
    mkdirSync(cacheDir, { recursive: true, mode: 0o750 })
    isOpen = (statSync(cacheDir).mode & 0o002) !== 0
  } catch (error) {
    throw localError(`make the cache folder ${cacheDir}`, error)
  }
  if (isOpen) {
    throw new BobbinError(
      'ACCESS_DENIED',
      `everybody may write to the cache folder ${cacheDir}: run chmod o-w on it, or name another one with --cache`,
    )
  }
  refuseForeignFolder(cacheDir, 'the cache', 'name another one with --cache')
}

async function lockOwnerFile(cacheDir: string): Promise<number> {
  const path = ownerPath(cacheDir)
  for (;;) {
    let fd: number
    try {
      fd = openSync(path, constants.O_RDWR | constants.O_CREAT | constants.O_NOFOLLOW | constants.O_NONBLOCK, 0o640)
    } catch (error) {
      throw localError(`open ${path}`, error)
    }
    try {
      if (!(await lockExclusively(fd))) {
        const { facts } = readOwner(cacheDir)
        const who = facts === undefined ? 'another process' : `process ${facts.pid}`
        throw new BobbinError(
          'CACHE_IN_USE',
          `the cache ${cacheDir} belongs to ${who}: stop that process, or name another cache with --cache`,
        )
      }
      // Somebody may have deleted the file after we opened it: then our lock guards nothing.
      if (isSameFile(fd, path)) return fd
    } catch (error) {
      closeSync(fd)
      throw error
    }
    closeSync(fd)
  }
}

/**
 * False: another process holds it. One that only looks who the owner is (readOwner) holds a shared
 * lock for a moment, which must not pass for an owner: then there is another try.
 */
async function lockExclusively(fd: number): Promise<boolean> {
  for (let tries = 1; ; tries++) {
    if (flock(fd, 'exclusive')) return true
    if (!flock(fd, 'shared') || tries === LOCK_TRIES_MAX) return false
    // Of two who want it, each has a shared lock now: they come back at different times.
    await sleep(1 + Math.random() * 20)
  }
}

function isSameFile(fd: number, path: string): boolean {
  try {
    const [ours, found] = [fstatSync(fd), statSync(path)]
    return ours.ino === found.ino && ours.dev === found.dev
  } catch {
    return false
  }
}

function parseFacts(text: string): OwnerFacts | undefined {
  try {
    const facts = JSON.parse(text) as OwnerFacts
    return typeof facts.pid === 'number' ? facts : undefined
  } catch {
    // Empty: released. Half a text: being written.
    return undefined
  }
}
