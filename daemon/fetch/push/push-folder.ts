/** A folder, or some files, become a revision of a package: they are stored, unless they are there already. */
import { realpath, stat } from 'node:fs/promises'
import { sep } from 'node:path'
import { BobbinError, compareTreeOrder, type Entry, localError } from '../../model/index.js'
import type { ManifestWriter } from '../../quilt/manifest-writer.js'
import { objectPlace } from '../../quilt/registry.js'
import type { WorkflowEntry } from '../../quilt/workflow.js'
import { concurrently } from '../concurrently.js'
import { LocalFile } from './local-file.js'
import { type Entries, pushRevision, type Revision, type RevisionOptions, type Tools } from './push-revision.js'
import { checkedKey, type FoundFile, walkFolder } from './walk-folder.js'

export interface PushOptions extends RevisionOptions {
  readonly dir: string
  /** These become the entries, by their keys, and nothing else of the folder is looked at, `.quiltignore` neither. */
  readonly files?: ReadonlyMap<string, string> | undefined
  readonly onProgress?: ((progress: PushProgress) => void) | undefined
  /** What is in the folder and does not become an entry. */
  readonly onSkipped?: ((key: string, reason: string) => void) | undefined
}

export interface PushProgress {
  /** Stored, uploaded or found there. */
  readonly bytes: number
  readonly bytesTotal: number
}

export interface Pushed extends Revision {
  /** Objects that were written, */
  readonly uploaded: number
  /** and objects that were there already. */
  readonly reused: number
}

/** Enough to keep a link busy with small files; each may hold its bytes (8 MiB at most) in memory. */
const FILES_AT_ONCE = 16
/** Of S3. */
const OBJECT_KEY_BYTES_MAX = 1024

/**
 * Throws INVALID_ARGUMENT (no such folder, a name that no package may have), LOCAL_IO for a file that changed while it
 * was read, and what `pushRevision` throws.
 */
export async function pushFolder(options: PushOptions): Promise<Pushed> {
  let folder: FolderEntries | undefined
  // As quilt3's `set_dir` without metadata has it, and so with the same top hash.
  const userMeta = options.userMeta ?? 'null'
  const revision = await pushRevision({ ...options, userMeta }, tools => {
    folder = new FolderEntries(options, tools)
    return folder
  })
  return { ...revision, uploaded: folder?.uploaded ?? 0, reused: folder?.reused ?? 0 }
}

class FolderEntries implements Entries {
  uploaded = 0
  reused = 0
  /** Keys and paths, in tree order; `undefined`: what the folder has. */
  readonly #given: readonly (readonly [key: string, path: string])[] | undefined
  #bytesDone = 0
  #bytesUnderWay = 0
  #bytesTotal = 0

  constructor(
    private readonly options: PushOptions,
    private readonly tools: Tools,
  ) {
    this.#given = options.files && inTreeOrder(options.files)
  }

  async look(): Promise<void> {
    const { dir, registry, name, onSkipped } = this.options
    await this.#requireOutside()
    let files = 0
    for await (const { key, path, size } of this.#files(onSkipped)) {
      if (registry.kind === 's3' && Buffer.byteLength(`${name}/${key}`) > OBJECT_KEY_BYTES_MAX) {
        const reason = `S3 takes keys of ${OBJECT_KEY_BYTES_MAX} bytes, the package's name included`
        throw new BobbinError('INVALID_ARGUMENT', `${JSON.stringify(path)} cannot be in a package: ${reason}`)
      }
      files++
      this.#bytesTotal += size
    }
    if (files === 0) throw new BobbinError('INVALID_ARGUMENT', `nothing to push: there is no file in ${dir}`)
  }

