/**
 * A folder becomes a revision of a package. In this order, so that whatever fails leaves the registry as it was, but
 * for objects that the next try finds and does not upload again:
 *
 *   rules and conflict → names and sizes → objects → manifest → conflict again → pointers
 *
 * What may be checked before a byte is uploaded is checked before.
 */
import { randomBytes } from 'node:crypto'
import { mkdir, realpath, rm } from 'node:fs/promises'
import { join, sep } from 'node:path'
import {
  BobbinError,
  type Entry,
  localError,
  type PackageName,
  type Registry,
  type RegistryWriter,
  type Source,
  type TopHash,
} from '../../model/index.js'
import { ManifestWriter, type WrittenManifest } from '../../quilt/manifest-writer.js'
import { publishRevision, type RevisionTarget, requireParent } from '../../quilt/publish.js'
import { objectPlace } from '../../quilt/registry.js'
import { findWorkflow, type RevisionWords, type WorkflowEntry } from '../../quilt/workflow.js'
import { concurrently } from '../concurrently.js'
import { createSource, type SourceConfig } from '../source/index.js'
import { Workers } from '../workers.js'
import { createRegistryWriter } from '../writer/index.js'
import { LocalFile } from './local-file.js'
import { type FoundFile, walkFolder } from './walk-folder.js'

export interface PushOptions {
  readonly dir: string
  readonly registry: Registry
  readonly name: PackageName
  readonly message: string | null
  /** JSON text of an object, as `parseUserMeta` gives it. */
  readonly userMeta?: string | undefined
  /** A workflow's id; `null`: none; `undefined`: the registry's default. */
  readonly workflow?: string | null | undefined
  /** The revision that the folder was made from: a top hash, or its first characters. */
  readonly parent?: string | undefined
  /** Push over whatever is latest. */
  readonly force?: boolean | undefined
  readonly sourceConfig: SourceConfig
  readonly cacheDir: string
  readonly signal?: AbortSignal | undefined
  readonly onProgress?: ((progress: PushProgress) => void) | undefined
  /** What is in the folder and does not become an entry. */
  readonly onSkipped?: ((key: string, reason: string) => void) | undefined
}

export interface PushProgress {
  /** Stored, uploaded or found there. */
  readonly bytes: number
  readonly bytesTotal: number
}

export interface Pushed {
  readonly topHash: TopHash
  readonly entries: number
  readonly bytes: number
  /** Objects that were written, */
  readonly uploaded: number
  /** and objects that were there already. */
  readonly reused: number
  /** False: this was the latest revision already. */
  readonly isNew: boolean
}

/** Enough to keep a link busy with small files; each may hold its bytes (8 MiB at most) in memory. */
const FILES_AT_ONCE = 16
/** Of S3. */
const OBJECT_KEY_BYTES_MAX = 1024

/**
 * Throws INVALID_ARGUMENT (no such folder, a name that no package may have, rules of the registry), REVISION_CONFLICT,
 * LOCAL_IO for a file that changed while it was read, and what a `RegistryWriter` throws.
 */
export async function pushFolder(options: PushOptions): Promise<Pushed> {
  const { sourceConfig, cacheDir } = options
  const source = createSource(sourceConfig)
  const workers = new Workers(sourceConfig)
  try {
    const writer = createRegistryWriter(options.registry, { ...sourceConfig, cacheDir })
    try {
      return await new Push(options, source, writer, workers).run()
    } finally {
      await writer.close()
    }
  } finally {
    await workers.close()
    source.close()
  }
}

class Push {
  readonly #target: RevisionTarget
  #uploaded = 0
  #reused = 0
  #bytesDone = 0
  #bytesUnderWay = 0
  #bytesTotal = 0

  constructor(
    private readonly options: PushOptions,
    private readonly source: Source,
    private readonly writer: RegistryWriter,
    private readonly workers: Workers,
  ) {
    const { registry, name, parent, force } = options
    this.#target = { registry, name, parent, isForced: force }
  }

