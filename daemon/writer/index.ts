/** The `RegistryWriter` that revisions are pushed with: one registry, a folder or a bucket. */
import { BobbinError, type Registry, type RegistryWriter } from '../model/index.js'
import { formatRegistry } from '../registry/reference.js'
import type { SourceConfig } from '../source/index.js'
import { FolderWriter, findFile } from './folder.js'
import { S3Writer } from './s3.js'

export interface WriterConfig extends SourceConfig {
  /** Where is noted what a killed process would leave behind in a bucket. */
  readonly cacheDir: string
  /** What the server turned out to lack, in words, once per lack (abilities.ts). */
  readonly onLack?: ((what: string) => void) | undefined
}

/** Whoever made it closes it. */
export function createRegistryWriter(registry: Registry, config: WriterConfig): RegistryWriter {
  // A folder may have schemas in a bucket, so both are there.
  const s3 = new S3Writer(config)
  const own = registry.kind === 'file' ? new FolderWriter(registry.path, config.ioTimeoutMs) : s3
  const requireOnline = (isS3: boolean) => {
    if (config.offline && isS3) {
      throw new BobbinError('UPSTREAM_UNAVAILABLE', `offline: nothing can be pushed to ${formatRegistry(registry)}`)
    }
  }
  requireOnline(own === s3)
  return {
    async find(key, signal) {
      requireOnline(key.kind === 's3')
      return key.kind === 'file' ? await findFile(key) : await s3.find(key, signal)
    },
    store: (file, place, options) => own.store(file, place, options),
    async copy(from, object, place, options) {
      return own === s3 ? await s3.copy(from, object, place, options) : undefined
    },
    look(key, signal) {
      requireOnline(true)
      return s3.look(key, signal)
    },
    list(bucket, prefix, signal) {
      requireOnline(true)
      return s3.list(bucket, prefix, signal)
    },
    remove: (key, signal) => own.remove(key, signal),
    put: (key, file, options) => own.put(key, file, options),
    replace: (key, text, expected, signal) => own.replace(key, text, expected, signal),
    async close() {
      await own.close()
      await s3.close()
    },
  }
}
