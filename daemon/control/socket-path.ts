/** Where the daemon of a cache is reached: whoever listens and whoever starts it must agree. */
import { createHash } from 'node:crypto'
import { mkdirSync, statSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { BobbinError } from '../model/index.js'

/** sun_path holds 108 bytes, with its final NUL. */
const SOCKET_PATH_BYTES_MAX = 107

/** In the cache folder where that fits, else in a folder of ours that only we can enter. */
export function chooseSocketPath(cacheDir: string): string {
  const inCache = join(cacheDir, 'daemon.sock')
  if (Buffer.byteLength(inCache) <= SOCKET_PATH_BYTES_MAX) return inCache
  const folder = join(tmpdir(), `bobbin-${process.getuid?.() ?? 'user'}`)
  mkdirSync(folder, { recursive: true, mode: 0o700 })
  const stats = statSync(folder)
  if (stats.uid !== process.getuid?.() || (stats.mode & 0o022) !== 0) {
    throw new BobbinError(
      'ACCESS_DENIED',
      `${folder} is not this user's alone: remove it, or choose a cache folder with a shorter path`,
    )
  }
  return join(folder, `${createHash('sha256').update(cacheDir).digest('hex').slice(0, 16)}.sock`)
}
