/**
 * Objects that lie in S3 already: what there is, what the server knows of them, and copies that the server makes by
 * itself. A copy is cut into parts as a manifest's hash cuts chunks, from 8 MiB on, and the server is asked for the
 * SHA-256 of each, so that its own checksum proves the copy; where it gives none, the copy is read once.
 */
import type {
  CopyObjectCommandOutput,
  GetObjectAttributesCommandOutput,
  ListObjectsV2CommandOutput,
} from '@aws-sdk/client-s3'
import {
  BobbinError,
  type CopyOptions,
  formatPhysicalKey,
  type HashType,
  hasCode,
  type ObjectHash,
  type ObjectPlace,
  type S3Key,
  type ServerObject,
  type StoredFile,
  throwIfAborted,
} from '../model/index.js'
import { chunkBytes, chunkCount } from '../model/object-hash.js'
import { loadSdk } from '../source/client.js'
import { s3Error } from '../source/errors.js'
import { httpStatus, s3Code } from '../source/failure-class.js'
import { concurrently } from '../work/concurrently.js'
import { asS3Key, withVersion } from './s3-keys.js'
import type { S3Sender } from './s3-sender.js'
import { provenHash } from './server-checksums.js'
import type { UnfinishedUploads } from './unfinished-uploads.js'

/** From here on a copy has parts, as an upload has. */
const PARTS_FROM_BYTES = 8 * 2 ** 20
/** Parts of one copy under way: the server copies them, so all that this costs here is a connection each. */
const PARTS_AT_ONCE = 8
/** S3 lists so many parts of an object at a time. */
const PARTS_PER_PAGE = 1000

/** What a HEAD with checksums tells. */
export interface Head {
  readonly size: number
  readonly sha256: string | undefined
  readonly versionId: string | undefined
}

export class S3Objects {
  /** False: a server that cannot hash what it copies in parts (minio refuses it, versitygw gives the source's checksum). */
  #provesParts = true

  constructor(
    private readonly sender: S3Sender,
    private readonly unfinished: UnfinishedUploads,
    private readonly head: (key: S3Key, signal: AbortSignal | undefined) => Promise<Head | undefined>,
  ) {}

  async *list(
    bucket: string,
    prefix: string,
    signal: AbortSignal | undefined,
  ): AsyncGenerator<{ readonly key: string; readonly size: number }> {
    const { ListObjectsV2Command } = await loadSdk()
    const place: S3Key = { kind: 's3', bucket, key: prefix }
    let continuation: string | undefined
    do {
      // XML has no way to write some of the characters that a key may have.
      const input = { Bucket: bucket, Prefix: prefix, EncodingType: 'url' as const, ContinuationToken: continuation }
      let page: ListObjectsV2CommandOutput
      try {
        page = await this.sender.send('ListBucket', place, signal, (client, abortSignal) =>
          client.send(new ListObjectsV2Command(input), { abortSignal }),
        )
      } catch (error) {
        throw s3Error(error, formatPhysicalKey(place), true)
      }
      for (const { Key, Size } of page.Contents ?? []) {
        throwIfAborted(signal)
        const key = page.EncodingType === 'url' ? decodeURIComponent((Key ?? '').replaceAll('+', ' ')) : (Key ?? '')
        yield { key, size: Size ?? 0 }
      }
      continuation = page.IsTruncated ? page.NextContinuationToken : undefined
    } while (continuation !== undefined)
  }

