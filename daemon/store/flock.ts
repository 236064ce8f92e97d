/**
 * flock(2), which Node.js does not have. A lock belongs to the open file, not to the process: flock(1)
 * of util-linux locks the descriptor that it inherits, and the lock stays with ours after it exits.
 */
import { spawn, spawnSync } from 'node:child_process'
import { BobbinError, systemCode } from '../model/index.js'

/** False: another process holds a lock that excludes ours. */
export function flock(fd: number, kind: 'shared' | 'exclusive'): boolean {
  const { error, status, stderr } = spawnSync('flock', [kind === 'shared' ? '-s' : '-x', '-n', '3'], {
    stdio: ['ignore', 'ignore', 'pipe', fd],
    encoding: 'utf8',
  })
  if (error !== undefined) throw cannotRun(error)
  return isLocked(status, stderr)
}

/** The same for an exclusive lock, after waiting for those who hold it. False: not within `waitMs`. */
export function flockWithin(fd: number, waitMs: number): Promise<boolean> {
  return new Promise((resolve, reject) => {
    const args = ['-x', '-w', String(waitMs / 1000), '3']
    const child = spawn('flock', args, { stdio: ['ignore', 'ignore', 'pipe', fd] })
    let stderr = ''
    child.stderr!.setEncoding('utf8').on('data', text => {
      stderr += text
    })
    child.once('error', error => reject(cannotRun(error)))
    child.once('close', status => {
      try {
        resolve(isLocked(status, stderr))
      } catch (error) {
        reject(error)
      }
    })
  })
}

function isLocked(status: number | null, stderr: string): boolean {
  if (status === 0) return true
  // Silence is its way of saying "locked"; some file systems cannot lock at all.
  if (stderr === '') return false
  throw new BobbinError('LOCAL_IO', `cannot lock: ${stderr.trim()}`)
}

function cannotRun(error: Error): BobbinError {
  const isMissing = systemCode(error) === 'ENOENT'
  return new BobbinError('LOCAL_IO', isMissing ? 'flock is missing: install util-linux' : `flock: ${error.message}`, {
    cause: error,
  })
}
