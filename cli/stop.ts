import { setTimeout as sleep } from 'node:timers/promises'
import { findDaemon } from '../daemon/control/client.js'
import { BobbinError } from '../daemon/model/index.js'
import { withContext } from './context.js'
import { unmountScratch } from './overlay/mount-scratch.js'
import { findScratches } from './overlay/overlay.js'
import { refuseWhileRunning } from './run/running.js'
import type { CommonFlags } from './settings.js'

const END_MS = 30_000

/** Returns when the daemon has ended. */
export async function stop(flags: CommonFlags & { readonly force?: boolean }): Promise<void> {
  await withContext(
    flags,
    async ({ settings, output }) => {
      const client = findDaemon(settings.cacheDir)
      if (client === undefined) {
        output.note(`bobbin: no daemon runs for ${settings.cacheDir}`)
        if (output.isJson) await output.row({ cache: settings.cacheDir, pid: null, stopped: false }, '')
        return
      }
      if (!flags.force) refuseWhileRunning(({ cacheDir }) => cacheDir === settings.cacheDir)
      const mounted = new Set((await client.status()).mounts.map(({ mountpoint }) => mountpoint))
      for (const scratch of findScratches())
        if (mounted.has(scratch.lower)) await unmountScratch(client, scratch, flags.force ?? false)
      await client.stop(flags.force ?? false)
      for (const deadline = Date.now() + END_MS; findDaemon(settings.cacheDir)?.pid === client.pid; await sleep(50)) {
        if (Date.now() > deadline)
          throw new BobbinError('DAEMON_UNAVAILABLE', `the daemon (process ${client.pid}) does not end`)
      }
      if (output.isJson) await output.row({ cache: settings.cacheDir, pid: client.pid, stopped: true }, '')
    },
    { onlyAsks: true },
  )
}
