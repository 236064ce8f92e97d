/** What a daemon says of itself, as `status` and `reload` show it; some of it, `doctor` shows, too. */
import type { DaemonClient } from '../daemon/control/client.js'
import type { StatusFacts } from '../daemon/control/schema.js'
import { formatBytes, formatDuration } from '../daemon/model/index.js'
import { findDeadMounts } from '../daemon/mount/dead-mounts.js'
import type { MountedAt } from '../daemon/mount/mount-table.js'
import { isAlive } from '../daemon/store/index.js'
import type { Context } from './context.js'
import { daemonDifferences, differencesText, loadersThatDiffer, loaderText } from './daemon-differs.js'
import { table } from './output.js'
import { asSeen } from './overlay/mount-scratch.js'
import { findScratch } from './overlay/overlay.js'
import { commandLine, runningRuns } from './run/running.js'

/** What the service manager's store of descriptors is too small for; doctor says it, too. */
export function unkeptText(mounts: number): string {
  return `${mounts} of them would end with bobbin-fuse: raise FileDescriptorStoreMax= in its unit, and restart it`
}

/** A mount of ours that nobody serves; doctor says it, too. */
export function deadText({ mountpoint: path, source }: MountedAt): string {
  const mountpoint = findScratch(path)?.mountpoint ?? path
  return `${mountpoint} (${source}) is dead, and every call on it fails: bobbin umount ${mountpoint}`
}

function errorText({ at, program, level, message, reason, about }: StatusFacts['lastErrors'][number]): string {
  const ago = formatDuration(Date.now() - Date.parse(at))
  const what = Object.values(about).join(', ')
  const who = `${program === 'daemon' ? '' : `${program}: `}${level === 'warn' ? 'warning: ' : ''}`
  return `         ${ago} ago: ${who}${message}${what === '' ? '' : ` (${what})`}${reason === undefined ? '' : `: ${reason}`}`
}

/** What bobbin-fuse sees of readers and of the daemon. */
function linkText({ waiting, openObjects, openBytes, daemonsStarted }: NonNullable<StatusFacts['link']>): string {
  const again = daemonsStarted > 1 ? `; ${daemonsStarted} daemons were started` : ''
  return `link     ${waiting} files are waited for, ${openObjects} objects open (${formatBytes(openBytes)})${again}`
}

/** What `reload` shows, too. */
export async function showStatus(client: DaemonClient, { settings, output }: Context): Promise<void> {
  const asked = await client.status()
  const facts = { ...asked, mounts: asSeen(asked.mounts) }
  const dead = await findDeadMounts()
  const differences = await daemonDifferences(client, settings)
  const differs = differencesText(client.pid, differences)
  const otherLoaders = loadersThatDiffer(facts, settings)
  const { daemon, mounts, cache, fetch, link, loader, lastErrors = [] } = facts
  const age = formatDuration(Date.now() - Date.parse(daemon.startedAt))
  const isMixed = (daemon.supervisorVersion ?? daemon.version) !== daemon.version
  const lines = [
    `daemon   process ${daemon.pid}${daemon.supervisorPid === null ? '' : ` of bobbin-fuse ${daemon.supervisorPid}`}, version ${daemon.version}${isMixed ? ` (bobbin-fuse ${daemon.supervisorVersion}: reload or restart it)` : ''}, for ${age}`,
    ...(differs === undefined ? [] : [`         ${differs}`]),
    ...(daemon.notReplaced ? [`         not the newest: ${daemon.notReplaced}`] : []),
    ...otherLoaders.map(other => `         ${loaderText(other)}`),
    `cache    ${daemon.cache}: ${formatBytes(cache.bytes)} of ${formatBytes(cache.limitBytes)} in ${cache.objects} objects, ${formatBytes(cache.pinnedBytes)} in use, ${cache.evictions} evicted`,
    `         beside them ${formatBytes(cache.packagesBytes)} of packages, ${formatBytes(cache.plansBytes)} of plans, ${formatBytes(cache.logsBytes)} of logs, ${formatBytes(cache.otherBytes)} of other files`,
    `fetch    ${fetch.objects} objects, ${formatBytes(fetch.bytes)}; ${fetch.hits} opened from the cache; ${fetch.inFlight} under way, ${fetch.queued} waiting`,
    ...(link ? [linkText(link)] : []),
    `errors   ${fetch.errors} failed, ${fetch.refetches} fetched twice, ${fetch.refused} refused`,
    ...lastErrors.map(errorText),
    // One that has ended without a word is forgotten after a while; what it leased is let go then.
    ...(loader?.owners ?? [])
      .filter(({ pid, leases }) => leases > 0 || (pid !== undefined && isAlive(pid)))
      .map(
        ({ pid, socket, leases, bytes }) =>
          `loader   ${pid === undefined ? 'process unknown' : `process ${pid} at ${socket}`}: ${leases} leases, ${formatBytes(bytes)}`,
      ),
    mounts.length === 0 ? 'mounts   none' : 'mounts',
    ...dead.map(mount => `  ${deadText(mount)}`),
    ...(daemon.unkeptMounts > 0 ? [`  ${unkeptText(daemon.unkeptMounts)}`] : []),
    ...table(
      mounts.map(mount => [
        `  ${mount.mountpoint}`,
        `${mount.package}@${mount.topHash.slice(0, 12)}`,
        mount.registry,
        `${mount.transport}, ${mount.openMode}${mount.openModeReason === undefined ? '' : ` (${mount.openModeReason})`}${mount.listsAttributes ? ', attributes listed' : ''}${mount.scratch === undefined ? '' : `; scratch folder ${mount.scratch.folder}`}`,
      ]),
    ),
  ]
  const runs = runningRuns().map(({ folder, facts: { runId, pid, startedOn, command } }) => {
    return { runId, pid, startedOn, command, record: folder.path }
  })
  for (const { runId, startedOn, command } of runs)
    lines.push(
      `run      ${runId}, for ${formatDuration(Date.now() - Date.parse(startedOn))}: ${commandLine(command).slice(0, 80)}`,
    )
  const shown = {
    ...facts,
    ...(loader && { loader: { ...loader, owners: loader.owners.map(({ surroundings: _, ...owner }) => owner) } }),
    runs,
    deadMounts: dead.map(({ mountpoint }) => mountpoint),
    // Names, never values; null: they are not known, since the daemon is another user's.
    differences: differences === undefined ? null : { ...differences, loaders: otherLoaders },
  }
  await output.row(shown, lines)
}
