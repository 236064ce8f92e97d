/**
 * The `RegistryWriter` of buckets, on the AWS SDK.
 *
 * An object is looked for first (HEAD, with checksums). What the server says of its SHA-256 is compared with ours, so
 * equal bytes are not uploaded again; that is also how a push goes on that was interrupted. From 8 MiB on an upload
 * has parts, cut as the manifest's hash cuts chunks; the server checks the SHA-256 of each. Where something new is
 * expected, the server is asked to write only if nothing is there (If-None-Match), so a race is noticed.
 *
 * A bucket without versions is treated as a folder is: what earlier revisions may point to stays.
 */
import { createHash } from 'node:crypto'
import { Readable } from 'node:stream'
import type { GetObjectCommandOutput, HeadObjectCommandOutput, S3Client } from '@aws-sdk/client-s3'
import pLimit from 'p-limit'
import {
  BobbinError,
  type FileToStore,
  formatPhysicalKey,
  hasCode,
  type ObjectPlace,
  type PhysicalKey,
  type RegistryWriter,
  type S3Key,
  type ServerObject,
  type StoredFile,
  type StoreFileOptions,
  throwIfAborted,
} from '../model/index.js'
import { chunkBytes, chunkCount, createObjectHasher } from '../model/object-hash.js'
import { S3Access } from '../source/access.js'
import { loadSdk } from '../source/client.js'
import { s3Error } from '../source/errors.js'
import { httpStatus, s3Code } from '../source/failure-class.js'
import { Progress } from '../source/progress.js'
import { withRetries } from '../source/retry.js'
import { Abilities, type Ability } from './abilities.js'
import type { WriterConfig } from './config.js'
import { S3Objects } from './s3-objects.js'
import { UnfinishedUploads } from './unfinished-uploads.js'

/** From here on an upload has parts. quilt3 does the same, and its readers know objects by it. */
const PARTS_FROM_BYTES = 8 * 2 ** 20
/** Large objects at the same time, */
const LARGE_AT_ONCE = 2
/** and parts of each: together they hold so many chunks in memory. */
const PARTS_AT_ONCE = 4
/** Somebody may write what we have just seen missing; not for ever. */
const TRIES_MAX = 5
/** A pointer is 64 bytes. */
const TEXT_BYTES_MAX = 1024

type Operation = 'GetObject' | 'PutObject' | 'ListBucket' | 'DeleteObject'

/** What lies at a key. */
interface Found {
  readonly size: number
  /** As the server says it: base64 of the SHA-256 of the bytes, or of that of the parts' and `-` and their number. */
  readonly sha256: string | undefined
  readonly versionId: string | undefined
}

