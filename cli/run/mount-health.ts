/**
 * Did a run's mounts last until its command ended? A daemon that dies alone does them no harm; without bobbin-fuse, or
 * after somebody's `bobbin umount`, what the command read from then on failed, and its record has to say so.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import type { DaemonClient } from '../../daemon/control/client.js'
import type { StatusFacts } from '../../daemon/control/schema.js'
import { mountAt } from '../../daemon/mount/mount-table.js'
import { isAlive } from '../../daemon/store/index.js'
import type { RunMount } from '../record/run-facts.js'
import { runQuietly } from './process.js'

/** In that time bobbin-fuse, or systemd, has started what died. */
const PATIENCE_MS = 10_000
const ASK_AGAIN_MS = 100
/** A dead mount answers at once; one that does not answer is not dead. */
const PROBE_MS = 2000

/** Waits for a daemon that is being started again. Undefined: there is none. */
export async function settledStatus(
  client: DaemonClient,
  mounts: readonly RunMount[],
): Promise<StatusFacts | undefined> {
  for (const deadline = Date.now() + PATIENCE_MS; ; await sleep(ASK_AGAIN_MS)) {
    const status = await client.status().catch(() => undefined)
    if (status !== undefined) return status
    if (Date.now() > deadline) return undefined
    // systemd may keep the mounts of one that died: they are not dead.
    if (!isAlive(client.pid) && (await Promise.all(mounts.map(isGone))).every(gone => gone)) return undefined
  }
}

/** Those that are not what they were. */
export async function endedMounts(
  status: StatusFacts | undefined,
  mounts: readonly RunMount[],
): Promise<readonly RunMount[]> {
  if (status !== undefined) return mounts.filter(mount => !isServed(mount, status))
  const gone = await Promise.all(mounts.map(isGone))
  return mounts.filter((_, i) => gone[i])
}

/** By this daemon, since then: another one at the same place is somebody else's. */
export function isServed({ mountpoint, mountedAt }: RunMount, { mounts }: StatusFacts): boolean {
  return mounts.some(one => one.mountpoint === mountpoint && one.mountedAt === mountedAt)
}

async function isGone(mount: RunMount): Promise<boolean> {
  return mountAt(mount.mountpoint)?.type !== 'fuse.bobbin' || (await isDead(mount.mountpoint))
}

/** A mount of ours that nobody serves any more. Asked by a process of its own, which may have to wait. */
export async function isDead(mountpoint: string): Promise<boolean> {
  if (mountAt(mountpoint)?.type !== 'fuse.bobbin') return false
  const env = { ...process.env, LC_ALL: 'C' }
  const { stderr } = await runQuietly('stat', ['--', mountpoint], { env, timeoutMs: PROBE_MS })
  return /not connected/i.test(stderr.toString('utf8'))
}
