/**
 * Brings the bytes of items into the registry, or finds their hash: files of this machine are uploaded, objects and rows
 * that lie elsewhere are copied, by the server itself where it can. Counts what was stored and how many bytes are done.
 */
import { randomBytes } from 'node:crypto'
import { rm } from 'node:fs/promises'
import { join } from 'node:path'
import {
  BobbinError,
  type Entry,
  formatPhysicalKey,
  type HashType,
  type ObjectSpec,
  type PhysicalKey,
  type Registry,
  type S3Key,
  type StoredFile,
} from '../../model/index.js'
import { createObjectHasher } from '../../model/object-hash.js'
import { objectPlace } from '../../registry/registry.js'
import { materialize } from '../materialize.js'
import type { Item, ObjectItem, RowItem } from './items.js'
import { LocalFile } from './local-file.js'
import type { RevisionOptions, Tools } from './push-revision.js'

export interface TransferOptions extends Pick<RevisionOptions, 'registry' | 'name' | 'cacheDir'> {
  /** Rows and objects that lie elsewhere than in the registry are copied there. */
  readonly copiesObjects?: boolean | undefined
  /** Files of this machine that rows point to may be read and copied: they are from a registry in a folder. */
  readonly mayReadFiles?: boolean | undefined
  readonly onProgress?: ((progress: PushProgress) => void) | undefined
}

export interface PushProgress {
  /** Stored, uploaded, copied or found there. */
  readonly bytes: number
  readonly bytesTotal: number
}

/** What the manifest needs: a row of another revision, perhaps with another place, or all of a new entry. */
export type Transferred =
  | { readonly kind: 'row'; readonly item: RowItem; readonly at: PhysicalKey | undefined }
  | { readonly kind: 'entry'; readonly entry: Entry }

export class Transfers {
  uploaded = 0
  reused = 0
  /** Of all items that are transferred. */
  bytesTotal = 0
  #bytesDone = 0
  #bytesUnderWay = 0

  constructor(
    private readonly options: TransferOptions,
    private readonly tools: Tools,
  ) {}

  /** Its bytes go into the registry, or have to be read. */
  isTransferred(item: Item): boolean {
    return item.kind === 'row' ? this.#isCopied(item.object().physicalKey) : true
  }

