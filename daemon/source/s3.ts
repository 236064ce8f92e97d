/**
 * The `Source` of `s3://` addresses, on the AWS SDK.
 *
 * A reading is a GET whose body may break. It is then continued by a ranged GET from the byte
 * reached, on condition that the object is still the same (its ETag), so the consumer sees one
 * unbroken stream or an error. The moving parts: `access.ts` finds the region and the identity,
 * `direct-get.ts` sends the GET, `retry.ts` tries again when `failure-class.ts` says so, `progress.ts` holds the clock,
 * `errors.ts` has the words.
 */
import type { Readable } from 'node:stream'
import type { ListObjectsV2CommandOutput } from '@aws-sdk/client-s3'
import {
  BobbinError,
  type ByteRange,
  formatPhysicalKey,
  type ListedKey,
  type PhysicalKey,
  type Reading,
  type S3Key,
  type Source,
  throwIfAborted,
} from '../model/index.js'
import { S3Access } from './access.js'
import { loadSdk } from './client.js'
import { DirectGets, type ObjectAnswer } from './direct-get.js'
import { s3Error } from './errors.js'
import { httpStatus, SilenceError } from './failure-class.js'
import { Progress } from './progress.js'
import { Backoff, withRetries } from './retry.js'
import { WaitNotice } from './waiting.js'

/** A server without ranges starts from the beginning each time, so a large object over a bad link would never end. */
const RESTARTS_MAX = 5
/** A body that breaks again before so many bytes have come is continued after a wait. */
const RESUME_CREDIT_BYTES = 8 * 2 ** 20

/** One answer: a body that delivers the bytes [start, end) of the object. */
interface OpenBody {
  readonly stream: Readable
  readonly start: number
  /** `undefined`: until the stream ends, the server did not say where. */
  readonly end: number | undefined
  readonly objectBytes: number | undefined
  /** A range was asked for, and this is not it. */
  readonly isWhole: boolean
  /** Bytes that were asked for; the server may send more. */
  readonly lengthMax: number
  readonly etag: string | undefined
  readonly lastModified: Date | undefined
}

export class S3Source implements Source {
  readonly #access: S3Access
  readonly #gets = new DirectGets()

  constructor(private readonly ioTimeoutMs: number) {
    this.#access = new S3Access(ioTimeoutMs)
  }

  async read(
    key: PhysicalKey,
    options: { readonly range?: ByteRange; readonly signal?: AbortSignal } = {},
  ): Promise<Reading> {
    const object = asS3Key(key)
    const { range, signal } = options
    throwIfAborted(signal)
    if (object.key === '') throw new BobbinError('OBJECT_GONE', `not an object: ${formatPhysicalKey(object)}`)
    if (range?.length === 0) return { chunks: emptyBody(), objectBytes: undefined, lastModified: undefined }
    const progress = new Progress(this.ioTimeoutMs)
    let body: OpenBody
    try {
      body = await this.#open(object, range, undefined, progress, signal)
    } catch (error) {
      // The range begins at or after the end: no bytes, which is not an error for us.
      if (range !== undefined && error instanceof BobbinError && httpStatus(error.cause) === 416) {
        return { chunks: emptyBody(), objectBytes: undefined, lastModified: undefined }
      }
      throw error
    }
    return {
      chunks: this.#chunks(object, body, progress, signal),
      objectBytes: body.objectBytes,
      lastModified: body.lastModified,
      isWhole: body.isWhole,
    }
  }

