/** The `RegistryWriter` that revisions are pushed with: one registry, a folder or a bucket. */
import type { Registry, RegistryWriter } from '../model/index.js'
import type { WriterConfig } from './config.js'
import { FolderWriter, findFile } from './folder.js'
import { offlineWriter } from './offline.js'
import { S3Writer } from './s3.js'

export type { WriterConfig }

/** Whoever made it closes it. */
export function createRegistryWriter(registry: Registry, config: WriterConfig): RegistryWriter {
  const writer = registry.kind === 'file' ? folderAndS3(registry.path, config) : new S3Writer(config)
  return config.offline ? offlineWriter(registry, writer) : writer
}

/** A folder may have schemas in a bucket, and entries may be looked up there. */
function folderAndS3(path: string, config: WriterConfig): RegistryWriter {
  const folder = new FolderWriter(path, config.ioTimeoutMs)
  const s3 = new S3Writer(config)
  return {
    find: (key, signal) => (key.kind === 'file' ? findFile(key) : s3.find(key, signal)),
    store: (file, place, options) => folder.store(file, place, options),
    async copy() {
      return undefined
    },
    look: (key, signal) => s3.look(key, signal),
    list: (bucket, prefix, signal) => s3.list(bucket, prefix, signal),
    remove: key => folder.remove(key),
    put: (key, file, options) => folder.put(key, file, options),
    replace: (key, text, expected, signal) => folder.replace(key, text, expected, signal),
    async close() {
      await folder.close()
      await s3.close()
    },
  }
}
