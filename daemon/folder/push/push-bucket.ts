/**
 * Objects that lie in a bucket already become a revision of a package: what quilt3's `set_dir` of an `s3://` address
 * takes. Their hashes come from the server's own checksums where these prove them, else each is read once. They are copied
 * into the registry's bucket by the server, or stay where they are, with their versions.
 */
import { randomBytes } from 'node:crypto'
import { mkdir, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { KeySorter } from '../../index/key-sorter.js'
import {
  BobbinError,
  formatPhysicalKey,
  keyProblem,
  type LogicalKey,
  localError,
  type S3Key,
} from '../../model/index.js'
import type { ObjectItem } from './items.js'
import { type Pushed, type PushOptions, pushItems } from './push-folder.js'
import type { Tools } from './push-revision.js'
import type { OnSkipped } from './revision-entries.js'

export interface BucketPushOptions extends Omit<PushOptions, 'dir' | 'files'> {
  /** A prefix that ends with a slash, or all of a bucket. */
  readonly from: S3Key
  /** False: rows point to the objects where they lie. */
  readonly copiesObjects: boolean
}

/** Of a registry: its pointers and manifests are no data. */
const REGISTRY_FOLDER = '.quilt/'

/** Throws INVALID_ARGUMENT (nothing lies there, a key that no package may have), and what `pushRevision` throws. */
export async function pushBucket(options: BucketPushOptions): Promise<Pushed> {
  const { copiesObjects, cacheDir } = options
  const folder = join(cacheDir, 'tmp')
  await mkdir(folder, { recursive: true, mode: 0o750 }).catch(error =>
    Promise.reject(localError(`make the folder ${folder}`, error)),
  )
  const path = join(folder, `${process.pid}-${randomBytes(6).toString('hex')}.listing`)
  const listing = new Listing(options, path)
  try {
    return await pushItems(options, (tools, onSkipped) => listing.items(tools, onSkipped), { copiesObjects })
  } finally {
    listing.close()
    await rm(path, { force: true })
  }
}

/** Listed once, since another listing might be another. S3's order is not tree order. */
class Listing {
  readonly #sorter: KeySorter
  #isListed = false

  constructor(
    private readonly options: BucketPushOptions,
    path: string,
  ) {
    this.#sorter = new KeySorter(path)
  }

  async *items({ writer }: Tools, onSkipped?: OnSkipped): AsyncGenerator<ObjectItem> {
    const { bucket, key: prefix } = this.options.from
    if (!this.#isListed) await this.#list(writer, onSkipped)
    for (const { key: bytes, offset: size } of this.#sorter.sorted()) {
      const key = bytes.toString() as LogicalKey
      yield { kind: 'object', key, size, at: { kind: 's3', bucket, key: prefix + key } }
    }
  }

  async #list(writer: Tools['writer'], onSkipped: OnSkipped | undefined): Promise<void> {
    const { from, signal } = this.options
    let found = 0
    for await (const { key: full, size } of writer.list(from.bucket, from.key, signal)) {
      const key = full.slice(from.key.length)
      if (full.startsWith(REGISTRY_FOLDER)) continue
      // Consoles make empty folders so.
      if (key === '' || key.endsWith('/')) {
        if (size > 0) onSkipped?.(key, 'a key that ends with a slash')
        continue
      }
      const problem = keyProblem(key)
      if (problem !== undefined) {
        const what = formatPhysicalKey({ ...from, key: full })
        throw new BobbinError('INVALID_ARGUMENT', `${JSON.stringify(what)} cannot be in a package: ${problem}`)
      }
      const bytes = Buffer.from(key)
      this.#sorter.add(bytes, bytes.length, found++, size, 0)
    }
    this.#isListed = true
    if (found > 0) return
    throw new BobbinError('INVALID_ARGUMENT', `nothing to push: no object lies below ${formatPhysicalKey(from)}`)
  }

  close(): void {
    this.#sorter.close()
  }
}