  async look(key: S3Key, signal: AbortSignal | undefined): Promise<ServerObject> {
    const found = await this.head(key, signal)
    if (found === undefined) throw new BobbinError('OBJECT_GONE', `no such object: ${formatPhysicalKey(key)}`)
    const { size, sha256, versionId } = found
    const physicalKey = withVersion(key, versionId ?? key.versionId)
    const hasParts = sha256?.includes('-') ?? false
    const hex = provenHash(sha256, size, hasParts && (await this.#arePartsChunks(physicalKey, size, signal)))
    return { physicalKey, size, hash: hex === undefined ? undefined : { type: 'sha2-256-chunked', hex } }
  }

  /** False also where the server does not tell. */
  async #arePartsChunks(key: S3Key, size: number, signal: AbortSignal | undefined): Promise<boolean> {
    const { GetObjectAttributesCommand } = await loadSdk()
    const chunk = chunkBytes(size)
    let part = 0
    let marker: string | undefined
    try {
      do {
        const input = {
          Bucket: key.bucket,
          Key: key.key,
          VersionId: key.versionId,
          ObjectAttributes: ['ObjectParts' as const],
          MaxParts: PARTS_PER_PAGE,
          PartNumberMarker: marker,
        }
        const { ObjectParts }: GetObjectAttributesCommandOutput = await this.sender.send(
          'GetObject',
          key,
          signal,
          (client, abortSignal) => client.send(new GetObjectAttributesCommand(input), { abortSignal }),
        )
        for (const { PartNumber, Size } of ObjectParts?.Parts ?? []) {
          if (PartNumber !== part + 1 || Size !== Math.min(chunk, size - part * chunk)) return false
          part++
        }
        marker = ObjectParts?.IsTruncated ? ObjectParts.NextPartNumberMarker : undefined
      } while (marker !== undefined)
    } catch (error) {
      throwIfAborted(signal)
      // It is an optional request: what it would have told is found out by reading.
      if (hasCode(s3Error(error, formatPhysicalKey(key), false), 'UPSTREAM_UNAVAILABLE') && httpStatus(error) !== 501)
        throw error
      return false
    }
    return part === chunkCount(size)
  }

  /** As `RegistryWriter.copy` has it. */
  async copy(
    from: S3Key,
    object: { readonly size: number; readonly hash?: ObjectHash | undefined },
    place: ObjectPlace,
    options: CopyOptions,
  ): Promise<StoredFile | undefined> {
    const { size } = object
    let { hash } = object
    const known = async () => {
      hash ??= { type: 'sha2-256-chunked', hex: await options.read(from, size, 'sha2-256-chunked') }
      return hash
    }
    try {
      const preferred = asS3Key(place.preferred)
      const stored = await this.#copyTo(preferred, from, size, hash, known, options)
      if (stored !== undefined) return stored
      const other = asS3Key(place.byHash((await known()).hex))
      const found = await this.#copyTo(other, from, size, hash, known, options)
      if (found !== undefined) return found
      throw new BobbinError('OBJECT_CORRUPT', `${formatPhysicalKey(other)} is not what its name says: remove it`)
    } catch (error) {
      if (isRefusal(error)) return undefined
      throw error instanceof BobbinError ? error : s3Error(error, formatPhysicalKey(from), false)
    }
  }

  /** `undefined`: other bytes lie there, and would be lost. */
  async #copyTo(
    to: S3Key,
    from: S3Key,
    size: number,
    hash: ObjectHash | undefined,
    known: () => Promise<ObjectHash>,
    options: CopyOptions,
  ): Promise<StoredFile | undefined> {
    const { signal, read, onBytes } = options
    const hexOf = async (key: S3Key, sha256: string | undefined, type: HashType, arePartsOurs: boolean) => {
      const proven = type === 'sha2-256-chunked' ? provenHash(sha256, size, arePartsOurs) : undefined
      return proven ?? (await read(key, size, type))
    }
    const found = await this.head(to, signal)
    if (found !== undefined) {
      const key = withVersion(to, found.versionId)
      if (found.size === size) {
        const expected = await known()
        // Its parts may be anybody's, but a hash that is equal to the expected one proves how they were cut.
        const hex =
          provenHash(found.sha256, size, true) === expected.hex ? expected.hex : await read(key, size, expected.type)
        if (hex === expected.hex) {
          onBytes?.(size)
          return { physicalKey: key, hash: expected, isReused: true }
        }
      }
      if (found.versionId === undefined || found.versionId === 'null') return undefined
    }
    const copied = await this.#make(to, from, size, found === undefined, options)
    const key = withVersion(to, copied.versionId)
    const sha256 = copied.sha256 ?? (await this.head(key, signal))?.sha256
    const type = hash?.type ?? 'sha2-256-chunked'
    const hex = await hexOf(key, sha256, type, true)
    if (hash !== undefined && hex !== hash.hex) {
      throw new BobbinError(
        'OBJECT_CORRUPT',
        `${formatPhysicalKey(from)} is not what the manifest says: its copy hashes to ${hex}`,
      )
    }
    onBytes?.(size)
    return { physicalKey: key, hash: { type, hex }, isReused: false }
  }

