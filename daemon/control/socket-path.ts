/** Where the daemon of a cache listens. */
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { basename, dirname, join } from 'node:path'
import { localError } from '../model/index.js'

/** sun_path of Linux has 108 bytes with its final NUL, that of macOS 104. */
const SOCKET_PATH_BYTES_MAX = 100
const SOCKET_NAME = 'daemon.sock'
const RUNTIME_PREFIX = 'bobbin-'

/**
 * `<cache>/daemon.sock`; where that is too long for a socket, one in a new folder of ours alone below
 * the system's temporary folder. Clients find it in the owner file.
 */
export function makeSocketPath(cacheDir: string): string {
  const path = join(cacheDir, SOCKET_NAME)
  if (Buffer.byteLength(path) <= SOCKET_PATH_BYTES_MAX) return path
  const parent = Buffer.byteLength(tmpdir()) < SOCKET_PATH_BYTES_MAX / 2 ? tmpdir() : '/tmp'
  try {
    return join(mkdtempSync(join(parent, RUNTIME_PREFIX)), SOCKET_NAME)
  } catch (error) {
    throw localError(`make a folder for the daemon's socket below ${parent}`, error)
  }
}

export function removeSocket(socketPath: string, cacheDir: string): void {
  rmSync(socketPath, { force: true })
  const folder = dirname(socketPath)
  if (folder !== cacheDir && basename(folder).startsWith(RUNTIME_PREFIX)) rmSync(folder, { recursive: true, force: true })
}