  async list(): Promise<WorkflowEntry[]> {
    const entries: WorkflowEntry[] = []
    for await (const { key, size } of this.#files()) entries.push({ logical_key: key, size, meta: {} })
    return entries
  }

  /** A registry in the folder would become a part of itself. */
  async #requireOutside(): Promise<void> {
    const { dir, registry } = this.options
    if (registry.kind !== 'file') return
    const real = (path: string) => realpath(path).catch(() => path)
    const [folder, root] = [await real(dir), await real(registry.path)]
    if (!`${root}${sep}`.startsWith(`${folder}${sep}`)) return
    throw new BobbinError('INVALID_ARGUMENT', `the registry ${root} lies in the folder that is pushed, ${folder}`)
  }

  /** In tree order. */
  async *#files(onSkipped?: PushOptions['onSkipped']): AsyncGenerator<FoundFile> {
    const { dir, signal } = this.options
    if (this.#given === undefined) yield* walkFolder(dir, { signal, onSkipped })
    else for (const [key, path] of this.#given) yield await givenFile(key, path)
  }

  async describe(manifest: ManifestWriter): Promise<void> {
    await this.#each(manifest, async (file, { key }, signal) => {
      const hex = await file.hash(signal)
      this.#bytesDone += file.size
      this.#report()
      const { preferred: physicalKey } = objectPlace(this.options.registry, this.options.name, key)
      return { key, size: file.size, hash: { type: 'sha2-256-chunked', hex }, physicalKey }
    })
  }

  async write(manifest: ManifestWriter): Promise<void> {
    await this.#each(manifest, (file, found, signal) => this.#store(file, found, signal))
  }

  async #each(
    manifest: ManifestWriter,
    entryOf: (file: LocalFile, found: FoundFile, signal: AbortSignal) => Promise<Entry>,
  ): Promise<void> {
    const { signal } = this.options
    const ordered = new InOrder<Entry>(entry => manifest.addEntry(entry))
    await concurrently(numbered(this.#files()), FILES_AT_ONCE, signal, async ({ index, item }, stop) => {
      const file = await LocalFile.open(item.path, this.tools.workers)
      try {
        ordered.add(index, await entryOf(file, item, stop))
      } finally {
        await file.close()
      }
    })
  }

  async #store(file: LocalFile, { key }: FoundFile, signal: AbortSignal): Promise<Entry> {
    const place = objectPlace(this.options.registry, this.options.name, key)
    let reported = 0
    const onBytes = (bytes: number) => {
      this.#bytesUnderWay += bytes - reported
      reported = bytes
      this.#report()
    }
    try {
      const { physicalKey, hash, isReused } = await this.tools.writer.store(file, place, { signal, onBytes })
      if (isReused) this.reused++
      else this.uploaded++
      this.#bytesDone += file.size
      return { key, size: file.size, hash, physicalKey }
    } finally {
      onBytes(0)
    }
  }

  #report(): void {
    const bytes = this.#bytesDone + this.#bytesUnderWay
    this.options.onProgress?.({ bytes, bytesTotal: this.#bytesTotal })
  }
}

function inTreeOrder(files: ReadonlyMap<string, string>): (readonly [key: string, path: string])[] {
  return [...files]
    .map(([key, path]) => ({ key, path, bytes: Buffer.from(key) }))
    .sort((a, b) => compareTreeOrder(a.bytes, b.bytes))
    .map(({ key, path }) => [key, path])
}

async function givenFile(key: string, path: string): Promise<FoundFile> {
  const { size } = await stat(path).catch(error => Promise.reject(localError(`read ${path}`, error)))
  return { key: checkedKey(key, path), path, size }
}

async function* numbered<T>(items: AsyncIterable<T>): AsyncGenerator<{ readonly index: number; readonly item: T }> {
  let index = 0
  for await (const item of items) yield { index: index++, item }
}

/** Passes on, in order, what comes in any order. What waits is what is finished beside one slow item: rows, not bytes. */
class InOrder<T> {
  readonly #waiting = new Map<number, T>()
  #next = 0

  constructor(private readonly pass: (item: T) => void) {}

  add(index: number, item: T): void {
    this.#waiting.set(index, item)
    for (let found = this.#waiting.get(this.#next); found !== undefined; found = this.#waiting.get(this.#next)) {
      this.#waiting.delete(this.#next++)
      this.pass(found)
    }
  }
}
