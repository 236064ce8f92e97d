/**
 * The `Entries` of every revision that is written: items in, in tree order, and rows of a manifest out, with what they
 * point to stored before (transfers.ts). Rows of another revision keep their bytes, but for metadata and physical keys that are changed,
 * so a million of them cost no memory. Transfers overlap; rows are written in order.
 */
import { findMember } from '../../json/json-bytes.js'
import { type MemberChanges, withMembers } from '../../json/json-members.js'
import { parseExactJson } from '../../json/python-json.js'
import type { ManifestRows } from '../../manifest/manifest-rows.js'
import type { ManifestWriter } from '../../manifest/manifest-writer.js'
import { BobbinError, formatPhysicalKey, type LogicalKey, throwIfAborted } from '../../model/index.js'
import { concurrently } from '../../work/concurrently.js'
import type { WorkflowEntry } from '../../workflow/workflow.js'
import type { EntryMetas } from './entry-metas.js'
import { InOrder } from './in-order.js'
import type { Item } from './items.js'
import type { Entries, RevisionOptions, Tools } from './push-revision.js'
import { type TransferOptions, type Transferred, Transfers } from './transfers.js'

export interface EntriesOptions extends TransferOptions, Pick<RevisionOptions, 'signal'> {
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
  /** Why there is nothing; without it, nothing is a package, too. */
  readonly whyNone?: (() => BobbinError) | undefined
  readonly onSkipped?: OnSkipped | undefined
}

/** What is there and does not become an entry. */
export type OnSkipped = (key: string, reason: string) => void

/** Enough to keep a link busy with small files; each may hold its bytes (8 MiB at most) in memory. */
const TRANSFERS_AT_ONCE = 16
/** Rows that wait for one that is before them. */
const WAITING_MAX = 10_000
const ITEMS_A_TURN = 10_000
/** Of S3. */
const OBJECT_KEY_BYTES_MAX = 1024

/** A row that may be written when those before it are. */
type Ready = Transferred & { readonly meta: string | undefined }

export class RevisionEntries implements Entries {
  readonly #transfers: Transfers
  #isWriting = false
  readonly #withEntries = new Set<string>()

  constructor(
    private readonly options: EntriesOptions,
    private readonly tools: Tools,
  ) {
    this.#transfers = new Transfers(options, tools)
  }

  get uploaded(): number {
    return this.#transfers.uploaded
  }

  get reused(): number {
    return this.#transfers.reused
  }

  async look(): Promise<void> {
    const { metas, whyNone, onSkipped, directories, namedDirectories } = this.options
    let found = 0
    for await (const item of this.#items(onSkipped)) {
      found++
      this.#check(item)
      if (this.#transfers.isTransferred(item)) this.#transfers.bytesTotal += item.size
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
      !this.#transfers.isTransferred(item)
    )
      refuse('it lies in a folder of this machine, where readers of the bucket cannot get it')
    const isStored = registry.kind === 's3' && this.#transfers.isTransferred(item)
    if (isStored && Buffer.byteLength(`${name}/${key}`) > OBJECT_KEY_BYTES_MAX)
      refuse(
        `S3 takes keys of ${OBJECT_KEY_BYTES_MAX} bytes, the package's name included`,
        kind === 'file' ? (item.path as LogicalKey) : key,
      )
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
    const pending = this.#pending(ordered)
    await concurrently(pending, TRANSFERS_AT_ONCE, this.options.signal, async ({ index, item, meta }, stop) => {
      try {
        ordered.add(index, { ...(await this.#transfers.transfer(item, this.#isWriting, stop)), meta })
      } catch (error) {
        ordered.stop()
        throw error
      }
    })
  }

  /** What takes time; what does not is passed on at once. */
  async *#pending(
    ordered: InOrder<Ready>,
  ): AsyncGenerator<{ readonly index: number; readonly item: Item; readonly meta: string | undefined }> {
    const metas = this.options.metas?.join()
    let index = 0
    for await (const item of this.#items()) {
      const meta = metas?.take(item.key)
      if (!this.#transfers.isTransferred(item) && item.kind === 'row')
        ordered.add(index++, { kind: 'row', item, at: undefined, meta })
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
}

async function* keysOf(items: AsyncIterable<Item>): AsyncGenerator<string> {
  for await (const { key } of items) yield key
}

/** The row's `meta` with other metadata of the user; what programs have beside it stays. */
function withUserMeta(row: Buffer, userMeta: string): string {
  const span = findMember(row, 0, row.length, 'meta')
  const isObject = span !== undefined && row[span.from] === 0x7b
  return withMembers(isObject ? row.subarray(span.from, span.to) : EMPTY_OBJECT, { user_meta: userMeta }).toString()
}

const EMPTY_OBJECT = Buffer.from('{}')