  /** As quilt3 does by default, what lies in the bucket already stays where it is. */
  #isCopied(at: PhysicalKey): boolean {
    const { registry, copiesObjects, mayReadFiles } = this.options
    if (!copiesObjects) return false
    if (at.kind === 'file') return mayReadFiles === true && !isIn(registry, at)
    return registry.kind === 'file' || at.bucket !== registry.bucket
  }

  /** Without `isWriting` nothing is stored, and only what the manifest says is found out. */
  async transfer(item: Item, isWriting: boolean, signal: AbortSignal): Promise<Transferred> {
    const { key } = item
    let reported = 0
    const onBytes = (bytes: number) => {
      this.#bytesUnderWay += bytes - reported
      reported = bytes
      this.#report()
    }
    try {
      if (item.kind === 'row') {
        if (!isWriting) return { kind: 'row', item, at: undefined }
        const stored = this.#count(await this.#copied(item, item.object(), signal, onBytes))
        return { kind: 'row', item, at: stored.physicalKey }
      }
      const { size, ...object } =
        item.kind === 'file'
          ? await this.#file(item, isWriting, signal, onBytes)
          : await this.#object(item, isWriting, signal, onBytes)
      return { kind: 'entry', entry: { key, size, ...object } }
    } finally {
      onBytes(0)
      this.#bytesDone += item.size
      this.#report()
    }
  }

  async #file(
    { key, path }: Extract<Item, { kind: 'file' }>,
    isWriting: boolean,
    signal: AbortSignal,
    onBytes: (bytes: number) => void,
  ): Promise<ObjectSpec> {
    const place = objectPlace(this.options.registry, this.options.name, key)
    const file = await LocalFile.open(path, this.tools.workers)
    try {
      if (!isWriting) {
        const hex = await file.hash(signal)
        return { size: file.size, hash: { type: 'sha2-256-chunked', hex }, physicalKey: place.preferred }
      }
      const { physicalKey, hash } = this.#count(await this.tools.writer.store(file, place, { signal, onBytes }))
      return { size: file.size, physicalKey, hash }
    } finally {
      await file.close()
    }
  }

  async #object(
    item: ObjectItem,
    isWriting: boolean,
    signal: AbortSignal,
    onBytes: (bytes: number) => void,
  ): Promise<ObjectSpec> {
    const { writer } = this.tools
    const { size, hash: proven, physicalKey } = await writer.look(item.at, signal)
    if (isWriting && this.#isCopied(item.at)) {
      const stored = this.#count(await this.#copied(item, { size, physicalKey, hash: proven }, signal, onBytes))
      return { size, hash: stored.hash, physicalKey: stored.physicalKey }
    }
    const hash = proven ?? {
      type: 'sha2-256-chunked',
      hex: await this.#hashOf(physicalKey, size, 'sha2-256-chunked', signal),
    }
    if (isWriting) this.reused++
    return { size, hash, physicalKey }
  }

  /** Into the registry: by the server itself where it can, else through this machine. Either way it is verified. */
  async #copied(
    { key }: Item,
    object: Omit<ObjectSpec, 'hash'> & { readonly hash: ObjectSpec['hash'] | undefined },
    signal: AbortSignal,
    onBytes: (bytes: number) => void,
  ): Promise<StoredFile> {
    const { writer, workers } = this.tools
    const { physicalKey, size } = object
    const place = objectPlace(this.options.registry, this.options.name, key)
    if (physicalKey.kind === 's3') {
      const read = (at: S3Key, bytes: number, type: HashType) => this.#hashOf(at, bytes, type, signal)
      const copied = await writer.copy(physicalKey, object, place, { signal, onBytes, read })
      if (copied !== undefined) return copied
    }
    const hash = object.hash ?? {
      type: 'sha2-256-chunked',
      hex: await this.#hashOf(physicalKey as S3Key, size, 'sha2-256-chunked', signal),
    }
    const path = join(this.options.cacheDir, 'tmp', `${process.pid}-${randomBytes(6).toString('hex')}.object`)
    try {
      await materialize(workers, { size, physicalKey, hash }, path, {
        cacheDir: this.options.cacheDir,
        label: key,
        signal,
      })
      const file = await LocalFile.open(path, workers)
      try {
        return await writer.store(file, place, { signal, onBytes })
      } finally {
        await file.close()
      }
    } finally {
      await rm(path, { force: true })
    }
  }

  async #hashOf(at: S3Key, size: number, type: HashType, signal: AbortSignal): Promise<string> {
    const hasher = await createObjectHasher(type, size)
    let bytes = 0
    const { chunks } = await this.tools.source.read(at, { signal })
    for await (const chunk of chunks) {
      hasher.update(chunk)
      bytes += chunk.length
    }
    if (bytes === size) return hasher.digest()
    const what = `${formatPhysicalKey(at)} had ${size} bytes, and now has ${bytes}`
    throw new BobbinError('OBJECT_CORRUPT', `${what}: push again when no program writes to it`)
  }

  #count(stored: StoredFile): StoredFile {
    if (stored.isReused) this.reused++
    else this.uploaded++
    return stored
  }

  #report(): void {
    const bytes = this.#bytesDone + this.#bytesUnderWay
    this.options.onProgress?.({ bytes, bytesTotal: this.bytesTotal })
  }
}

function isIn(registry: Registry, { path }: { readonly path: string }): boolean {
  return registry.kind === 'file' && path.startsWith(`${registry.path === '/' ? '' : registry.path}/`)
}
