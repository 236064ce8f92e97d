import { findDaemon } from '../daemon/control/client.js'
import { environmentThatMatters } from '../daemon/control/surroundings.js'
import { BobbinError } from '../daemon/model/index.js'
import { withContext } from './context.js'
import { showStatus } from './daemon-status.js'
import type { CommonFlags } from './settings.js'

/** Hands credentials, endpoint and settings of this command to the running daemon; mounts stay. Not for root on somebody else's. */
export async function reload(flags: CommonFlags): Promise<void> {
  await withContext(flags, async context => {
    const { cacheDir, ioTimeoutMs, offline, cacheBytesMax, freeBytesMin } = context.settings
    const client = findDaemon(cacheDir)
    if (client === undefined) {
      throw new BobbinError(
        'DAEMON_UNAVAILABLE',
        `no daemon runs for ${cacheDir}: the next daemon takes the settings of the command that starts it (bobbin mount)`,
      )
    }
    await client.reload({
      environment: environmentThatMatters(),
      ioTimeoutMs,
      offline,
      ...(cacheBytesMax !== undefined && { cacheBytesMax }),
      ...(freeBytesMin !== undefined && { freeBytesMin }),
    })
    await showStatus(client, context)
  })
}
