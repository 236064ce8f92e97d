import { pushSubset } from '../daemon/fetch/push/push-subset.js'
import { formatBytes } from '../daemon/model/index.js'
import { Selector } from '../loader/plan/selection.js'
import { type PackageFlags, sourceConfigOf, withPackage } from './context.js'
import { placeOf, printRevision, type RevisionFlags, revisionOf, targetOf } from './push.js'

interface FilterFlags extends PackageFlags, RevisionFlags {
  readonly where: string
  readonly push: string
}

export async function filter(text: string, flags: FilterFlags): Promise<void> {
  const selector = new Selector({ select: ['**'], exclude: [], where: flags.where })
  await withPackage(text, flags, async (from, { settings, output, progress, signal }) => {
    const { index, name, topHash } = from
    const target = targetOf(flags.push, flags, settings)
    const place = placeOf(target)
    const pushed = await pushSubset({
      ...target,
      ...revisionOf(flags),
      from,
      isWanted: ({ ino, size }, key) =>
        selector.matches({ key, size, hash: index.object(ino).hash, meta: () => index.metadata(ino) }),
      whyNone: () => {
        const { firstError } = selector
        return firstError && `the first entry that failed, ${firstError}; fields are key, size, hash, meta`
      },
      sourceConfig: sourceConfigOf(settings),
      cacheDir: settings.cacheDir,
      signal,
      onProgress: seen => progress.update('filter', seen, index.facts.entries),
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
