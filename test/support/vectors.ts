/** The format's test vectors, as `test/unit/daemon/manifest/vectors.json` has them (not compiled, so read from the sources). */
import { readFileSync } from 'node:fs'

export interface ObjectHashVector {
  readonly name: string
  readonly size: number
  readonly generator: { readonly repeat_hex: string; readonly count: number; readonly tail_hex: string }
  readonly SHA256: string
  readonly 'sha2-256-chunked': string
  readonly 'sha2-256-chunked_hex': string
  readonly chunk_size: number
  readonly parts: number
  readonly part_sha256_hex: readonly string[]
  readonly CRC64NVME: string
  readonly CRC64NVME_hex: string
  readonly s3_checksum_sha256_single_put: string | null
  readonly s3_checksum_sha256_mpu: string | null
}

export interface Vectors {
  readonly object_hashes: readonly ObjectHashVector[]
  readonly chunk_size_rule: readonly { readonly size: number; readonly chunk_size: number; readonly parts: number }[]
  readonly s3_single_put_to_chunked: readonly {
    readonly s3_ChecksumSHA256: string
    readonly 'sha2-256-chunked': string
    readonly content_utf8: string
  }[]
  readonly crc64nvme: {
    readonly check_123456789: string
    readonly combine: readonly {
      readonly a_hex: string
      readonly b_hex: string
      readonly b_len: number
      readonly result_hex: string
    }[]
  }
  readonly top_hash_cases: readonly {
    readonly name: string
    readonly manifest: string
    readonly hashed_string?: string
    readonly top_hash: string
  }[]
  readonly known_answers: Readonly<Record<string, { readonly manifest: string; readonly top_hash: string }>>
  readonly canonical_json: readonly { readonly json_in: string; readonly canonical: string }[]
  readonly physical_key_parse: readonly {
    readonly uri: string
    readonly error?: string
    readonly bucket?: string
    readonly key?: string
    readonly versionId?: string | null
    readonly reformatted?: string
  }[]
  readonly physical_key_format: readonly {
    readonly bucket: string
    readonly key: string
    readonly versionId: string | null
    readonly uri: string
  }[]
  /** Where quilt3's own cache keeps what lies at an address. */
  readonly cache_paths: readonly {
    readonly url: string
    readonly sha256_hex: string
    readonly object_cache_relpath: string
  }[]
  readonly multihash_codes: Readonly<Record<string, string>>
  readonly package_names: readonly { readonly name: string; readonly accepted: boolean }[]
  readonly short_hash_resolution: readonly {
    readonly listing: readonly string[]
    readonly prefix: string
    readonly result: string
  }[]
}

export const vectors: Vectors = JSON.parse(
  readFileSync(new URL('../../../test/unit/daemon/manifest/vectors.json', import.meta.url), 'utf8'),
)
