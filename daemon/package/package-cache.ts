/**
 * Opens one revision of a package: resolves it, brings its manifest here once, compiles the index
 * once, and from then on opens the files.
 *
 *   <cache>/packages/v1/<registry>/url                    which registry this is, for people
 *   <cache>/packages/v1/<registry>/<top hash>/<sha256>.manifest and .index
 *   <cache>/packages/v1/<registry>/names/<ns>@<name>.json what the pointers said last, for --offline
 *   <cache>/tmp/<pid>-…                                   whatever is being written
 *
 * <registry> is derived from the registry's address and <sha256> is that of the manifest's bytes:
 * the top hash does not cover physical keys, so nothing here is shared by top hash alone. Where there are several
 * manifests of one top hash, the one that was fetched last counts. Files appear by rename, so any number of processes may do this at once without a lock.
 */
import { createHash, randomBytes } from 'node:crypto'
import { mkdir, open, readdir, readFile, rename, rm, stat, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { PackageIndex } from '../index/package-index.js'
import { compileManifest } from '../manifest/compile.js'
import {
  BobbinError,
  hasCode,
  isTopHash,
  localError,
  type PackageName,
  type Reading,
  type Registry,
  type Source,
  systemCode,
  type TopHash,
} from '../model/index.js'
import { formatRegistry, type PackageReference } from '../registry/reference.js'
import { findTimestampMs, manifestKey, resolveRevision } from '../registry/registry.js'
import { type CacheRoom, unownedRoom } from '../store/cache-room.js'
import { markUsed } from '../store/compiled-files.js'

/** What takes long, as it goes on. `total` is 0 while it is not known. */
export interface OpenProgress {
  readonly phase: 'resolve' | 'manifest'
  readonly done: number
  readonly total: number
}

export interface OpenOptions {
  readonly cacheDir: string
  readonly source: Source
  /** Ask nobody: only what the cache holds. */
  readonly offline?: boolean
  /** Leave hostile rows out instead of refusing the package. */
  readonly quarantine?: boolean
  /** Where the manifest and the index take their room from. Default: unownedRoom. */
  readonly room?: CacheRoom | undefined
  readonly onProgress?: ((progress: OpenProgress) => void) | undefined
  /** Something that a person should know, in words. */
  readonly onNote?: ((text: string) => void) | undefined
  readonly signal?: AbortSignal | undefined
}

/** One revision, open. Whoever opened it closes it. */
export interface OpenedPackage {
  readonly registry: Registry
  readonly name: PackageName
  readonly topHash: TopHash
  /** When the revision was pushed, by its newest pointer; without one, when its manifest was written. */
  readonly timestampMs: number
  /** The present index; `rebuild` puts another one in its place. */
  readonly index: PackageIndex
  readonly indexPath: string
  readonly manifestPath: string
  /** After INDEX_DAMAGED: makes the index again, from the cached manifest or, if that is damaged too, from the registry. */
  rebuild(): Promise<void>
  /**
   * Fetches the manifest once more, since objects may have moved, and puts its index in the place of the present one where it is another.
   * Does nothing when that was done within the last minute. Throws what the registry and the compiler throw; then nothing has changed.
   */
  fetchAgain(): Promise<void>
  close(): void
}

/** Readers that loop over objects which are gone for good must not have a large manifest fetched all the time. */
const FETCH_AGAIN_MS = 60_000

/**
 * Throws what the registry and the compiler throw (REVISION_NOT_FOUND, PACKAGE_REFUSED,
 * MANIFEST_CORRUPT, UPSTREAM_UNAVAILABLE, …). Nothing half-made is left behind.
 */
export async function openPackage(reference: PackageReference, options: OpenOptions): Promise<OpenedPackage> {
  const folder = new RegistryFolder(options.cacheDir, reference.registry)
  options.onProgress?.({ phase: 'resolve', done: 0, total: 0 })
  const topHash = await resolveTopHash(reference, options)
  const files = new RevisionFiles(folder, topHash, options)
  const index = await files.openIndex()
  try {
    refuseQuarantined(index, options)
    const timestampMs = await revisionTime(reference, topHash, folder, files, options)
    return new CachedPackage(reference, topHash, timestampMs, files, index)
  } catch (error) {
    index.close()
    throw error
  }
}

/**
 * The full top hash that a reference means now; with `--offline`, or a full hash, without asking the registry. A prefix that is
 * unique among the revisions in the cache will do while the registry cannot be reached; where a name points now, it alone knows.
 */
export async function resolveTopHash(reference: PackageReference, options: OpenOptions): Promise<TopHash> {
  const folder = new RegistryFolder(options.cacheDir, reference.registry)
  const { revision } = reference
  if (revision.kind === 'hash' && isTopHash(revision.prefix)) return revision.prefix
  if (!options.offline) {
    const topHash = await resolveRevision(options.source, reference, { signal: options.signal }).catch(
      async (error: unknown) => {
        if (!hasCode(error, 'UPSTREAM_UNAVAILABLE') || revision.kind !== 'hash') throw error
        const cached = await folder.cachedWith(revision.prefix)
        if (cached.length !== 1) throw error
        options.onNote?.(`${error.message}; ${revision.prefix} is taken for ${cached[0]}, as it is in the cache`)
        return cached[0]!
      },
    )
    if (revision.kind !== 'hash') await folder.rememberPointer(reference.name, pointerOf(reference), topHash)
    return topHash
  }
  if (revision.kind !== 'hash') {
    const topHash = (await folder.names(reference.name)).pointers[pointerOf(reference)]
    if (topHash !== undefined) return topHash
    throw new BobbinError(
      'UPSTREAM_UNAVAILABLE',
      `offline: ${reference.name}:${pointerOf(reference)} was not resolved before, and the registry is not asked`,
    )
  }
  const candidates = await folder.cachedWith(revision.prefix)
  if (candidates.length === 1) return candidates[0]!
  if (candidates.length > 1) {
    throw new BobbinError(
      'REVISION_AMBIGUOUS',
      `${revision.prefix} matches several cached revisions: ${candidates.join(', ')}`,
    )
  }
  throw new BobbinError(
    'UPSTREAM_UNAVAILABLE',
    `offline: no cached revision of this registry starts with ${revision.prefix}`,
  )
}

function pointerOf({ revision }: PackageReference): string {
  return revision.kind === 'tag' ? revision.tag : 'latest'
}

async function revisionTime(
  reference: PackageReference,
  topHash: TopHash,
  folder: RegistryFolder,
  files: RevisionFiles,
  options: OpenOptions,
): Promise<number> {
  const known = (await folder.names(reference.name)).timestampsMs[topHash]
  if (known !== undefined) return known
  if (options.offline) return 0
  const found = await findTimestampMs(options.source, reference.registry, reference.name, topHash, {
    signal: options.signal,
  })
  const timestampMs = found ?? files.manifestTimeMs ?? 0
  if (timestampMs > 0) await folder.rememberTimestamp(reference.name, topHash, timestampMs)
  return timestampMs
}

function refuseQuarantined(index: PackageIndex, options: OpenOptions): void {
  if (index.facts.quarantined === 0 || options.quarantine) return
  const first = index.quarantined()[0]!
  throw new BobbinError(
    'PACKAGE_REFUSED',
    `row ${first.row} of the manifest, key ${JSON.stringify(first.key)}: ${first.reason} (--quarantine leaves such rows out)`,
  )
}

class CachedPackage implements OpenedPackage {
  readonly registry: Registry
  readonly name: PackageName
  #rebuilding: Promise<void> | undefined
  #fetching: Promise<void> | undefined
  #fetchedAt = -Infinity
  /** Those before the present one, which somebody may be walking through. */
  readonly #former: PackageIndex[] = []
  readonly #stopMarking: () => void

  constructor(
    reference: PackageReference,
    readonly topHash: TopHash,
    readonly timestampMs: number,
    private readonly files: RevisionFiles,
    private current: PackageIndex,
  ) {
    this.registry = reference.registry
    this.name = reference.name
    this.#stopMarking = markUsed(() => this.indexPath)
  }

  get index(): PackageIndex {
    return this.current
  }
  get indexPath(): string {
    return this.files.pathOf(this.current.facts.manifestSha256, 'index')
  }
  get manifestPath(): string {
    return this.files.pathOf(this.current.facts.manifestSha256, 'manifest')
  }

  rebuild(): Promise<void> {
    this.#rebuilding ??= this.#rebuild().finally(() => {
      this.#rebuilding = undefined
    })
    return this.#rebuilding
  }

  async #rebuild(): Promise<void> {
    const damaged = this.current
    await rm(this.indexPath, { force: true })
    this.current = await this.files.openIndex()
    damaged.close()
  }

  fetchAgain(): Promise<void> {
    if (this.#fetching !== undefined) return this.#fetching
    if (performance.now() < this.#fetchedAt + FETCH_AGAIN_MS) return Promise.resolve()
    this.#fetching = this.#fetchAgain().finally(() => {
      this.#fetchedAt = performance.now()
      this.#fetching = undefined
    })
    return this.#fetching
  }

  async #fetchAgain(): Promise<void> {
    const former = this.current
    // Which rows are left out may depend on physical keys, and so the inode numbers.
    if (former.facts.quarantined > 0) return
    const present = await this.files.newerIndex(former.facts.manifestSha256)
    if (present === undefined) return
    if (present.facts.quarantined > 0 || this.current !== former) return present.close()
    this.current = present
    this.#former.push(former)
  }

  close(): void {
    this.#stopMarking()
    for (const former of this.#former) former.close()
    this.current.close()
  }
}