  async #make(
    to: S3Key,
    from: S3Key,
    size: number,
    onlyIfAbsent: boolean,
    options: CopyOptions,
  ): Promise<{ readonly versionId: string | undefined; readonly sha256: string | undefined }> {
    const { signal } = options
    const condition = onlyIfAbsent ? { IfNoneMatch: '*' } : {}
    if (size >= PARTS_FROM_BYTES) return await this.#makeInParts(to, from, size, condition, options)
    const { CopyObjectCommand } = await loadSdk()
    const copy = (more: { readonly IfNoneMatch?: string }): Promise<CopyObjectCommandOutput> =>
      this.sender.send('PutObject', to, signal, (client, abortSignal) =>
        client.send(
          new CopyObjectCommand({
            Bucket: to.bucket,
            Key: to.key,
            CopySource: copySource(from),
            ChecksumAlgorithm: 'SHA256',
            ...more,
          }),
          { abortSignal },
        ),
      )
    const answer = await copy(condition).catch((error: unknown) => {
      if (onlyIfAbsent && httpStatus(error) === 501) return copy({})
      throw error
    })
    return { versionId: answer.VersionId, sha256: answer.CopyObjectResult?.ChecksumSHA256 }
  }

  async #makeInParts(
    to: S3Key,
    from: S3Key,
    size: number,
    condition: { readonly IfNoneMatch?: string },
    { signal, onBytes, read }: CopyOptions,
  ): Promise<{ readonly versionId: string | undefined; readonly sha256: string | undefined }> {
    const sdk = await loadSdk()
    const where = { Bucket: to.bucket, Key: to.key }
    await this.unfinished.clear(to.bucket)
    const algorithm = this.#provesParts ? { ChecksumAlgorithm: 'SHA256' as const } : {}
    const { UploadId } = await this.sender.send('PutObject', to, signal, (client, abortSignal) =>
      client.send(new sdk.CreateMultipartUploadCommand({ ...where, ...algorithm }), { abortSignal }),
    )
    const removeNote = await this.unfinished.note({ bucket: to.bucket, key: to.key, uploadId: UploadId ?? '' })
    try {
      const chunk = chunkBytes(size)
      const parts: { ETag?: string; PartNumber: number; ChecksumSHA256?: string }[] = []
      let done = 0
      const copyPart = async (i: number, stop: AbortSignal | undefined) => {
        const end = Math.min(size, (i + 1) * chunk)
        const input = {
          ...where,
          UploadId,
          PartNumber: i + 1,
          CopySource: copySource(from),
          CopySourceRange: `bytes=${i * chunk}-${end - 1}`,
        }
        const { CopyPartResult } = await this.sender.send('PutObject', to, stop, (client, abortSignal) =>
          client.send(new sdk.UploadPartCopyCommand(input), { abortSignal }),
        )
        const { ETag, ChecksumSHA256 } = CopyPartResult ?? {}
        if (algorithm.ChecksumAlgorithm && !SHA256_BASE64.test(ChecksumSHA256 ?? '')) throw new NoPartChecksum()
        parts[i] = { PartNumber: i + 1, ...(ETag && { ETag }), ...(ChecksumSHA256 && { ChecksumSHA256 }) }
        done += end - i * chunk
        onBytes?.(done)
      }
      // The first one shows whether the server hashes what it copies. An upload that is ended while other parts are being copied
      // may stay: a part that ends later begins it again, on versitygw and, as its manual says, on Amazon's.
      await copyPart(0, signal)
      const rest = Array.from({ length: chunkCount(size) - 1 }, (_, i) => i + 1)
      await concurrently(rest, PARTS_AT_ONCE, signal, copyPart)
      const input = { ...where, UploadId, MultipartUpload: { Parts: parts }, ...condition }
      const answer = await this.sender.send('PutObject', to, signal, (client, abortSignal) =>
        client.send(new sdk.CompleteMultipartUploadCommand(input), { abortSignal }),
      )
      await removeNote()
      return { versionId: answer.VersionId, sha256: answer.ChecksumSHA256 }
    } catch (error) {
      // An upload that cannot be ended now keeps its note, for the next process.
      await this.sender
        .send('PutObject', to, undefined, (client, abortSignal) =>
          client.send(new sdk.AbortMultipartUploadCommand({ ...where, UploadId }), { abortSignal }),
        )
        .then(removeNote, () => {})
      const isAboutChecksums = error instanceof NoPartChecksum || [400, 501].includes(httpStatus(error) ?? 0)
      if (!algorithm.ChecksumAlgorithm || !isAboutChecksums) throw error
      // Such a copy is read once instead.
      this.#provesParts = false
      return await this.#makeInParts(to, from, size, condition, { signal, onBytes, read })
    }
  }
}

class NoPartChecksum extends Error {}

const SHA256_BASE64 = /^[A-Za-z0-9+/]{43}=$/

/**
 * Then the bytes go through this machine, and what is missing or not allowed is said by the requests for that. A server that
 * does not have the other bucket says 404, or 301 where it knows of it.
 */
function isRefusal(error: unknown): boolean {
  return (
    hasCode(error, 'ACCESS_DENIED') ||
    s3Code(error) === 'NotImplemented' ||
    [301, 400, 404, 405, 501].includes(httpStatus(error) ?? 0)
  )
}

function copySource({ bucket, key, versionId }: S3Key): string {
  const path = key.split('/').map(encodeURIComponent).join('/')
  const place = bucket.startsWith('arn:') ? `${bucket}/object` : bucket
  return `${place}/${path}${versionId === undefined ? '' : `?versionId=${encodeURIComponent(versionId)}`}`
}