  async #open(
    object: S3Key,
    range: ByteRange | undefined,
    ifMatch: string | undefined,
    progress: Progress,
    signal: AbortSignal | undefined,
  ): Promise<OpenBody> {
    const what = formatPhysicalKey(object)
    const input = {
      Bucket: object.bucket,
      Key: object.key,
      ...(object.versionId === undefined ? {} : { VersionId: object.versionId }),
      ...(range === undefined ? {} : { Range: `bytes=${range.start}-${range.start + range.length - 1}` }),
      ...(ifMatch === undefined ? {} : { IfMatch: ifMatch }),
    }
    try {
      const output = await withRetries(what, progress, signal, attemptSignal =>
        this.#access.send(
          {
            operation: 'GetObject',
            bucket: object.bucket,
            what,
            send: async (client, abortSignal) => {
              const output = await this.#gets.send(client, input, abortSignal)
              // Nobody waits for an answer after the time-out, so nobody else would close it.
              if (abortSignal.aborted) streamOf(output)?.destroy()
              return output
            },
          },
          attemptSignal,
        ),
      )
      return openBody(output, range, what)
    } catch (error) {
      throw s3Error(error, what, false)
    }
  }

  async *#continueBodies(
    object: S3Key,
    first: OpenBody,
    progress: Progress,
    signal: AbortSignal | undefined,
    onBody: (body: OpenBody) => void,
  ): AsyncGenerator<Uint8Array> {
    let body = first
    let at = first.start
    const backoff = new Backoff(progress)
    let resumedAt = at
    let restartsLeft = RESTARTS_MAX
    for (;;) {
      let failure: unknown
      try {
        // Of a body that starts at the beginning again.
        let known = at - body.start
        for await (const chunk of watch(body.stream, progress, formatPhysicalKey(object))) {
          const fresh = chunk.subarray(Math.min(known, chunk.length), known + first.start + first.lengthMax - at)
          known = Math.max(0, known - chunk.length)
          at += fresh.length
          const cameAt = performance.now()
          if (fresh.length > 0) yield fresh
          progress.took(chunk.length, performance.now() - cameAt)
          if (at - first.start >= first.lengthMax) return
        }
        if (first.end === undefined || at === first.end) return
        failure = new Error(`the body ended ${first.end - at} bytes early`)
      } catch (error) {
        failure = error
      }
      throwIfAborted(signal)
      if (first.end !== undefined && at >= first.end) return
      const canResume = first.etag !== undefined && first.end !== undefined
      if (at - resumedAt >= RESUME_CREDIT_BYTES) backoff.reset()
      resumedAt = at
      if (!canResume || !(await backoff.wait(failure, signal))) {
        const reason = failure instanceof Error ? failure.message : String(failure)
        throw new BobbinError(
          'UPSTREAM_UNAVAILABLE',
          `the body of ${formatPhysicalKey(object)} broke at byte ${at}: ${reason}`,
          { cause: failure },
        )
      }
      body = await this.#open(object, { start: at, length: first.end! - at }, first.etag, progress, signal)
      onBody(body)
      if (!body.isWhole) continue
      const isAnother = body.etag !== undefined && body.etag !== first.etag
      if (isAnother || restartsLeft-- === 0) {
        const reason = isAnother
          ? 'it was changed while it was read'
          : `it broke ${RESTARTS_MAX + 1} times, and the server does not serve byte ranges`
        throw new BobbinError('UPSTREAM_UNAVAILABLE', `${reason}: ${formatPhysicalKey(object)}`, { cause: failure })
      }
    }
  }

  /** The bytes of all bodies; closes the one that is open when the consumer, the caller or time ends it. */
  #chunks(
    object: S3Key,
    first: OpenBody,
    progress: Progress,
    signal: AbortSignal | undefined,
  ): AsyncIterable<Uint8Array> {
    let current = first.stream
    const stop = () => current.destroy(new BobbinError('INTERRUPTED', 'interrupted'))
    // A stream that is destroyed before anyone reads it must not raise an unhandled error.
    current.on('error', () => {})
    signal?.addEventListener('abort', stop, { once: true })
    const bodies = this.#continueBodies(object, first, progress, signal, body => {
      current = body.stream
      current.on('error', () => {})
    })
    return (async function* () {
      try {
        progress.touch()
        yield* bodies
      } finally {
        signal?.removeEventListener('abort', stop)
        current.destroy()
      }
    })()
  }

  async *list(
    folder: PhysicalKey,
    options: { readonly namePrefix?: string; readonly signal?: AbortSignal } = {},
  ): AsyncGenerator<ListedKey> {
    const { bucket, key } = asS3Key(folder)
    const folderPrefix = key === '' || key.endsWith('/') ? key : `${key}/`
    const what = formatPhysicalKey({ kind: 's3', bucket, key: folderPrefix })
    const { ListObjectsV2Command } = await loadSdk()
    let continuation: string | undefined
    do {
      const input = {
        Bucket: bucket,
        Prefix: folderPrefix + (options.namePrefix ?? ''),
        Delimiter: '/',
        // XML has no way to write some of the characters that a key may have.
        EncodingType: 'url' as const,
        ...(continuation === undefined ? {} : { ContinuationToken: continuation }),
      }
      let page: ListObjectsV2CommandOutput
      try {
        page = await withRetries(what, new Progress(this.ioTimeoutMs), options.signal, attemptSignal =>
          this.#access.send(
            {
              operation: 'ListBucket',
              bucket,
              what,
              send: (client, abortSignal) => client.send(new ListObjectsV2Command(input), { abortSignal }),
            },
            attemptSignal,
          ),
        )
      } catch (error) {
        throw s3Error(error, what, true)
      }
      for (const listed of keysOfPage(page, folderPrefix)) {
        throwIfAborted(options.signal)
        yield listed
      }
      continuation = page.IsTruncated ? page.NextContinuationToken : undefined
    } while (continuation !== undefined)
  }

  close(): void {
    this.#access.close()
  }
}

