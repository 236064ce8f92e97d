/** Mounts a package with a scratch folder above it, and takes both away again, the overlay first. */
import { closeSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { findBobbinFuse } from '../../daemon/control/bobbin-fuse.js'
import type { DaemonClient } from '../../daemon/control/client.js'
import type { MountBody, MountFacts } from '../../daemon/control/schema.js'
import { BobbinError, hasCode } from '../../daemon/model/index.js'
import { mountAt } from '../../daemon/mount/mount-table.js'
import { unmountPath } from '../../daemon/mount/unmount.js'
import { findScratches, mountOverlay, type OverlayMaker, type Scratch } from './overlay.js'
import { markScratch, ownUpper, type ScratchFolder, takeScratchFolder } from './scratch-folder.js'

/** The mode bits that a mount with a scratch folder has by default: its owner writes. */
export const SCRATCH_UMASK = 0o022
/** fuse-overlayfs lets go of the package a moment after its own mount has gone. */
const LETTING_GO_MS = 10_000
const AGAIN_MS = 50

/** A mount as people see it: at the overlay, with where its parts are. */
export type ScratchFacts = MountFacts & {
  readonly scratch: { readonly folder: string; readonly lower: string; readonly overlay: OverlayMaker }
}

/** `body.mountpoint` is the overlay's. Nothing stays mounted when this throws: what `takeScratchFolder`, `mount` and `mountOverlay` throw. */
export async function mountScratch(
  client: DaemonClient,
  body: MountBody,
  dir: string,
  cacheDir: string,
): Promise<ScratchFacts> {
  const { mountpoint, umask = SCRATCH_UMASK, uid = process.geteuid?.() ?? 0, gid = process.getegid?.() ?? 0 } = body
  const isRoot = process.geteuid?.() === 0
  const allowOther = body.allowOther ?? isRoot
  const scratch = takeScratchFolder(dir, { package: body.package, topHash: body.topHash, mountpoint, cacheDir })
  try {
    await clearLower(client, scratch)
    markScratch(scratch, { ...body, mountpoint })
    const facts = await client.mount({
      ...body,
      mountpoint: scratch.lower,
      umask,
      showsWriteBits: true,
      // The kernel asks as root, which another user's daemon would not let in. Others cannot come here: the folder is private.
      ...(isRoot && { allowOther: true }),
    })
    try {
      // An overlay of the kernel is open to everybody whom modes let in, so its root is what keeps others out.
      ownUpper(scratch, { mode: 0o777 & ~umask & (allowOther ? 0o777 : 0o700), uid, gid })
      const overlay = await mountOverlay(scratch, mountpoint, { allowOther })
      return { ...facts, mountpoint, scratch: { folder: scratch.path, lower: scratch.lower, overlay } }
    } catch (error) {
      await client.unmount(scratch.lower, true).catch(() => {})
      throw error
    }
  } finally {
    closeSync(scratch.fd)
  }
}

/** What a command that was killed has left there. Throws ALREADY_MOUNTED when it was not left. */
async function clearLower(client: DaemonClient, { path, lower }: ScratchFolder): Promise<void> {
  const other = findScratches().find(one => one.lower === lower && one.overlay !== undefined)
  if (other !== undefined)
    throw new BobbinError(
      'ALREADY_MOUNTED',
      `the scratch folder ${path} is in use at ${other.mountpoint}: bobbin umount ${other.mountpoint}, or name another folder`,
    )
  await unmountLower(client, lower, false)
}

/**
 * Takes an overlay away, then the package's mount. Throws ALREADY_MOUNTED while one of them is in use; what was written stays in any
 * case.
 */
export async function unmountScratch(
  client: DaemonClient | undefined,
  { mountpoint, lower, overlay }: Scratch,
  isForced: boolean,
): Promise<void> {
  if (overlay !== undefined) await unmountOverlay({ mountpoint }, isForced)
  for (const deadline = Date.now() + LETTING_GO_MS; ; await sleep(AGAIN_MS)) {
    try {
      return await unmountLower(client, lower, isForced)
    } catch (error) {
      if (overlay !== 'fuse-overlayfs' || !hasCode(error, 'ALREADY_MOUNTED') || Date.now() > deadline) throw error
    }
  }
}

/** Throws ALREADY_MOUNTED while it is in use. */
export function unmountOverlay({ mountpoint }: Pick<Scratch, 'mountpoint'>, isForced: boolean): Promise<void> {
  return unmountPath(mountpoint, { isForced, program: findBobbinFuse().path })
}

/** Also one of a daemon that is gone. */
async function unmountLower(client: DaemonClient | undefined, lower: string, isForced: boolean): Promise<void> {
  if (mountAt(lower)?.type !== 'fuse.bobbin') return
  try {
    if (client !== undefined) return await client.unmount(lower, isForced)
  } catch (error) {
    if (!hasCode(error, 'NOT_MOUNTED', 'DAEMON_UNAVAILABLE')) throw error
  }
  if (mountAt(lower)?.type === 'fuse.bobbin') await unmountPath(lower, { isForced, program: findBobbinFuse().path })
}

/** Mounts as people see them: one below an overlay is shown where the overlay is. */
export function asSeen<M extends { readonly mountpoint: string }>(
  mounts: readonly M[],
): (M & { readonly scratch?: Omit<Scratch, 'mountpoint'> })[] {
  const scratches = findScratches()
  return mounts.map(mount => {
    const found = scratches.find(({ lower }) => lower === mount.mountpoint)
    if (found?.overlay === undefined) return mount
    const { mountpoint, ...scratch } = found
    return { ...mount, mountpoint, scratch }
  })
}
