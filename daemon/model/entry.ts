import type { LogicalKey } from './logical-key.js'
import type { PhysicalKey } from './physical-key.js'

/** The hash types of Quilt manifests, with quilt3's own spelling. */
export const HASH_TYPES = ['SHA256', 'sha2-256-chunked', 'CRC64NVME'] as const
export type HashType = (typeof HASH_TYPES)[number]

/** The hash of an object's bytes. */
export interface ObjectHash {
  readonly type: HashType
  /** Lower-case hex: 64 digits, or 16 for CRC64NVME. (A manifest spells two of the types in base64.) */
  readonly hex: string
}

/** All that is needed to fetch an object and to know that it is the right one. */
export interface ObjectSpec {
  readonly physicalKey: PhysicalKey
  /** Bytes. */
  readonly size: number
  readonly hash: ObjectHash
}

/** One file row of a manifest. */
export interface Entry extends ObjectSpec {
  readonly key: LogicalKey
}

/** Where the revisions are: `.quilt/` lies directly below it. */
export type Registry =
  | { readonly kind: 's3'; readonly bucket: string }
  | { readonly kind: 'file' /** Absolute, without a final slash. */; readonly path: string }
