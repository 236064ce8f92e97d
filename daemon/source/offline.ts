/** A `Source` that asks no server: every read from S3 fails at once. Folders are still read. */
import { BobbinError, formatPhysicalKey, type PhysicalKey, type Source } from '../model/index.js'

export function offlineSource(source: Source): Source {
  return {
    async read(key, options) {
      requireFile(key)
      return await source.read(key, options)
    },
    async *list(folder, options) {
      requireFile(folder)
      yield* source.list(folder, options)
    },
  }
}

function requireFile(key: PhysicalKey): void {
  if (key.kind !== 's3') return
  throw new BobbinError('UPSTREAM_UNAVAILABLE', `offline: ${formatPhysicalKey(key)} would have to be fetched`)
}