/** The cached files of one revision of one registry. */
class RevisionFiles {
  readonly #folder: string
  /** When the registry's manifest was written, if it was fetched just now. */
  manifestTimeMs: number | undefined

  constructor(
    private readonly registryFolder: RegistryFolder,
    private readonly topHash: TopHash,
    private readonly options: OpenOptions,
  ) {
    this.#folder = join(registryFolder.path, topHash)
  }

  pathOf(manifestSha256: string, kind: 'manifest' | 'index'): string {
    return join(this.#folder, `${manifestSha256}.${kind}`)
  }

  /** Of the manifest that was fetched last. */
  async #newestSha256(): Promise<string | undefined> {
    const manifests = (await listNames(this.#folder)).filter(name => name.endsWith('.manifest'))
    let newest: { readonly name: string; readonly mtimeMs: number } | undefined
    for (const name of manifests) {
      const mtimeMs = manifests.length === 1 ? 0 : await writtenMs(join(this.#folder, name))
      if (newest === undefined || mtimeMs > newest.mtimeMs) newest = { name, mtimeMs }
    }
    return newest?.name.slice(0, -'.manifest'.length)
  }

  /** `undefined`: the registry has the same manifest. The files of the other one stay: mounts may have them open by their names. */
  async newerIndex(sha256: string): Promise<PackageIndex | undefined> {
    if (this.options.offline) return undefined
    const newest = await this.#newestSha256()
    const index = newest === undefined || newest === sha256 ? await this.#fetchAndCompile() : this.#open(newest)
    if (index.facts.manifestSha256 !== sha256) return index
    index.close()
    return undefined
  }

  /** Opens what is there; makes what is missing or damaged. */
  async openIndex(): Promise<PackageIndex> {
    const sha256 = await this.#newestSha256()
    if (sha256 === undefined) return this.#fetchAndCompile()
    try {
      return this.#open(sha256)
    } catch (error) {
      if (!hasCode(error, 'INDEX_DAMAGED')) throw error
    }
    try {
      await this.#compile(this.pathOf(sha256, 'manifest'), sha256)
    } catch (error) {
      if (!hasCode(error, 'MANIFEST_CORRUPT', 'PACKAGE_REFUSED', 'LOCAL_IO')) throw error
      // The cached manifest was sound once, or it would not have this name. Whatever is wrong now, the registry's decides.
      await rm(this.pathOf(sha256, 'manifest'), { force: true })
      return this.#fetchAndCompile()
    }
    return this.#open(sha256)
  }

  #open(sha256: string): PackageIndex {
    const index = new PackageIndex(this.pathOf(sha256, 'index'), this.pathOf(sha256, 'manifest'))
    if (index.facts.topHash === this.topHash && index.facts.manifestSha256 === sha256) return index
    index.close()
    throw new BobbinError('INDEX_DAMAGED', `${this.pathOf(sha256, 'index')} is the index of another manifest`)
  }

  /** Compiled while it arrives. */
  async #fetchAndCompile(): Promise<PackageIndex> {
    const { source, signal, offline } = this.options
    if (offline) throw new BobbinError('UPSTREAM_UNAVAILABLE', `offline: the manifest of ${this.topHash} is not cached`)
    const { registry } = this.registryFolder
    const reading = await source
      .read(manifestKey(registry, this.topHash), signal ? { signal } : {})
      .catch((error: unknown) => {
        if (!hasCode(error, 'OBJECT_GONE')) throw error
        throw new BobbinError('REVISION_NOT_FOUND', `no revision ${this.topHash} in ${formatRegistry(registry)}`, {
          cause: error,
        })
      })
    this.manifestTimeMs = reading.lastModified?.getTime()
    const temporary = await this.registryFolder.temporary('manifest')
    try {
      const sha256 = await this.#compile(temporary, undefined, reading)
      await renameInCache(temporary, this.pathOf(sha256, 'manifest'))
      return this.#open(sha256)
    } finally {
      await rm(temporary, { force: true })
    }
  }

  /** Returns the manifest's SHA-256. `sha256`: what it must be. */
  async #compile(manifestPath: string, sha256: string | undefined, reading?: Reading): Promise<string> {
    const { onProgress, signal, quarantine } = this.options
    const temporary = await this.registryFolder.temporary('index')
    const hold = (this.options.room ?? unownedRoom(this.options.cacheDir)).hold(`the package ${this.topHash}`)
    const total = reading ? reading.objectBytes : await fileBytes(manifestPath)
    try {
      const compiled = await compileManifest({
        manifestPath,
        arriving: reading?.chunks,
        manifestBytes: total,
        indexPath: temporary,
        topHash: this.topHash,
        registry: this.registryFolder.registry,
        quarantine: quarantine ?? false,
        onBytes: onProgress && (done => onProgress({ phase: 'manifest', done, total: total ?? 0 })),
        beforeBytes: bytes => hold.grow(bytes),
        signal,
      })
      if (sha256 !== undefined && compiled.manifestSha256 !== sha256) {
        throw new BobbinError('MANIFEST_CORRUPT', `the cached manifest of ${this.topHash} was changed`)
      }
      await makeFolder(this.#folder)
      await renameInCache(temporary, this.pathOf(compiled.manifestSha256, 'index'))
      return compiled.manifestSha256
    } finally {
      await rm(temporary, { force: true })
      hold.end()
    }
  }
}

/** What the pointers of one package said when they were last read. */
interface RememberedNames {
  readonly pointers: Readonly<Record<string, TopHash>>
  readonly timestampsMs: Readonly<Record<string, number>>
}

/** Everything cached of one registry. */
class RegistryFolder {
  readonly path: string

  constructor(
    private readonly cacheDir: string,
    readonly registry: Registry,
  ) {
    const id = createHash('sha256').update(formatRegistry(registry)).digest('hex').slice(0, 16)
    this.path = join(cacheDir, 'packages', 'v1', id)
  }

  async temporary(kind: string): Promise<string> {
    const folder = join(this.cacheDir, 'tmp')
    await makeFolder(folder)
    return join(folder, `${process.pid}-${randomBytes(6).toString('hex')}.${kind}`)
  }

  /** Top hashes that start so. */
  async cachedWith(prefix: string): Promise<TopHash[]> {
    return (await listNames(this.path)).filter(isTopHash).filter(hash => hash.startsWith(prefix))
  }

  #namesPath(name: PackageName): string {
    return join(this.path, 'names', `${encodeURIComponent(name.replace('/', '@'))}.json`)
  }

  async names(name: PackageName): Promise<RememberedNames> {
    try {
      const found = JSON.parse(await readFile(this.#namesPath(name), 'utf8')) as Partial<RememberedNames>
      return { pointers: found.pointers ?? {}, timestampsMs: found.timestampsMs ?? {} }
    } catch {
      // Missing or damaged: it only remembers, so it starts empty.
      return { pointers: {}, timestampsMs: {} }
    }
  }

  async rememberPointer(name: PackageName, pointer: string, topHash: TopHash): Promise<void> {
    const { pointers, timestampsMs } = await this.names(name)
    if (pointers[pointer] === topHash) return
    await this.#writeNames(name, { pointers: { ...pointers, [pointer]: topHash }, timestampsMs })
  }

  async rememberTimestamp(name: PackageName, topHash: TopHash, timestampMs: number): Promise<void> {
    const { pointers, timestampsMs } = await this.names(name)
    await this.#writeNames(name, { pointers, timestampsMs: { ...timestampsMs, [topHash]: timestampMs } })
  }

  /** Only remembered, for later: a disk that is full now fails nobody who reads what is here. */
  async #writeNames(name: PackageName, names: RememberedNames): Promise<void> {
    let temporary: string | undefined
    try {
      await makeFolder(join(this.path, 'names'))
      await writeFile(join(this.path, 'url'), `${formatRegistry(this.registry)}\n`, { mode: 0o640 })
      temporary = await this.temporary('names')
      await writeFile(temporary, JSON.stringify(names), { mode: 0o640 })
      await rename(temporary, this.#namesPath(name))
    } catch (error) {
      if (temporary !== undefined) await rm(temporary, { force: true })
      const ours = localError(`write ${this.#namesPath(name)}`, error)
      if (!hasCode(ours, 'STORE_FULL')) throw ours
    }
  }
}

/** Readable by the owner's group alone: bytes fetched with one person's credentials are not another's. */
async function makeFolder(path: string): Promise<void> {
  await mkdir(path, { recursive: true, mode: 0o750 }).catch(error =>
    Promise.reject(localError(`make the folder ${path}`, error)),
  )
}

async function renameInCache(from: string, to: string): Promise<void> {
  await rename(from, to).catch(error => Promise.reject(localError(`write ${to}`, error)))
}

async function listNames(folder: string): Promise<string[]> {
  return readdir(folder).catch(error => {
    if (systemCode(error) === 'ENOENT') return []
    throw localError(`list ${folder}`, error)
  })
}

/** 0: it has gone meanwhile. */
async function writtenMs(path: string): Promise<number> {
  return stat(path).then(
    ({ mtimeMs }) => mtimeMs,
    () => 0,
  )
}

async function fileBytes(path: string): Promise<number> {
  const file = await open(path).catch(error => Promise.reject(localError(`read ${path}`, error)))
  try {
    return (await file.stat()).size
  } finally {
    await file.close()
  }
}