function asS3Key(key: PhysicalKey): S3Key {
  if (key.kind === 's3') return key
  throw new BobbinError('INTERNAL', `not in S3: ${formatPhysicalKey(key)}`)
}

async function* emptyBody(): AsyncGenerator<Uint8Array> {}

function streamOf(output: ObjectAnswer): Readable | undefined {
  return output.Body as Readable | undefined
}

function openBody(output: ObjectAnswer, range: ByteRange | undefined, what: string): OpenBody {
  const stream = streamOf(output)
  if (stream === undefined) throw new BobbinError('UPSTREAM_UNAVAILABLE', `an answer without a body: ${what}`)
  const { ETag: etag, LastModified: lastModified, ContentLength: length } = output
  const common = { stream, etag, lastModified, isWhole: false, lengthMax: range?.length ?? Infinity }
  if (output.ContentRange === undefined) {
    const body = { ...common, start: 0, end: length, objectBytes: length }
    if (range === undefined) return body
    // The whole object begins with what begins it.
    if (range.start === 0) return { ...body, end: length === undefined ? undefined : Math.min(length, range.length) }
    return { ...body, isWhole: true, lengthMax: Infinity }
  }
  const [, from, to, total] = /^bytes (\d+)-(\d+)\/(\d+|\*)$/.exec(output.ContentRange) ?? []
  if (range !== undefined && Number(from) === range.start) {
    const objectBytes = total === '*' ? undefined : Number(total)
    return { ...common, start: range.start, end: Number(to) + 1, objectBytes }
  }
  stream.destroy()
  throw new BobbinError('UPSTREAM_UNAVAILABLE', `the server sends another range than was asked for: ${what}`)
}

/** The stream's chunks; destroys it when the next one takes too long, and when the consumer stops. */
async function* watch(stream: Readable, progress: Progress, what: string): AsyncGenerator<Uint8Array> {
  const iterator = stream[Symbol.asyncIterator]()
  try {
    for (;;) {
      const timer = setTimeout(
        () => stream.destroy(new SilenceError('no bytes came, or too few')),
        progress.connectionMs(),
      )
      const notice = new WaitNotice(what, progress)
      let step: IteratorResult<Uint8Array>
      try {
        step = await iterator.next()
      } finally {
        clearTimeout(timer)
        notice.end()
      }
      if (step.done) return
      yield step.value
    }
  } finally {
    stream.destroy()
  }
}

/** Folders and objects of one page in one order; the server sends them as two lists. */
function keysOfPage(page: ListObjectsV2CommandOutput, folderPrefix: string): ListedKey[] {
  const decode = page.EncodingType === 'url' ? decodeListed : (text: string) => text
  const keys: { sortKey: Buffer; listed: ListedKey }[] = []
  const add = (encoded: string | undefined, isFolder: boolean, lastModified: Date | undefined) => {
    if (encoded === undefined) return
    const key = decode(encoded)
    const name = key.slice(folderPrefix.length, isFolder ? -1 : undefined)
    // An object at the folder's own key is how consoles make empty folders.
    if (!key.startsWith(folderPrefix) || name === '') return
    keys.push({ sortKey: Buffer.from(key), listed: { name, isFolder, lastModified } })
  }
  for (const { Prefix } of page.CommonPrefixes ?? []) add(Prefix, true, undefined)
  for (const { Key, LastModified } of page.Contents ?? []) add(Key, false, LastModified)
  keys.sort((a, b) => Buffer.compare(a.sortKey, b.sortKey))
  return keys.map(({ listed }) => listed)
}

/** As in a form: `+` is a space. */
function decodeListed(text: string): string {
  const spaced = text.replaceAll('+', ' ')
  try {
    return decodeURIComponent(spaced)
  } catch {
    return spaced
  }
}
