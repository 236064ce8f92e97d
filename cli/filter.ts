import { pushSubset } from '../daemon/folder/push/push-subset.js'
import { formatBytes } from '../daemon/model/index.js'
import type { OpenedPackage } from '../daemon/package/package-cache.js'
import { type FilteredEntries, filterEntries, isWithin } from '../loader/batch/filter-entries.js'
import { Selector } from '../loader/plan/selection.js'
import { type Context, type PackageFlags, sourceConfigOf, withPackage } from './context.js'
import { printRow } from './entry-rows.js'
import { placeOf, printRevision, type RevisionFlags, revisionOf, targetOf } from './revisions.js'

interface FilterFlags extends PackageFlags, RevisionFlags {
  readonly where: string
  readonly push?: string
}

export async function filter(text: string, flags: FilterFlags): Promise<void> {
  // A slip of the pen is told before the package is fetched.
  new Selector({ select: ['**'], exclude: [], where: flags.where })
  const { push } = flags
  await withPackage(text, flags, async (from, context) => {
    const { settings, output, progress, signal } = context
    const { index, name, topHash } = from
    const target = push === undefined ? undefined : targetOf(push, flags, settings)
    // Asked before the push, which may make a registry of a folder.
    const place = target && placeOf(target)
    const filtered = await filterEntries(from, flags.where, {
      signal,
      onProgress: seen => progress.update('filter', seen, index.facts.entries),
    })
    const { firstError } = filtered
    if (target === undefined) return list(from, filtered, flags, context)
    const pushed = await pushSubset({
      ...target,
      ...revisionOf(flags),
      from,
      isWanted: ({ ino }) => isWithin(filtered, ino),
      whyNone: () => firstError && `the first entry that failed, ${firstError}; fields are key, size, hash, meta`,
      sourceConfig: sourceConfigOf(settings),
      cacheDir: settings.cacheDir,
      onLack: what => output.note(`bobbin: ${what}`),
      signal,
    })
    progress.stop()
    const { entries, bytes, isNew } = pushed
    output.note(
      `bobbin: ${entries} of ${index.facts.entries} entries of ${name}@${topHash.slice(0, 12)}, ${formatBytes(bytes)}` +
        (isNew ? `; written to ${place}, no object was copied` : `: this is the latest revision already, ${place}`),
    )
    await printRevision(pushed, output)
  })
}

async function list(from: OpenedPackage, filtered: FilteredEntries, flags: FilterFlags, context: Context) {
  context.progress.stop()
  let isEmpty = true
  for (const { node, key } of from.index.walk()) {
    if (node.kind === 'directory' || !isWithin(filtered, node.ino)) continue
    isEmpty = false
    await printRow(from, node, key, flags, context)
  }
  const { firstError } = filtered
  if (!isEmpty) return
  const why = firstError && `: the first entry that failed, ${firstError}; fields are key, size, hash, meta`
  context.output.note(`bobbin: no entry fits${why ?? ''}`)
}
