/**
 * One entry as a file of its own: what `install` and `cat` share. The bytes come from the cache
 * where it has them (as a reflink where the disk can, which copies nothing), else from the
 * physical key; either way they are checked before the file is anybody's.
 */
import { chmodSync, closeSync, constants, copyFileSync, fdatasync, openSync, rmSync } from 'node:fs'
import { promisify } from 'node:util'
import { fetchVerified } from '../fetch/fetch-verified.js'
import { type Log, localError, type ObjectSpec, silentLog, systemCode } from '../model/index.js'
import { findObject } from '../store/index.js'
import { hashObject } from '../work/hash-object.js'
import type { JobOptions, Workers } from '../work/workers.js'

export interface MaterializeOptions extends JobOptions {
  /** Whose objects may be used. */
  readonly cacheDir?: string | undefined
  /** The disk has the bytes before this returns. */
  readonly isDurable?: boolean
  /** Names the object in messages; an entry's key. */
  readonly label?: string | undefined
  readonly log?: Log
}

/**
 * Makes the file, which must not exist yet, and says where its bytes come from. Throws what
 * `fetchVerified` throws; then there is no file.
 */
export async function materialize(
  workers: Workers,
  spec: ObjectSpec,
  path: string,
  options: MaterializeOptions = {},
): Promise<'cache' | 'source'> {
  const log = options.log ?? silentLog
  const cached = options.cacheDir === undefined ? undefined : findObject(options.cacheDir, spec)
  try {
    if (cached !== undefined && (await reflink(workers, spec, cached, path, options))) return 'cache'
    const fd = create(path)
    try {
      if (cached !== undefined && (await copy(workers, spec, cached, fd, { ...options, log }))) {
        if (options.isDurable) await syncData(fd)
        return 'cache'
      }
      await fetchVerified(workers, spec, fd, { ...options, log })
      if (options.isDurable) await syncData(fd)
      return 'source'
    } finally {
      closeSync(fd)
    }
  } catch (error) {
    rmSync(path, { force: true })
    throw localError(`write ${path}`, error)
  }
}

/** Through the descriptor that wrote, so that what the disk has lost of it is told here. */
const syncData = promisify(fdatasync)

function create(path: string): number {
  return openSync(path, constants.O_RDWR | constants.O_CREAT | constants.O_EXCL | constants.O_NOFOLLOW, 0o666)
}

/** Pairs of file systems differ; where it failed once it is not tried again. */
let canReflink = true

/** False: there is no file, try another way. */
async function reflink(
  workers: Workers,
  spec: ObjectSpec,
  cached: string,
  path: string,
  options: MaterializeOptions,
): Promise<boolean> {
  // Below a block there is nothing to share.
  if (!canReflink || spec.size < 4096) return false
  try {
    copyFileSync(cached, path, constants.COPYFILE_EXCL | constants.COPYFILE_FICLONE_FORCE)
    chmodSync(path, 0o666 & ~process.umask())
  } catch (error) {
    rmSync(path, { force: true })
    if (systemCode(error) !== 'ENOENT') canReflink = false
    return false
  }
  const fd = openSync(path, constants.O_RDONLY | constants.O_NOFOLLOW)
  try {
    if ((await hashObject(workers, fd, spec.hash.type, spec.size, options)) === spec.hash.hex) {
      if (options.isDurable) await syncData(fd)
      return true
    }
  } finally {
    closeSync(fd)
  }
  rmSync(path, { force: true })
  return false
}

/** False: what the cache has is no use. */
async function copy(
  workers: Workers,
  spec: ObjectSpec,
  cached: string,
  fd: number,
  options: MaterializeOptions & { readonly log: Log },
): Promise<boolean> {
  const inCache: ObjectSpec = { ...spec, physicalKey: { kind: 'file', path: cached } }
  try {
    await fetchVerified(workers, inCache, fd, { ...options, isOneOfMany: true })
    return true
  } catch (error) {
    const localized = localError(`read ${cached}`, error)
    // Evicted meanwhile, or damaged, which its owner will find out by itself.
    if (!['OBJECT_GONE', 'OBJECT_CORRUPT', 'ACCESS_DENIED'].includes(localized.code)) throw localized
    options.log.warn({ path: cached, key: options.label }, 'the cached copy cannot be used')
    return false
  }
}
