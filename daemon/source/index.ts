/**
 * The `Source` that the rest of Bobbin reads from: `file://` and `s3://` behind one door.
 *
 * A config can be cloned into a worker, which builds a source of its own; sources share nothing.
 * The AWS SDK is loaded on the first S3 request, never before: it costs a tenth of a second, and
 * most commands on a cached package need no S3 at all.
 */
import { BobbinError, formatPhysicalKey, type PhysicalKey, type Source } from '../model/index.js'
import { loadSdk } from './client.js'
import { FileSource } from './file.js'
import { S3Source } from './s3.js'

export interface SourceConfig {
  /** Without one byte for this long, a request fails. Milliseconds. */
  readonly ioTimeoutMs: number
  /** Ask S3 nothing: every S3 call fails at once. Folders are still read. Default: false. */
  readonly offline?: boolean
}

/** Loads the SDK now, which takes a thread that has just started half a second. */
export async function prepareSource(): Promise<void> {
  await loadSdk()
}

export function createSource(config: SourceConfig): Source & { close(): void } {
  const file = new FileSource(config.ioTimeoutMs)
  const s3 = new S3Source(config.ioTimeoutMs)

  function sourceOf(key: PhysicalKey): Source {
    if (key.kind === 'file') return file
    if (config.offline) {
      throw new BobbinError('UPSTREAM_UNAVAILABLE', `offline: ${formatPhysicalKey(key)} would have to be fetched`)
    }
    return s3
  }

  return {
    async read(key, options) {
      return await sourceOf(key).read(key, options)
    },
    async *list(folder, options) {
      yield* sourceOf(folder).list(folder, options)
    },
    /** Drops idle connections. Readings that are under way break. */
    close() {
      s3.close()
    },
  }
}