  async run(): Promise<Pushed> {
    const { source, writer, options } = this
    const { message, userMeta, signal } = options
    const words: RevisionWords = { ...options, ...this.#target }
    const workflow = await findWorkflow(source, writer, words, { signal })
    await requireParent(source, this.#target, { signal })
    const entries = await this.#look(workflow?.checksEntries ?? false)
    workflow?.checkEntries(entries)
    return await withTemporary(options.cacheDir, async path => {
      const manifest = new ManifestWriter(path, { message, userMeta, workflow: workflow?.header })
      let written: WrittenManifest
      try {
        await this.#storeAll(manifest)
        written = manifest.finish()
      } finally {
        manifest.close()
      }
      const file = await LocalFile.open(path, this.workers)
      try {
        const { topHash } = written
        const { isNew } = await publishRevision(source, writer, this.#target, { topHash, file }, { signal })
        return { ...written, uploaded: this.#uploaded, reused: this.#reused, isNew }
      } finally {
        await file.close()
      }
    })
  }

  /** Every name is seen before anything is uploaded. The list is for rules about entries, and empty without them. */
  async #look(isListed: boolean): Promise<WorkflowEntry[]> {
    const { dir, registry, name, signal, onSkipped } = this.options
    await this.#requireOutside()
    const entries: WorkflowEntry[] = []
    let files = 0
    for await (const { key, path, size } of walkFolder(dir, { signal, onSkipped })) {
      if (registry.kind === 's3' && Buffer.byteLength(`${name}/${key}`) > OBJECT_KEY_BYTES_MAX) {
        const reason = `S3 takes keys of ${OBJECT_KEY_BYTES_MAX} bytes, the package's name included`
        throw new BobbinError('INVALID_ARGUMENT', `${JSON.stringify(path)} cannot be in a package: ${reason}`)
      }
      files++
      this.#bytesTotal += size
      if (isListed) entries.push({ logical_key: key, size, meta: {} })
    }
    if (files === 0) throw new BobbinError('INVALID_ARGUMENT', `nothing to push: there is no file in ${dir}`)
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

  async #storeAll(manifest: ManifestWriter): Promise<void> {
    const { dir, signal } = this.options
    const ordered = new InOrder<Entry>(entry => manifest.addEntry(entry))
    await concurrently(numbered(walkFolder(dir, { signal })), FILES_AT_ONCE, signal, async ({ index, item }, stop) => {
      ordered.add(index, await this.#store(item, stop))
    })
  }

  async #store({ key, path }: FoundFile, signal: AbortSignal): Promise<Entry> {
    const { registry, name } = this.options
    const file = await LocalFile.open(path, this.workers)
    let reported = 0
    const report = (bytes: number) => {
      this.#bytesUnderWay += bytes - reported
      reported = bytes
      this.#progress()
    }
    try {
      const place = objectPlace(registry, name, key)
      const { physicalKey, hash, isReused } = await this.writer.store(file, place, { signal, onBytes: report })
      if (isReused) this.#reused++
      else this.#uploaded++
      this.#bytesDone += file.size
      return { key, size: file.size, hash, physicalKey }
    } finally {
      report(0)
      await file.close()
    }
  }

  #progress(): void {
    const bytes = this.#bytesDone + this.#bytesUnderWay
    this.options.onProgress?.({ bytes, bytesTotal: this.#bytesTotal })
  }
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

/** A path for a manifest under way, below the cache as all of them. */
export async function withTemporary<T>(cacheDir: string, use: (path: string) => Promise<T>): Promise<T> {
  const folder = join(cacheDir, 'tmp')
  await mkdir(folder, { recursive: true, mode: 0o750 }).catch(error =>
    Promise.reject(localError(`make the folder ${folder}`, error)),
  )
  const path = join(folder, `${process.pid}-${randomBytes(6).toString('hex')}.manifest`)
  try {
    return await use(path)
  } finally {
    await rm(path, { force: true })
  }
}
