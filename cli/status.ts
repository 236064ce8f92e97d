import { findDaemon } from '../daemon/control/client.js'
import { BobbinError } from '../daemon/model/index.js'
import { findDeadMounts } from '../daemon/mount/dead-mounts.js'
import { withContext } from './context.js'
import { deadText, showStatus } from './daemon-status.js'
import type { CommonFlags } from './settings.js'

export async function status(flags: CommonFlags): Promise<void> {
  await withContext(
    flags,
    async context => {
      const client = findDaemon(context.settings.cacheDir)
      if (client === undefined) {
        const dead = await findDeadMounts()
        const why = [`no daemon runs for ${context.settings.cacheDir} (bobbin mount starts one)`, ...dead.map(deadText)]
        throw new BobbinError('DAEMON_UNAVAILABLE', why.join('; '))
      }
      await showStatus(client, context)
    },
    { onlyAsks: true },
  )
}
