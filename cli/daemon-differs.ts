/** Says in what a command differs from the daemon that does the work for it, and from the loaders of that daemon. */
import type { DaemonClient } from '../daemon/control/client.js'
import type { StatusFacts } from '../daemon/control/schema.js'
import { type Differences, differencesFrom, differencesFromLoader } from '../daemon/control/surroundings.js'
import { hasCode } from '../daemon/model/index.js'
import { foreignOwner, isAlive } from '../daemon/store/index.js'
import type { Settings } from './settings.js'

/** `undefined`: the daemon is another user's, who has an environment of their own, or it is of an earlier version. */
export async function daemonDifferences(client: DaemonClient, settings: Settings): Promise<Differences | undefined> {
  if (foreignOwner(settings.cacheDir) !== undefined) return undefined
  try {
    return differencesFrom(await client.surroundings(), settings)
  } catch (error) {
    // The door of the group, or a daemon of an earlier version.
    if (hasCode(error, 'ACCESS_DENIED') || hasCode(error, 'INVALID_ARGUMENT')) return undefined
    throw error
  }
}

/** One line, or `undefined`: nothing differs that is known. */
export async function daemonDiffers(client: DaemonClient, settings: Settings): Promise<string | undefined> {
  return differencesText(client.pid, await daemonDifferences(client, settings))
}

export function differencesText(pid: number, differences: Differences | undefined): string | undefined {
  const { reload, start } = differences ?? { reload: [], start: [] }
  const parts = [
    ...(reload.length === 0 ? [] : [`${reload.join(', ')} (bobbin reload hands yours over)`]),
    ...(start.length === 0
      ? []
      : [`${start.join(', ')} (only a new daemon takes yours: bobbin stop, then mount again)`]),
  ]
  if (parts.length === 0) return undefined
  return `the daemon (process ${pid}) has other settings than this command: ${parts.join('; ')}`
}

/** Loaders that run with other settings than this command: a reload does not reach them. */
export function loadersThatDiffer(
  { loader }: Pick<StatusFacts, 'loader'>,
  settings: Settings,
): { readonly pid: number; readonly names: readonly string[] }[] {
  return (loader?.owners ?? []).flatMap(({ pid, surroundings }) => {
    if (pid === undefined || surroundings === undefined || !isAlive(pid)) return []
    const names = differencesFromLoader(surroundings, settings)
    return names.length === 0 ? [] : [{ pid, names }]
  })
}

export function loaderText({ pid, names }: { readonly pid: number; readonly names: readonly string[] }): string {
  return `the loader (process ${pid}) has other settings than this command: ${names.join(', ')} (it takes them when it starts: start it again)`
}
