/**
 * Uploads of files to S3: small ones as one request, larger ones in parts that are cut as the manifest's hash cuts chunks.
 * The server checks the SHA-256 of each. Uploads in parts that a killed process has left are ended before the next begins.
 */
import { createHash } from 'node:crypto'
import { Readable } from 'node:stream'
import type { S3Client } from '@aws-sdk/client-s3'
import pLimit from 'p-limit'
import {
  BobbinError,
  type FileToStore,
  formatPhysicalKey,
  type S3Key,
  type StoredFile,
  type StoreFileOptions,
  throwIfAborted,
} from '../model/index.js'
import { chunkBytes, createObjectHasher } from '../model/object-hash.js'
import { loadSdk } from '../source/client.js'
import type { Abilities, Ability } from './abilities.js'
import { storedObject } from './s3-keys.js'
import type { S3Sender } from './s3-sender.js'
import { provenHash } from './server-checksums.js'
import type { UnfinishedUploads } from './unfinished-uploads.js'

/** From here on an upload has parts. quilt3 does the same, and its readers know objects by it. */
const PARTS_FROM_BYTES = 8 * 2 ** 20
/** Large objects at the same time, */
const LARGE_AT_ONCE = 2
/** and parts of each: together they hold so many chunks in memory. */
const PARTS_AT_ONCE = 4

export class S3Uploads {
  readonly #largeLimit = pLimit(LARGE_AT_ONCE)

  constructor(
    private readonly sender: S3Sender,
    private readonly abilities: Abilities,
    private readonly unfinished: UnfinishedUploads,
  ) {}

  /** Throws the SDK's errors as they came. */
  async upload(
    key: S3Key,
    file: FileToStore,
    options: StoreFileOptions & { readonly onlyIfAbsent?: boolean },
  ): Promise<StoredFile> {
    const condition = { IfNoneMatch: '*' }
    const uses = [...(options.onlyIfAbsent ? (['conditions'] as const) : []), 'checksums' as const]
    const isConditional = (has: (ability: Ability) => boolean) => options.onlyIfAbsent === true && has('conditions')
    if (file.size >= PARTS_FROM_BYTES) {
      return await this.#largeLimit(() =>
        this.abilities.send(key.bucket, uses, has => {
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
    const answer = await this.abilities.send(key.bucket, uses, has => {
      const command = new PutObjectCommand({
        Bucket: key.bucket,
        Key: key.key,
        Body: bytes,
        ...(has('checksums') ? { ChecksumSHA256: digest('sha256') } : { ContentMD5: digest('md5') }),
        ...(isConditional(has) && condition),
      })
      return this.sender.send('PutObject', key, options.signal, (client, abortSignal) =>
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
    await this.unfinished.clear(key.bucket)
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
      if (answer.ChecksumSHA256 !== undefined && provenHash(answer.ChecksumSHA256, file.size, true) !== hex) {
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
      const answer = await this.sender.send('PutObject', key, isAbort ? undefined : signal, (client, abortSignal) =>
        client.send(command, { abortSignal }),
      )
      if (command instanceof sdk.CreateMultipartUploadCommand && 'UploadId' in answer) {
        const uploadId = answer.UploadId ?? ''
        removeNote = await this.unfinished.note({ bucket: key.bucket, key: key.key, uploadId })
      }
      if (isAbort || command instanceof sdk.CompleteMultipartUploadCommand) await removeNote()
      return answer
    }
    const client = await this.sender.client(key.bucket)
    return Object.create(client, { send: { value: send } }) as S3Client
  }
}
