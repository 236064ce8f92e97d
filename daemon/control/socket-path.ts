/**
 * Where the daemon of a cache is reached. Whoever starts a daemon chooses; whoever looks for one reads the owner file.
 *
 * In the cache folder where that fits, else in a folder that this user alone can enter. The names of such folders can be
 * foreseen, so somebody else may have made one, or a link with its name: it is left alone then, and another is taken.
 */
import { createHash } from 'node:crypto'
import { lstatSync, mkdirSync, mkdtempSync, readdirSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { BobbinError, localError } from '../model/index.js'
import { fitDoors, SOCKET_PATH_BYTES_MAX } from './doors.js'

/** Throws INVALID_ARGUMENT where no folder has a path that is short enough. */
export function chooseSocketPath(cacheDir: string): string {
  const inCache = join(cacheDir, 'daemon.sock')
  if (fitDoors(inCache)) return inCache
  const name = `${createHash('sha256').update(cacheDir).digest('hex').slice(0, 16)}.sock`
  for (const findFolder of [runtimeFolder, temporaryFolder]) {
    const folder = findFolder()
    if (folder !== undefined && fitDoors(join(folder, name))) return join(folder, name)
  }
  throw new BobbinError(
    'INVALID_ARGUMENT',
    `a socket's path has at most ${SOCKET_PATH_BYTES_MAX} bytes: choose a cache folder with a shorter path than ${cacheDir}, or a shorter TMPDIR`,
  )
}

/** In the folder that the system has made for this user. */
function runtimeFolder(): string | undefined {
  const bases = [process.env.XDG_RUNTIME_DIR, `/run/user/${process.getuid?.()}`]
  for (const base of bases) {
    if (!base?.startsWith('/') || !isOurs(base, 0o022)) continue
    const folder = join(base, 'bobbin')
    try {
      mkdirSync(folder, { mode: 0o700 })
    } catch {
      // It is there, or cannot be made.
    }
    if (isOurs(folder, 0o077)) return folder
  }
  return undefined
}

/** One that an earlier daemon of this user has made, or a new one with a name that nobody knew before. */
function temporaryFolder(): string {
  const prefix = `bobbin-${process.getuid?.() ?? 'user'}-`
  try {
    const earlier = readdirSync(tmpdir())
      .filter(name => name.startsWith(prefix))
      .map(name => join(tmpdir(), name))
    return earlier.find(folder => isOurs(folder, 0o077)) ?? mkdtempSync(join(tmpdir(), prefix))
  } catch (error) {
    throw localError(`make a folder for sockets in ${tmpdir()}`, error)
  }
}

/** A folder, not a link to one, of this user, with none of the `forbidden` bits in its mode. */
function isOurs(folder: string, forbidden: number): boolean {
  const stats = lstatSync(folder, { throwIfNoEntry: false })
  return stats?.isDirectory() === true && stats.uid === process.getuid?.() && (stats.mode & forbidden) === 0
}
