/**
 * The `Source` that the rest of Bobbin reads from: `file://` and `s3://` behind one door.
 *
 * A config can be cloned into a worker, which builds a source of its own; sources share nothing.
 * The AWS SDK is loaded on the first S3 request, never before: it costs a tenth of a second, and
 * most commands on a cached package need no S3 at all.
 */
import { BobbinError, type PhysicalKey, type Source } from '../model/index.js'
import { loadSdk } from './client.js'
import { FileSource } from './file.js'
import { offlineSource } from './offline.js'
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
    switch (key.kind) {
      case 'file':
        return file
      case 's3':
        return s3
      default:
        // A kind that a newer version wrote somewhere is not S3.
        throw new BobbinError(
          'INTERNAL',
          `no source reads ${JSON.stringify((key satisfies never as PhysicalKey).kind)}`,
        )
    }
  }

  const both: Source = {
    async read(key, options) {
      return await sourceOf(key).read(key, options)
    },
    async *list(folder, options) {
      yield* sourceOf(folder).list(folder, options)
    },
  }
  return {
    ...(config.offline ? offlineSource(both) : both),
    /** Drops idle connections. Readings that are under way break. */
    close() {
      s3.close()
    },
  }
}
