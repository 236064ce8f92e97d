/** `copy`: a package in another registry, with its objects and the same top hash; or a part of it. */
import { copyPackage } from '../daemon/folder/push/push-copy.js'
import type { PushProgress } from '../daemon/folder/push/transfers.js'
import { BobbinError } from '../daemon/model/index.js'
import { formatRegistry, parseRegistry } from '../daemon/registry/reference.js'
import { type FilteredEntries, filterEntries, isWithin } from '../loader/batch/filter-entries.js'
import { Selector } from '../loader/plan/selection.js'
import { type PackageFlags, sourceConfigOf, withPackage } from './context.js'
import { placeOf, printRevision, type RevisionFlags, revisionOf, summaryOf, targetOf } from './revisions.js'

interface CopyFlags extends PackageFlags, RevisionFlags {
  readonly where?: string
  /** Default: as it is. */
  readonly name?: string
}

export async function copy(text: string, to: string, flags: CopyFlags): Promise<void> {
  const { where } = flags
  // A slip of the pen is told before the package is fetched.
  if (where !== undefined) new Selector({ select: ['**'], exclude: [], where })
  else if (flags.message !== undefined || flags.meta !== undefined) {
    throw new BobbinError(
      'INVALID_ARGUMENT',
      'a whole package keeps its message and its metadata: -m and --meta go with --where',
    )
  }
  await withPackage(text, flags, async (from, { settings, output, progress, signal }) => {
    const target = targetOf(`${formatRegistry(parseRegistry(to))}/${flags.name ?? from.name}`, {}, settings)
    const place = placeOf(target)
    const { message, ...revision } = revisionOf(flags)
    const filtered = where === undefined ? undefined : await filterEntries(from, where, { signal })
    const pushed = await copyPackage({
      ...target,
      ...revision,
      from,
      part: filtered && { message, ...partOf(filtered) },
      sourceConfig: sourceConfigOf(settings),
      cacheDir: settings.cacheDir,
      onLack: (what: string) => output.note(`bobbin: ${what}`),
      signal,
      onProgress: ({ bytes, bytesTotal }: PushProgress) => progress.update('copy', bytes, bytesTotal),
    })
    progress.stop()
    output.note(`bobbin: ${summaryOf(pushed, place)}`)
    await printRevision(pushed, output)
  })
}

function partOf(filtered: FilteredEntries) {
  const { firstError } = filtered
  return {
    isWanted: ({ ino }: { readonly ino: number }) => isWithin(filtered, ino),
    whyNone: () => firstError && `the first entry that failed, ${firstError}; fields are key, size, hash, meta`,
  }
}
