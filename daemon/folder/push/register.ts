/**
 * Leaves an installed revision in another registry as quilt3's `install` leaves it in the local one: the manifest as it
 * is, with the addresses of the registry that it comes from, and the latest pointer of its name.
 */
import type { Registry } from '../../model/index.js'
import type { OpenedPackage } from '../../package/package-cache.js'
import { publishRevision } from '../../registry/publish.js'
import { createSource } from '../../source/index.js'
import { Workers } from '../../work/workers.js'
import { createRegistryWriter } from '../../writer/index.js'
import { LocalFile } from './local-file.js'
import type { RevisionOptions } from './push-revision.js'

export async function registerRevision(
  { name, topHash, manifestPath }: OpenedPackage,
  registry: Registry,
  { sourceConfig, cacheDir, signal }: Pick<RevisionOptions, 'sourceConfig' | 'cacheDir' | 'signal'>,
): Promise<void> {
  const source = createSource(sourceConfig)
  const workers = new Workers(sourceConfig)
  const writer = createRegistryWriter(registry, { ...sourceConfig, cacheDir })
  try {
    const file = await LocalFile.open(manifestPath, workers)
    try {
      // What is latest here is what was installed last.
      await publishRevision(source, writer, { registry, name, isForced: true }, { topHash, file }, { signal })
    } finally {
      await file.close()
    }
  } finally {
    await writer.close()
    await workers.close()
    source.close()
  }
}
