/**
 * flock(2), which Node.js does not have. A lock belongs to the open file, not to the process: flock(1)
 * of util-linux locks the descriptor that it inherits, and the lock stays with ours after it exits.
 */
import { spawnSync } from 'node:child_process'
import { BobbinError, systemCode } from '../model/index.js'

/** False: another process holds a lock that excludes ours. */
export function flock(fd: number, kind: 'shared' | 'exclusive'): boolean {
  const { error, status, stderr } = spawnSync('flock', [kind === 'shared' ? '-s' : '-x', '-n', '3'], {
    stdio: ['ignore', 'ignore', 'pipe', fd],
    encoding: 'utf8',
  })
  if (error !== undefined) {
    const isMissing = systemCode(error) === 'ENOENT'
    throw new BobbinError('LOCAL_IO', isMissing ? 'flock is missing: install util-linux' : `flock: ${error.message}`, {
      cause: error,
    })
  }
  if (status === 0) return true
  // Silence is its way of saying "locked"; some file systems cannot lock at all.
  if (stderr === '') return false
  throw new BobbinError('LOCAL_IO', `cannot lock: ${stderr.trim()}`)
}
