/**
 * The `Entries` of every revision that is written: items in, in tree order, and rows of a manifest out, with what they
 * point to stored before. Rows of another revision keep their bytes, but for metadata and physical keys that are changed,
 * so a million of them cost no memory. Transfers overlap; rows are written in order.
 */
import { randomBytes } from 'node:crypto'
import { rm } from 'node:fs/promises'
import { join } from 'node:path'
import { findMember } from '../../json/json-bytes.js'
import { type MemberChanges, withMembers } from '../../json/json-members.js'
import { parseExactJson } from '../../json/python-json.js'
import type { ManifestRows } from '../../manifest/manifest-rows.js'
import type { ManifestWriter } from '../../manifest/manifest-writer.js'
import {
  BobbinError,
  type Entry,
  formatPhysicalKey,
  type HashType,
  type LogicalKey,
  type ObjectSpec,
  type PhysicalKey,
  type Registry,
  type S3Key,
  type StoredFile,
  throwIfAborted,
} from '../../model/index.js'
import { createObjectHasher } from '../../model/object-hash.js'
import { objectPlace } from '../../registry/registry.js'
import { concurrently } from '../../work/concurrently.js'
import type { WorkflowEntry } from '../../workflow/workflow.js'
import { materialize } from '../materialize.js'
import type { EntryMetas } from './entry-metas.js'
import type { Item, ObjectItem, RowItem } from './items.js'
import { LocalFile } from './local-file.js'
import type { Entries, RevisionOptions, Tools } from './push-revision.js'

export interface EntriesOptions extends Pick<RevisionOptions, 'registry' | 'name' | 'signal' | 'cacheDir'> {
  /** In tree order, from the beginning each time. */
  readonly items: (tools: Tools, onSkipped?: OnSkipped) => AsyncIterable<Item>
  /** Of the revision that the rows among the items are from. */
  readonly rows?: ManifestRows | undefined
  /** What entries get as their metadata. */
  readonly metas?: EntryMetas | undefined
  /** Canonical JSON text by key; a directory that has no entry is left out. */
  readonly directories?: ReadonlyMap<string, string> | undefined
  /** These of `directories` are asked for by somebody: without an entry they are an error. */
  readonly namedDirectories?: ReadonlySet<string> | undefined
  /** Rows and objects that lie elsewhere than in the registry are copied there. */
  readonly copiesObjects?: boolean | undefined
  /** Files of this machine that rows point to may be read and copied: they are from a registry in a folder. */
  readonly mayReadFiles?: boolean | undefined
  /** Why there is nothing; without it, nothing is a package, too. */
  readonly whyNone?: (() => BobbinError) | undefined
  readonly onProgress?: ((progress: PushProgress) => void) | undefined
  readonly onSkipped?: OnSkipped | undefined
}

/** What is there and does not become an entry. */
export type OnSkipped = (key: string, reason: string) => void

export interface PushProgress {
  /** Stored, uploaded, copied or found there. */
  readonly bytes: number
  readonly bytesTotal: number
}

/** Enough to keep a link busy with small files; each may hold its bytes (8 MiB at most) in memory. */
const TRANSFERS_AT_ONCE = 16
/** Rows that wait for one that is before them. */
const WAITING_MAX = 10_000
const ITEMS_A_TURN = 10_000
/** Of S3. */
const OBJECT_KEY_BYTES_MAX = 1024

/** A row that may be written when those before it are. */
type Ready =
  | {
      readonly kind: 'row'
      readonly item: RowItem
      readonly meta: string | undefined
      readonly at: PhysicalKey | undefined
    }
  | { readonly kind: 'entry'; readonly entry: Entry; readonly meta: string | undefined }

export class RevisionEntries implements Entries {
  uploaded = 0
  reused = 0
  #bytesDone = 0
  #bytesUnderWay = 0
  #bytesTotal = 0
  #isWriting = false
  readonly #withEntries = new Set<string>()

  constructor(
    private readonly options: EntriesOptions,
    private readonly tools: Tools,
  ) {}

