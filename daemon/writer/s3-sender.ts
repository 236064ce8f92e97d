/**
 * Sends the writer's requests: in the bucket's region, signed, and again where that may help. There is one clock for all
 * tries of a request.
 */
import type { S3Client } from '@aws-sdk/client-s3'
import { formatPhysicalKey, type S3Key } from '../model/index.js'
import { S3Access } from '../source/access.js'
import { Progress } from '../source/progress.js'
import { withRetries } from '../source/retry.js'

export type Operation = 'GetObject' | 'PutObject' | 'ListBucket' | 'DeleteObject'

export class S3Sender {
  readonly #access: S3Access
  readonly #idleMs: number

  constructor(private readonly ioTimeoutMs: number) {
    // As `Progress` has it: a connection may be silent for half of the time-out, so that there is time for another.
    this.#idleMs = ioTimeoutMs / 2
    this.#access = new S3Access(ioTimeoutMs, { idleMs: this.#idleMs })
  }

  /** With retries. Throws what the last try threw. */
  async send<Output>(
    operation: Operation,
    key: S3Key,
    signal: AbortSignal | undefined,
    send: (client: S3Client, signal: AbortSignal) => Promise<Output>,
  ): Promise<Output> {
    const what = formatPhysicalKey(key)
    const progress = new UploadProgress(this.ioTimeoutMs)
    const request = { operation, bucket: key.bucket, what, send }
    return await withRetries(what, progress, signal, async attemptSignal => {
      const startedAt = performance.now()
      try {
        return await this.#access.send(request, attemptSignal)
      } catch (error) {
        // A connection is given up when it was silent for `idleMs`; one that lived longer has moved bytes.
        if (performance.now() - startedAt > 1.5 * this.#idleMs) progress.touch()
        throw error
      }
    })
  }

  /** For the SDK's uploader, which wants one. */
  client(bucket: string): Promise<S3Client> {
    return this.#access.client(bucket)
  }

  close(): void {
    this.#access.close()
  }
}

/** The clock of one upload: how long it takes depends on the link, so it is the connection's silence that ends a try. */
class UploadProgress extends Progress {
  override connectionMs(): number {
    // The longest that a timer can be.
    return 2 ** 31 - 1
  }
}
