import { pushSubset } from '../daemon/fetch/push/push-subset.js'
import { formatBytes } from '../daemon/model/index.js'
import { filterEntries, isWithin } from '../loader/batch/filter-entries.js'
import { Selector } from '../loader/plan/selection.js'
import { type PackageFlags, sourceConfigOf, withPackage } from './context.js'
import { placeOf, printRevision, type RevisionFlags, revisionOf, targetOf } from './push.js'

interface FilterFlags extends PackageFlags, RevisionFlags {
  readonly where: string
  readonly push: string
}

export async function filter(text: string, flags: FilterFlags): Promise<void> {
  // A slip of the pen is told before the package is fetched.
  new Selector({ select: ['**'], exclude: [], where: flags.where })
  await withPackage(text, flags, async (from, { settings, output, progress, signal }) => {
    const { index, name, topHash } = from
    const target = targetOf(flags.push, flags, settings)
    const place = placeOf(target)
    const filtered = await filterEntries(from, flags.where, {
      signal,
      onProgress: seen => progress.update('filter', seen, index.facts.entries),
    })
    const { firstError } = filtered
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