export class S3Writer implements RegistryWriter {
  readonly #access: S3Access
  readonly #abilities: Abilities
  readonly #idleMs: number
  readonly #unfinished: UnfinishedUploads
  readonly #largeLimit = pLimit(LARGE_AT_ONCE)
  /** Whose left-over uploads were ended. */
  readonly #cleared = new Map<string, Promise<void>>()
  readonly #objects = new S3Objects(
    (operation, key, signal, send) => this.#send(operation, key, signal, send),
    (key, signal) => this.#head(key, signal),
  )

  constructor(private readonly config: WriterConfig) {
    // As `Progress` has it: a connection may be silent for half of the time-out, so that there is time for another.
    this.#idleMs = config.ioTimeoutMs / 2
    this.#access = new S3Access(config.ioTimeoutMs, { idleMs: this.#idleMs })
    this.#unfinished = new UnfinishedUploads(config.cacheDir)
    this.#abilities = new Abilities(config.onLack ?? (() => {}))
  }

  async find(key: PhysicalKey, signal?: AbortSignal): Promise<PhysicalKey | undefined> {
    const object = asS3Key(key)
    const found = await this.#head(object, signal)
    return found === undefined ? undefined : withVersion(object, found.versionId)
  }

  async store(file: FileToStore, place: ObjectPlace, options: StoreFileOptions = {}): Promise<StoredFile> {
    const stored = await this.#storeAt(asS3Key(place.preferred), file, options)
    if (stored !== undefined) return stored
    const other = asS3Key(place.byHash(await file.hash(options.signal)))
    const found = await this.#storeAt(other, file, options)
    if (found !== undefined) return found
    throw new BobbinError('OBJECT_CORRUPT', `${formatPhysicalKey(other)} is not what its name says: remove it`)
  }

  copy(...args: Parameters<RegistryWriter['copy']>): Promise<StoredFile | undefined> {
    return this.#objects.copy(...args)
  }

  look(key: S3Key, signal?: AbortSignal): Promise<ServerObject> {
    return this.#objects.look(key, signal)
  }

  list(bucket: string, prefix: string, signal?: AbortSignal) {
    return this.#objects.list(bucket, prefix, signal)
  }

  async remove(key: PhysicalKey, signal?: AbortSignal): Promise<void> {
    const object = asS3Key(key)
    const { DeleteObjectCommand } = await loadSdk()
    const input = { Bucket: object.bucket, Key: object.key }
    try {
      await this.#send('DeleteObject', object, signal, (client, abortSignal) =>
        client.send(new DeleteObjectCommand(input), { abortSignal }),
      )
    } catch (error) {
      if (httpStatus(error) !== 404) throw s3Error(error, formatPhysicalKey(object), false)
    }
  }

  /** `undefined`: other bytes lie there, and would be lost, unless `isForced`. */
  async #storeAt(
    key: S3Key,
    file: FileToStore,
    options: StoreFileOptions,
    { isForced = false } = {},
  ): Promise<StoredFile | undefined> {
    for (let tries = 1; ; tries++) {
      const found = await this.#findForReuse(key, options.signal)
      if (found !== undefined && found !== 'unknown') {
        if (await isSame(found, file, options.signal)) {
          options.onBytes?.(file.size)
          return storedObject(key, found.versionId, await file.hash(options.signal), true)
        }
        if (!isForced && (found.versionId === undefined || found.versionId === 'null')) {
          if (!(await this.#readsSame(key, found, file, options.signal))) return undefined
          options.onBytes?.(file.size)
          return storedObject(key, found.versionId, await file.hash(options.signal), true)
        }
      }
      try {
        return await this.#upload(key, file, { ...options, onlyIfAbsent: found === undefined && !isForced })
      } catch (error) {
        if (tries === TRIES_MAX || !hasMoved(error)) throw s3Error(error, formatPhysicalKey(key), false)
      }
    }
  }

  async put(key: PhysicalKey, file: FileToStore, options: StoreFileOptions = {}): Promise<void> {
    await this.#storeAt(asS3Key(key), file, options, { isForced: true })
  }

  async replace(key: PhysicalKey, text: string, expected: string | undefined, signal?: AbortSignal): Promise<boolean> {
    const object = asS3Key(key)
    const what = formatPhysicalKey(object)
    const { PutObjectCommand } = await loadSdk()
    for (let tries = 1; ; tries++) {
      const present = await this.#readText(object, signal)
      if (present?.text === text) return true
      if (present?.text !== expected) return false
      const condition = present === undefined ? { IfNoneMatch: '*' } : { IfMatch: present.etag }
      try {
        await this.#abilities.send(object.bucket, ['conditions'], has => {
          const body = { Bucket: object.bucket, Key: object.key, Body: Buffer.from(text) }
          const input = { ...body, ...(has('conditions') && condition) }
          return this.#send('PutObject', object, signal, (client, abortSignal) =>
            client.send(new PutObjectCommand(input), { abortSignal }),
          )
        })
        return true
      } catch (error) {
        if (tries === TRIES_MAX || !hasMoved(error)) throw s3Error(error, what, false)
      }
    }
  }

  async #readText(
    key: S3Key,
    signal: AbortSignal | undefined,
  ): Promise<{ readonly text: string; readonly etag: string | undefined } | undefined> {
    const { GetObjectCommand } = await loadSdk()
    try {
      return await this.#send('GetObject', key, signal, async (client, abortSignal) => {
        const answer: GetObjectCommandOutput = await client.send(
          new GetObjectCommand({ Bucket: key.bucket, Key: key.key }),
          { abortSignal },
        )
        if ((answer.ContentLength ?? 0) > TEXT_BYTES_MAX) return { text: 'a long text', etag: answer.ETag }
        return { text: ((await answer.Body?.transformToString()) ?? '').trim(), etag: answer.ETag }
      })
    } catch (error) {
      const told = s3Error(error, formatPhysicalKey(key), false)
      if (told.code === 'OBJECT_GONE') return undefined
      throw told
    }
  }

  /** Where the server does not say what lies there: reads it. */
  async #readsSame(key: S3Key, found: Found, file: FileToStore, signal: AbortSignal | undefined): Promise<boolean> {
    if (found.sha256 !== undefined || found.size !== file.size) return false
    const { GetObjectCommand } = await loadSdk()
    const input = { Bucket: key.bucket, Key: key.key }
    try {
      const hex = await this.#send('GetObject', key, signal, async (client, abortSignal) => {
        const { Body } = await client.send(new GetObjectCommand(input), { abortSignal })
        const hasher = await createObjectHasher('sha2-256-chunked', found.size)
        for await (const chunk of Body as Readable) hasher.update(chunk)
        return hasher.digest()
      })
      return hex === (await file.hash(signal))
    } catch (error) {
      const told = s3Error(error, formatPhysicalKey(key), false)
      // Gone meanwhile, or not ours to read.
      if (hasCode(told, 'OBJECT_GONE', 'ACCESS_DENIED')) return false
      throw told
    }
  }

  /** `unknown`: we may not look. */
  async #findForReuse(key: S3Key, signal: AbortSignal | undefined): Promise<Found | 'unknown' | undefined> {
    try {
      return await this.#head(key, signal)
    } catch (error) {
      // Who may write and not read or list: S3 says 403 of objects that are missing, too.
      if (hasCode(error, 'ACCESS_DENIED')) return 'unknown'
      throw error
    }
  }

  async #head(key: S3Key, signal: AbortSignal | undefined): Promise<Found | undefined> {
    const { HeadObjectCommand } = await loadSdk()
    const input = {
      Bucket: key.bucket,
      Key: key.key,
      ...(key.versionId !== undefined && { VersionId: key.versionId }),
    }
    try {
      const answer: HeadObjectCommandOutput = await this.#abilities.send(key.bucket, ['checksums'], has => {
        const command = new HeadObjectCommand({ ...input, ...(has('checksums') && { ChecksumMode: 'ENABLED' }) })
        return this.#send('GetObject', key, signal, (client, abortSignal) => client.send(command, { abortSignal }))
      })
      return { size: answer.ContentLength ?? 0, sha256: answer.ChecksumSHA256, versionId: answer.VersionId }
    } catch (error) {
      const told = s3Error(error, formatPhysicalKey(key), false)
      if (told.code === 'OBJECT_GONE') return undefined
      throw told
    }
  }

  /** Throws the SDK's errors as they came. */
  async #upload(
    key: S3Key,
    file: FileToStore,
    options: StoreFileOptions & { readonly onlyIfAbsent?: boolean },
  ): Promise<StoredFile> {
    const condition = { IfNoneMatch: '*' }
    const uses = [...(options.onlyIfAbsent ? (['conditions'] as const) : []), 'checksums' as const]
    const isConditional = (has: (ability: Ability) => boolean) => options.onlyIfAbsent === true && has('conditions')
    if (file.size >= PARTS_FROM_BYTES) {
      return await this.#largeLimit(() =>
        this.#abilities.send(key.bucket, uses, has => {
          const checksum = has('checksums') ? { ChecksumAlgorithm: 'SHA256' as const } : {}
          return this.#uploadInParts(key, file, { ...checksum, ...(isConditional(has) && condition) }, options)
        }),
      )
    }
    const chunks: Uint8Array[] = []
    for await (const chunk of file.read()) chunks.push(chunk)
    throwIfAborted(options.signal)
    const bytes = Buffer.concat(chunks)
    const hasher = await createObjectHasher('sha2-256-chunked', bytes.length)
    hasher.update(bytes)
    const digest = (name: 'sha256' | 'md5') => createHash(name).update(bytes).digest('base64')
    const { PutObjectCommand } = await loadSdk()
    const answer = await this.#abilities.send(key.bucket, uses, has => {
      const command = new PutObjectCommand({
        Bucket: key.bucket,
        Key: key.key,
        Body: bytes,
        ...(has('checksums') ? { ChecksumSHA256: digest('sha256') } : { ContentMD5: digest('md5') }),
        ...(isConditional(has) && condition),
      })
      return this.#send('PutObject', key, options.signal, (client, abortSignal) =>
        client.send(command, { abortSignal }),
      )
    })
    options.onBytes?.(bytes.length)
    return storedObject(key, answer.VersionId, hasher.digest(), false)
  }

  async #uploadInParts(
    key: S3Key,
    file: FileToStore,
    how: { readonly ChecksumAlgorithm?: 'SHA256'; readonly IfNoneMatch?: string },
    { signal, onBytes }: StoreFileOptions,
  ): Promise<StoredFile> {
    throwIfAborted(signal)
    await this.#clearLeftovers(key.bucket)
    const { Upload } = await import('@aws-sdk/lib-storage')
    const hasher = await createObjectHasher('sha2-256-chunked', file.size)
    const hashed = async function* () {
      for await (const chunk of file.read()) {
        throwIfAborted(signal)
        hasher.update(chunk)
        yield chunk
      }
    }
    const body = Readable.from(hashed(), { objectMode: false })
    const upload = new Upload({
      client: await this.#retryingClient(key, signal),
      params: {
        Bucket: key.bucket,
        Key: key.key,
        Body: body,
        ContentLength: file.size,
        ...how,
      },
      partSize: chunkBytes(file.size),
      queueSize: PARTS_AT_ONCE,
    })
    if (onBytes) upload.on('httpUploadProgress', ({ loaded }) => onBytes(loaded ?? 0))
    try {
      const answer = await upload.done()
      const hex = hasher.digest()
      // The server has checked each part by itself; this is about their order and their number.
      if (answer.ChecksumSHA256 !== undefined && !isOf(answer.ChecksumSHA256, file.size, hex)) {
        throw new BobbinError('OBJECT_CORRUPT', `the server has other bytes than were sent: ${formatPhysicalKey(key)}`)
      }
      return storedObject(key, answer.VersionId, hex, false)
    } finally {
      body.destroy()
    }
  }

  /**
   * A client for the SDK's uploader, whose every request is retried by us (and by nobody else), in the bucket's region. When the
   * caller gives up, parts fail at once, and the uploader aborts the upload, which still has its time.
   */
  async #retryingClient(key: S3Key, signal: AbortSignal | undefined): Promise<S3Client> {
    const sdk = await loadSdk()
    let removeNote = async () => {}
    const send = async (command: Parameters<S3Client['send']>[0]) => {
      const isAbort = command instanceof sdk.AbortMultipartUploadCommand
      const answer = await this.#send('PutObject', key, isAbort ? undefined : signal, (client, abortSignal) =>
        client.send(command, { abortSignal }),
      )
      if (command instanceof sdk.CreateMultipartUploadCommand && 'UploadId' in answer) {
        const uploadId = answer.UploadId ?? ''
        removeNote = await this.#unfinished.note({ bucket: key.bucket, key: key.key, uploadId })
      }
      if (isAbort || command instanceof sdk.CompleteMultipartUploadCommand) await removeNote()
      return answer
    }
    const client = await this.#access.client(key.bucket)
    return Object.create(client, { send: { value: send } }) as S3Client
  }

  /** Once a bucket. */
  #clearLeftovers(bucket: string): Promise<void> {
    let cleared = this.#cleared.get(bucket)
    if (cleared === undefined) {
      cleared = this.#unfinished.endOf(bucket, async ({ key, uploadId }) => {
        const object: S3Key = { kind: 's3', bucket, key }
        const { AbortMultipartUploadCommand } = await loadSdk()
        const input = { Bucket: bucket, Key: key, UploadId: uploadId }
        await this.#send('PutObject', object, undefined, (client, abortSignal) =>
          client.send(new AbortMultipartUploadCommand(input), { abortSignal }),
        ).catch(error => {
          if (httpStatus(error) !== 404) throw s3Error(error, formatPhysicalKey(object), false)
        })
      })
      this.#cleared.set(bucket, cleared)
    }
    return cleared
  }

  /** With retries. Throws what the last try threw. */
  async #send<Output>(
    operation: Operation,
    key: S3Key,
    signal: AbortSignal | undefined,
    send: (client: S3Client, signal: AbortSignal) => Promise<Output>,
  ): Promise<Output> {
    const what = formatPhysicalKey(key)
    const progress = new UploadProgress(this.config.ioTimeoutMs)
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

  async close(): Promise<void> {
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

function asS3Key(key: PhysicalKey): S3Key {
  if (key.kind === 's3') return key
  throw new BobbinError('INTERNAL', `not in S3: ${formatPhysicalKey(key)}`)
}

function withVersion({ bucket, key }: S3Key, versionId: string | undefined): S3Key {
  return { kind: 's3', bucket, key, ...(versionId !== undefined && { versionId }) }
}

function storedObject(key: S3Key, versionId: string | undefined, hex: string, isReused: boolean): StoredFile {
  return { physicalKey: withVersion(key, versionId), hash: { type: 'sha2-256-chunked', hex }, isReused }
}

async function isSame(found: Found, file: FileToStore, signal: AbortSignal | undefined): Promise<boolean> {
  if (found.size !== file.size) return false
  if (file.size === 0) return true
  return found.sha256 !== undefined && isOf(found.sha256, file.size, await file.hash(signal))
}

/** Does the server's SHA-256 of an object prove that it has this `sha2-256-chunked` (hex)? */
function isOf(sha256: string, size: number, hex: string): boolean {
  const [base64 = '', parts] = sha256.split('-')
  const digest = Buffer.from(base64, 'base64')
  if (parts !== undefined) return Number(parts) === chunkCount(size) && digest.toString('hex') === hex
  return chunkCount(size) === 1 && createHash('sha256').update(digest).digest('hex') === hex
}

/** Somebody has written there since we looked, or an upload was completed by a try whose answer was lost: look again. */
function hasMoved(error: unknown): boolean {
  const status = httpStatus(error)
  return status === 412 || s3Code(error) === 'ConditionalRequestConflict' || s3Code(error) === 'NoSuchUpload'
}