  async look(): Promise<void> {
    const { metas, whyNone, onSkipped, directories, namedDirectories } = this.options
    let found = 0
    for await (const item of this.#items(onSkipped)) {
      found++
      this.#check(item)
      if (this.#isTransferred(item)) this.#bytesTotal += item.size
      if (directories?.size) this.#noteDirectories(item.key)
    }
    if (found === 0 && whyNone) throw whyNone()
    for (const key of namedDirectories ?? []) {
      if (!this.#withEntries.has(key)) {
        throw new BobbinError(
          'INVALID_ARGUMENT',
          `metadata for a folder that the package does not have: ${JSON.stringify(key)}`,
        )
      }
    }
    await metas?.match(() => keysOf(this.#items()))
  }

  #noteDirectories(key: string): void {
    for (let at = key.lastIndexOf('/'); at > 0; at = key.lastIndexOf('/', at - 1)) {
      const directory = key.slice(0, at)
      if (this.options.directories?.has(directory)) this.#withEntries.add(directory)
    }
  }

  #check(item: Item): void {
    const { registry, name } = this.options
    const { key, kind } = item
    const refuse = (reason: string, what = key) => {
      throw new BobbinError('INVALID_ARGUMENT', `${JSON.stringify(what)} cannot be in the new package: ${reason}`)
    }
    if (
      kind === 'row' &&
      registry.kind === 's3' &&
      item.object().physicalKey.kind === 'file' &&
      !this.#isTransferred(item)
    )
      refuse('it lies in a folder of this machine, where readers of the bucket cannot get it')
    const isStored = registry.kind === 's3' && this.#isTransferred(item)
    if (isStored && Buffer.byteLength(`${name}/${key}`) > OBJECT_KEY_BYTES_MAX)
      refuse(
        `S3 takes keys of ${OBJECT_KEY_BYTES_MAX} bytes, the package's name included`,
        kind === 'file' ? (item.path as LogicalKey) : key,
      )
  }

  /** Its bytes go into the registry, or have to be read. */
  #isTransferred(item: Item): boolean {
    return item.kind === 'row' ? this.#isCopied(item.object().physicalKey) : true
  }

  /** As quilt3 does by default, what lies in the bucket already stays where it is. */
  #isCopied(at: PhysicalKey): boolean {
    const { registry, copiesObjects, mayReadFiles } = this.options
    if (!copiesObjects) return false
    if (at.kind === 'file') return mayReadFiles === true && !isIn(registry, at)
    return registry.kind === 'file' || at.bucket !== registry.bucket
  }

  async list(): Promise<WorkflowEntry[]> {
    const entries: WorkflowEntry[] = []
    const metas = this.options.metas?.join()
    for await (const item of this.#items()) {
      const text = metas?.take(item.key) ?? (item.kind === 'row' ? item.userMeta() : undefined)
      entries.push({ logical_key: item.key, size: item.size, meta: parseExactJson(text ?? '{}') })
    }
    return entries
  }

  async *#items(onSkipped?: OnSkipped): AsyncGenerator<Item> {
    let seen = 0
    for await (const item of this.options.items(this.tools, onSkipped)) {
      // The loop has no other moment in which Ctrl-C is seen.
      if (++seen % ITEMS_A_TURN === 0) await new Promise(setImmediate)
      throwIfAborted(this.options.signal)
      yield item
    }
  }

  async describe(manifest: ManifestWriter): Promise<void> {
    this.#isWriting = false
    await this.#each(manifest)
  }

  async write(manifest: ManifestWriter): Promise<void> {
    this.#isWriting = true
    await this.#each(manifest)
  }

  async #each(manifest: ManifestWriter): Promise<void> {
    for (const [key, metadata] of this.options.directories ?? []) {
      if (this.#withEntries.has(key)) manifest.addDirectory(key, metadata)
    }
    const ordered = new InOrder<Ready>(ready => this.#add(manifest, ready), WAITING_MAX)
    const transfers = this.#transfers(ordered)
    await concurrently(transfers, TRANSFERS_AT_ONCE, this.options.signal, async ({ index, item, meta }, stop) => {
      try {
        ordered.add(index, await this.#transfer(item, meta, stop))
      } catch (error) {
        ordered.stop()
        throw error
      }
    })
  }

  /** What takes time; what does not is passed on at once. */
  async *#transfers(
    ordered: InOrder<Ready>,
  ): AsyncGenerator<{ readonly index: number; readonly item: Item; readonly meta: string | undefined }> {
    const metas = this.options.metas?.join()
    let index = 0
    for await (const item of this.#items()) {
      const meta = metas?.take(item.key)
      if (!this.#isTransferred(item) && item.kind === 'row')
        ordered.add(index++, { kind: 'row', item, meta, at: undefined })
      else yield { index: index++, item, meta }
      await ordered.hasRoom()
    }
  }

  #add(manifest: ManifestWriter, ready: Ready): void {
    if (ready.kind === 'entry') {
      manifest.addEntry(ready.entry, ready.meta)
      return
    }
    const { rows } = this.options
    if (rows === undefined) throw new BobbinError('INTERNAL', 'rows of no manifest')
    const { item, meta, at } = ready
    let changes: MemberChanges | undefined
    if (meta !== undefined) changes = { meta: withUserMeta(rows.read(item.row).bytes, meta) }
    if (at !== undefined) changes = { ...changes, physical_keys: JSON.stringify([formatPhysicalKey(at)]) }
    const { bytes, canonical } = rows.read(item.row, changes)
    manifest.addFileRow(bytes, Buffer.from(item.key), canonical, item.size)
  }

  async #transfer(item: Item, meta: string | undefined, signal: AbortSignal): Promise<Ready> {
    const { key } = item
    let reported = 0
    const onBytes = (bytes: number) => {
      this.#bytesUnderWay += bytes - reported
      reported = bytes
      this.#report()
    }
    try {
      if (item.kind === 'row') {
        if (!this.#isWriting) return { kind: 'row', item, meta, at: undefined }
        const stored = this.#count(await this.#copied(item, item.object(), signal, onBytes))
        return { kind: 'row', item, meta, at: stored.physicalKey }
      }
      const { size, ...object } =
        item.kind === 'file' ? await this.#file(item, signal, onBytes) : await this.#object(item, signal, onBytes)
      return { kind: 'entry', entry: { key, size, ...object }, meta }
    } finally {
      onBytes(0)
      this.#bytesDone += item.size
      this.#report()
    }
  }

  async #file(
    { key, path }: Extract<Item, { kind: 'file' }>,
    signal: AbortSignal,
    onBytes: (bytes: number) => void,
  ): Promise<ObjectSpec> {
    const place = objectPlace(this.options.registry, this.options.name, key)
    const file = await LocalFile.open(path, this.tools.workers)
    try {
      if (!this.#isWriting) {
        const hex = await file.hash(signal)
        return { size: file.size, hash: { type: 'sha2-256-chunked', hex }, physicalKey: place.preferred }
      }
      const { physicalKey, hash } = this.#count(await this.tools.writer.store(file, place, { signal, onBytes }))
      return { size: file.size, physicalKey, hash }
    } finally {
      await file.close()
    }
  }

  async #object(item: ObjectItem, signal: AbortSignal, onBytes: (bytes: number) => void): Promise<ObjectSpec> {
    const { writer } = this.tools
    const { size, hash: proven, physicalKey } = await writer.look(item.at, signal)
    if (this.#isWriting && this.#isCopied(item.at)) {
      const stored = this.#count(await this.#copied(item, { size, physicalKey, hash: proven }, signal, onBytes))
      return { size, hash: stored.hash, physicalKey: stored.physicalKey }
    }
    const hash = proven ?? {
      type: 'sha2-256-chunked',
      hex: await this.#hashOf(physicalKey, size, 'sha2-256-chunked', signal),
    }
    if (this.#isWriting) this.reused++
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
    throw new BobbinError('OBJECT_CORRUPT', `${what}: push again when nobody writes to it`)
  }

  #count(stored: StoredFile): StoredFile {
    if (stored.isReused) this.reused++
    else this.uploaded++
    return stored
  }

  #report(): void {
    const bytes = this.#bytesDone + this.#bytesUnderWay
    this.options.onProgress?.({ bytes, bytesTotal: this.#bytesTotal })
  }
}

