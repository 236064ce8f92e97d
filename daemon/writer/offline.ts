/** A `RegistryWriter` that asks no server: a folder is written, and what would need S3 fails at once. */
import { BobbinError, type Registry, type RegistryWriter } from '../model/index.js'
import { formatRegistry } from '../registry/reference.js'

/** Throws UPSTREAM_UNAVAILABLE for a registry in S3, of which nothing can be written offline. */
export function offlineWriter(registry: Registry, writer: RegistryWriter): RegistryWriter {
  if (registry.kind === 's3') throw isOffline(registry)
  return {
    async find(key, signal) {
      if (key.kind === 's3') throw isOffline(registry)
      return await writer.find(key, signal)
    },
    store: (file, place, options) => writer.store(file, place, options),
    copy: (from, object, place, options) => writer.copy(from, object, place, options),
    look() {
      throw isOffline(registry)
    },
    list() {
      throw isOffline(registry)
    },
    remove: (key, signal) => writer.remove(key, signal),
    put: (key, file, options) => writer.put(key, file, options),
    replace: (key, text, expected, signal) => writer.replace(key, text, expected, signal),
    close: () => writer.close(),
  }
}

function isOffline(registry: Registry): BobbinError {
  return new BobbinError('UPSTREAM_UNAVAILABLE', `offline: nothing can be pushed to ${formatRegistry(registry)}`)
}
