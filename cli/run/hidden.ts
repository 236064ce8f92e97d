/** What a run's command hid of its data, looked up in the overlays while they are there. */
import { BobbinError, hasCode } from '../../daemon/model/index.js'
import type { OpenedPackage } from '../../daemon/package/package-cache.js'
import type { Context } from '../context.js'
import { openRecorded } from '../record/open-recorded.js'
import type { RunFacts, RunMount } from '../record/run-facts.js'
import { withoutOverlay } from './run-mounts.js'
import { lookAtHidden } from './written.js'

/** Nothing is said of an overlay that is gone, or that cannot be read: `finishRun` says that it is not known. */
export async function hiddenOf(
  mounts: readonly RunMount[],
  { settings: { cacheDir }, source, signal }: Context,
): Promise<Pick<RunFacts, 'hidden'>> {
  const gone = withoutOverlay(mounts)
  const hidden: NonNullable<RunFacts['hidden']>[number][] = []
  for (const mount of mounts) {
    if (mount.scratch === undefined || gone.includes(mount)) continue
    let opened: OpenedPackage | undefined
    try {
      opened = await openRecorded(mount, { cacheDir, source, offline: true, quarantine: true })
      hidden.push({ target: mount.target, ...(await lookAtHidden(mount.scratch, opened.index, signal)) })
    } catch (error) {
      if (!(error instanceof BobbinError) || hasCode(error, 'INTERRUPTED')) throw error
    } finally {
      opened?.close()
    }
  }
  return hidden.length > 0 ? { hidden } : {}
}
