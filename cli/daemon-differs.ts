/** Says in what a command differs from the daemon that does the work for it. */
import type { DaemonClient } from '../daemon/control/client.js'
import { differencesFrom } from '../daemon/control/surroundings.js'
import { hasCode } from '../daemon/model/index.js'
import { foreignOwner } from '../daemon/store/index.js'
import type { Settings } from './settings.js'

/** One line, or `undefined`: nothing differs, or the daemon is another user's, who has an environment of their own. */
export async function daemonDiffers(client: DaemonClient, settings: Settings): Promise<string | undefined> {
  if (foreignOwner(settings.cacheDir) !== undefined) return undefined
  let facts: Awaited<ReturnType<DaemonClient['surroundings']>>
  try {
    facts = await client.surroundings()
  } catch (error) {
    // The door of the group, or a daemon of an earlier version.
    if (hasCode(error, 'ACCESS_DENIED') || hasCode(error, 'INVALID_ARGUMENT')) return undefined
    throw error
  }
  const { reload, start } = differencesFrom(facts, settings)
  const parts = [
    ...(reload.length === 0 ? [] : [`${reload.join(', ')} (bobbin reload hands yours over)`]),
    ...(start.length === 0
      ? []
      : [`${start.join(', ')} (only a new daemon takes yours: bobbin stop, then mount again)`]),
  ]
  if (parts.length === 0) return undefined
  return `the daemon (process ${client.pid}) has other settings than this command: ${parts.join('; ')}`
}
