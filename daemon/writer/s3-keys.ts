/** Keys of objects in S3, as the parts of the S3 writer hand them on. */
import { BobbinError, formatPhysicalKey, type PhysicalKey, type S3Key, type StoredFile } from '../model/index.js'

export function asS3Key(key: PhysicalKey): S3Key {
  if (key.kind === 's3') return key
  throw new BobbinError('INTERNAL', `not in S3: ${formatPhysicalKey(key)}`)
}

export function withVersion({ bucket, key }: S3Key, versionId: string | undefined): S3Key {
  return { kind: 's3', bucket, key, ...(versionId !== undefined && { versionId }) }
}

export function storedObject(key: S3Key, versionId: string | undefined, hex: string, isReused: boolean): StoredFile {
  return { physicalKey: withVersion(key, versionId), hash: { type: 'sha2-256-chunked', hex }, isReused }
}
