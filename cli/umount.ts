import { spawnSync } from 'node:child_process'
import { resolve } from 'node:path'
import { findDaemon } from '../daemon/control/client.js'
import { BobbinError, hasCode } from '../daemon/model/index.js'
import { mountAt, resolveMountpoint } from '../daemon/mount/mount-table.js'
import { withContext } from './context.js'
import type { CommonFlags } from './settings.js'

export async function umount(dir: string, flags: CommonFlags & { readonly force?: boolean }): Promise<void> {
  await withContext(flags, async ({ settings }) => {
    const mountpoint = await resolveMountpoint(resolve(dir))
    try {
      const client = findDaemon(settings.cacheDir)
      if (client === undefined)
        throw new BobbinError('NOT_MOUNTED', `${mountpoint} is not mounted (no daemon runs for ${settings.cacheDir})`)
      await client.unmount(mountpoint, flags.force ?? false)
    } catch (error) {
      // Of a daemon that was killed, or of another cache's: the mount is ours all the same.
      const isLeft = mountAt(mountpoint)?.type === 'fuse.bobbin'
      if (!hasCode(error, 'NOT_MOUNTED', 'DAEMON_UNAVAILABLE') || !isLeft) throw error
      unmountHere(mountpoint, flags.force ?? false)
    }
  })
}

function unmountHere(mountpoint: string, isForced: boolean): void {
  const command =
    process.getuid?.() === 0 ? ['umount', ...(isForced ? ['-l'] : [])] : ['fusermount3', isForced ? '-uz' : '-u']
  const { status, stderr } = spawnSync(command[0]!, [...command.slice(1), '--', mountpoint], { encoding: 'utf8' })
  if (status === 0) return
  const isBusy = /busy/i.test(stderr ?? '')
  throw new BobbinError(
    isBusy ? 'ALREADY_MOUNTED' : 'LOCAL_IO',
    `cannot unmount ${mountpoint}: ${(stderr ?? '').trim() || 'no program to do it with'}${isBusy ? ' (--force does it all the same)' : ''}`,
  )
}
