import { join } from 'node:path'
import { formatBytes } from '../daemon/model/index.js'
import { formatManifestHash } from '../daemon/model/object-hash.js'
import { type Change, diffPackages, isSamePackageMetadata, ObjectsToFetch } from '../daemon/package/package-diff.js'
import { openMeant, type PackageFlags, withPackage } from './context.js'

const MARKS: Readonly<Record<Change['change'], string>> = { added: '+', removed: '-', changed: '~', metadata: 'm' }

/** One row a difference, and a last one with their numbers. */
export async function diff(from: string, to: string, flags: PackageFlags): Promise<void> {
  await withPackage(from, flags, async (before, context) => {
    const { settings, output, progress, signal } = context
    const { opened: after } = await openMeant(to, flags, context)
    progress.stop()
    const toFetch = new ObjectsToFetch(join(settings.cacheDir, 'tmp'))
    try {
      const counts = { added: 0, removed: 0, changed: 0, metadata: 0 }
      for await (const { change, entry } of diffPackages(before, after, signal)) {
        counts[change]++
        if (change === 'added' || change === 'changed') toFetch.add(entry)
        const { key, size } = entry
        const row = { change, key, size, hash: formatManifestHash(entry.hash), hashType: entry.hash.type }
        await output.row(row, `${MARKS[change]} ${formatBytes(size).padStart(10)}  ${key}`)
      }
      const packageMetadata = !isSamePackageMetadata(before.index, after.index)
      const bytesToFetch = toFetch.bytesBeside(before.index)
      if (output.isJson) await output.row({ change: 'total', ...counts, packageMetadata, bytesToFetch }, '')
      const { added, removed, changed, metadata } = counts
      output.note(
        `bobbin: ${added} added, ${removed} removed, ${changed} changed, ${metadata} with other metadata` +
          `${packageMetadata ? "; the package's own metadata differs" : ''}; ${formatBytes(bytesToFetch)} to fetch`,
      )
    } finally {
      toFetch.close()
      after.close()
    }
  })
}