async function* keysOf(items: AsyncIterable<Item>): AsyncGenerator<string> {
  for await (const { key } of items) yield key
}

function isIn(registry: Registry, { path }: { readonly path: string }): boolean {
  return registry.kind === 'file' && path.startsWith(`${registry.path === '/' ? '' : registry.path}/`)
}

/** The row's `meta` with other metadata of the user; what programs have beside it stays. */
function withUserMeta(row: Buffer, userMeta: string): string {
  const span = findMember(row, 0, row.length, 'meta')
  const isObject = span !== undefined && row[span.from] === 0x7b
  return withMembers(isObject ? row.subarray(span.from, span.to) : EMPTY_OBJECT, { user_meta: userMeta }).toString()
}

const EMPTY_OBJECT = Buffer.from('{}')

/** Passes on, in order, what comes in any order. */
class InOrder<T> {
  readonly #waiting = new Map<number, T>()
  #next = 0
  #onRoom = () => {}
  #isStopped = false

  constructor(
    private readonly pass: (item: T) => void,
    private readonly waitingMax: number,
  ) {}

  add(index: number, item: T): void {
    this.#waiting.set(index, item)
    for (let found = this.#waiting.get(this.#next); found !== undefined; found = this.#waiting.get(this.#next)) {
      this.#waiting.delete(this.#next++)
      this.pass(found)
    }
    if (this.#waiting.size <= this.waitingMax) this.#onRoom()
  }

  /** The one that others wait for will not come. */
  stop(): void {
    this.#isStopped = true
    this.#onRoom()
  }

  /** Returns when few enough wait for a slow one. */
  async hasRoom(): Promise<void> {
    if (this.#isStopped || this.#waiting.size <= this.waitingMax) return
    await new Promise<void>(resolve => {
      this.#onRoom = resolve
    })
  }
}
