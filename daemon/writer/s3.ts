/**
 * The `RegistryWriter` of buckets, on the AWS SDK.
 *
 * An object is looked for first (HEAD, with checksums). What the server says of its SHA-256 is compared with ours, so
 * equal bytes are not uploaded again; that is also how a push goes on that was interrupted. Where something new is
 * expected, the server is asked to write only if nothing is there (If-None-Match), so a race is noticed.
 *
 * A bucket without versions is treated as a folder is: what earlier revisions may point to stays.
 */
import type { Readable } from 'node:stream'
import type { GetObjectCommandOutput, HeadObjectCommandOutput } from '@aws-sdk/client-s3'
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
} from '../model/index.js'
import { createObjectHasher } from '../model/object-hash.js'
import { loadSdk } from '../source/client.js'
import { s3Error } from '../source/errors.js'
import { httpStatus, s3Code } from '../source/failure-class.js'
import { Abilities } from './abilities.js'
import type { WriterConfig } from './config.js'
import { asS3Key, storedObject, withVersion } from './s3-keys.js'
import { S3Objects } from './s3-objects.js'
import { S3Sender } from './s3-sender.js'
import { S3Uploads } from './s3-uploads.js'
import { provenHash } from './server-checksums.js'
import { UnfinishedUploads } from './unfinished-uploads.js'

/** Somebody may write what we have just seen missing; not for ever. */
const TRIES_MAX = 5
/** A pointer is 64 bytes. */
const TEXT_BYTES_MAX = 1024

/** What lies at a key. */
interface Found {
  readonly size: number
  /** As the server says it: base64 of the SHA-256 of the bytes, or of that of the parts' and `-` and their number. */
  readonly sha256: string | undefined
  readonly versionId: string | undefined
}

export class S3Writer implements RegistryWriter {
  readonly #sender: S3Sender
  readonly #abilities: Abilities
  readonly #uploads: S3Uploads
  readonly #objects: S3Objects

  constructor({ ioTimeoutMs, cacheDir, onLack = () => {} }: WriterConfig) {
    this.#sender = new S3Sender(ioTimeoutMs)
    this.#abilities = new Abilities(onLack)
    const unfinished = new UnfinishedUploads(cacheDir, this.#sender)
    this.#uploads = new S3Uploads(this.#sender, this.#abilities, unfinished)
    this.#objects = new S3Objects(this.#sender, unfinished, (key, signal) => this.#head(key, signal))
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
      await this.#sender.send('DeleteObject', object, signal, (client, abortSignal) =>
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
        return await this.#uploads.upload(key, file, { ...options, onlyIfAbsent: found === undefined && !isForced })
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
          return this.#sender.send('PutObject', object, signal, (client, abortSignal) =>
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
      return await this.#sender.send('GetObject', key, signal, async (client, abortSignal) => {
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
      const hex = await this.#sender.send('GetObject', key, signal, async (client, abortSignal) => {
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
        return this.#sender.send('GetObject', key, signal, (client, abortSignal) =>
          client.send(command, { abortSignal }),
        )
      })
      return { size: answer.ContentLength ?? 0, sha256: answer.ChecksumSHA256, versionId: answer.VersionId }
    } catch (error) {
      const told = s3Error(error, formatPhysicalKey(key), false)
      if (told.code === 'OBJECT_GONE') return undefined
      throw told
    }
  }

  async close(): Promise<void> {
    this.#sender.close()
  }
}

async function isSame(found: Found, file: FileToStore, signal: AbortSignal | undefined): Promise<boolean> {
  if (found.size !== file.size) return false
  if (file.size === 0) return true
  return found.sha256 !== undefined && provenHash(found.sha256, file.size, true) === (await file.hash(signal))
}

/** Somebody has written there since we looked, or an upload was completed by a try whose answer was lost: look again. */
function hasMoved(error: unknown): boolean {
  const status = httpStatus(error)
  return status === 412 || s3Code(error) === 'ConditionalRequestConflict' || s3Code(error) === 'NoSuchUpload'
}
