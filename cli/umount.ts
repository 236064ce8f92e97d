import { resolve } from 'node:path'
import { findBobbinFuse } from '../daemon/control/bobbin-fuse.js'
import { findDaemon } from '../daemon/control/client.js'
import { BobbinError, hasCode } from '../daemon/model/index.js'
import { mountAt, resolveMounted } from '../daemon/mount/mount-table.js'
import { unmountPath } from '../daemon/mount/unmount.js'
import { withContext } from './context.js'
import { unmountScratch } from './overlay/mount-scratch.js'
import { findScratch, isForeignOverlay } from './overlay/overlay.js'
import { refuseWhileRunning } from './run/running.js'
import type { CommonFlags } from './settings.js'

export async function umount(dir: string, flags: CommonFlags & { readonly force?: boolean }): Promise<void> {
  await withContext(
    flags,
    async ({ settings, output }) => {
      const mountpoint = await resolveMounted(resolve(dir))
      const scratch = findScratch(mountpoint)
      const mounted = scratch?.lower ?? mountpoint
      if (!flags.force) refuseWhileRunning(mount => mount.mountpoint === mounted)
      if (scratch !== undefined) {
        await unmountScratch(findDaemon(settings.cacheDir), scratch, flags.force ?? false)
        if (output.isJson) await output.row({ mountpoint: scratch.mountpoint, unmounted: true }, '')
        return
      }
      try {
        const client = findDaemon(settings.cacheDir)
        if (client === undefined)
          throw new BobbinError('NOT_MOUNTED', `${mountpoint} is not mounted (no daemon runs for ${settings.cacheDir})`)
        await client.unmount(mountpoint, flags.force ?? false)
      } catch (error) {
        // Of a daemon that was killed, or of another cache's: the mount is ours all the same.
        const isLeft = mountAt(mountpoint)?.type === 'fuse.bobbin'
        const top = mountAt(mountpoint)
        if (hasCode(error, 'NOT_MOUNTED') && top !== undefined && isForeignOverlay(top))
          throw new BobbinError(
            'NOT_MOUNTED',
            `${mountpoint} is a mount of fuse-overlayfs, and no package is mounted below it any more: give its scratch folder to bobbin umount, or run fusermount3 -u ${mountpoint}`,
          )
        if (!hasCode(error, 'NOT_MOUNTED', 'DAEMON_UNAVAILABLE') || !isLeft) throw error
        await unmountPath(mountpoint, { isForced: flags.force ?? false, program: findBobbinFuse().path })
      }
      if (output.isJson) await output.row({ mountpoint, unmounted: true }, '')
    },
    { onlyAsks: true },
  )
}
