/**
 * Mounts of ours that nobody serves any more: their bobbin-fuse was killed, or their connection was aborted. The kernel keeps
 * them until somebody unmounts them, and every call on them fails with ENOTCONN.
 */
import { spawn } from 'node:child_process'
import pLimit from 'p-limit'
import { type MountedAt, readMountTable } from './mount-table.js'

/** A dead mount answers at once; one that does not answer is not dead. */
const PROBE_MS = 2000
const PROBES_AT_ONCE = 8

/** In this mount namespace, of whichever cache. What this user may not look at is not found. */
export async function findDeadMounts(): Promise<MountedAt[]> {
  const ours = readMountTable().filter(({ type }) => type === 'fuse.bobbin')
  const limit = pLimit(PROBES_AT_ONCE)
  const dead = await Promise.all(ours.map(({ mountpoint }) => limit(isDeadMount, mountpoint)))
  return ours.filter((_, i) => dead[i])
}

/**
 * By a process of its own, since a mount that lives may be slow to answer. Its file system is asked: what is known of its root
 * the kernel goes on to say by itself.
 */
export function isDeadMount(mountpoint: string): Promise<boolean> {
  return new Promise(resolve => {
    const child = spawn('stat', ['--file-system', '--', mountpoint], {
      stdio: ['ignore', 'ignore', 'pipe'],
      timeout: PROBE_MS,
      killSignal: 'SIGKILL',
      env: { ...process.env, LC_ALL: 'C' },
    })
    let said = ''
    child.stderr.setEncoding('utf8').on('data', chunk => {
      said += chunk
    })
    child.once('error', () => resolve(false))
    child.once('close', () => resolve(/not connected/i.test(said)))
  })
}
