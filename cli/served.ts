/** What a loader serves: all that its user may read, or what flags and settings name, at the revisions of this moment. */
import { BobbinError } from '../daemon/model/index.js'
import { resolveTopHash } from '../daemon/package/package-cache.js'
import { formatRegistry, parseReference, parseRegistry } from '../daemon/registry/reference.js'
import { type RevisionAddress, Served } from '../daemon/registry/served.js'
import { createSource } from '../daemon/source/index.js'
import type { MountedAt } from '../loader/http/options.js'
import { sourceConfigOf } from './context.js'
import type { Settings } from './settings.js'

/** Instead of a package: a loader that serves nothing, such as that of a run without mounts. */
export const SERVE_NOTHING = 'none'

/**
 * `folders`: where clients have the packages mounted, in their order. Throws INVALID_ARGUMENT, and what resolving a package
 * throws: a full top hash is taken as it is, without a request.
 */
export async function servedBy(
  settings: Settings,
  folders: readonly string[] = [],
): Promise<{ readonly served: Served; readonly mounted: readonly MountedAt[] }> {
  const { serve, allow } = settings
  if (serve.length === 0 && allow.length === 0) return { served: Served.everything, mounted: [] }
  const source = createSource(sourceConfigOf(settings))
  try {
    const revisions: RevisionAddress[] = []
    for (const text of serve) {
      if (text === SERVE_NOTHING) continue
      const reference = parseReference(text, { defaultRegistry: settings.registry })
      const topHash = await resolveTopHash(reference, { ...settings, source })
      revisions.push({ registry: formatRegistry(reference.registry), package: reference.name, topHash })
    }
    const mounted = folders.flatMap((folder, i) =>
      revisions[i] === undefined ? [] : { address: revisions[i], folder },
    )
    return { served: Served.named(revisions, allow.map(parseRegistry)), mounted }
  } finally {
    source.close()
  }
}

/** Throws INVALID_ARGUMENT where others than the user could ask for everything. */
export function refuseOpenDoor(served: Served, where: string): void {
  if (!served.isEverything) return
  throw new BobbinError(
    'INVALID_ARGUMENT',
    `others can ask at ${where}, and this loader reads everything that its user may read: name what others may have, with --serve PKG (a package) or --allow REGISTRY (a whole registry), each as often as needed, or in BOBBIN_SERVE or BOBBIN_ALLOW`,
  )
}
