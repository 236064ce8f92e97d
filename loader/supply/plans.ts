/**
 * The plans that this sidecar knows: their documents and sample tables lie in the cache, so they are known
 * again after a restart.
 *
 *   <cache>/loader/v1/<plan id>.json    the document, and the places where the package is
 *   <cache>/loader/v1/<plan id>.table   which inodes each sample has (loader/supply/sample-table.ts)
 *
 * Whoever posts a plan that is known, of another registry, adds a place to it and moves nothing: others go on reading
 * where they did. Loaders of one cache share these files; each uses of a plan's places those that it serves.
 */
import { readdirSync, readFileSync, renameSync, rmSync, statSync, utimesSync } from 'node:fs'
import { basename, join } from 'node:path'
import { runConfined } from '../../daemon/confined/confined.js'
import {
  BobbinError,
  hasCode,
  type Log,
  localError,
  parsePackageName,
  type Source,
  systemCode,
} from '../../daemon/model/index.js'
import type { OpenedPackage, OpenOptions } from '../../daemon/package/package-cache.js'
import { formatRegistry, parseReference, parseRegistry } from '../../daemon/registry/reference.js'
import { type CacheRoom, unownedRoom } from '../../daemon/store/cache-room.js'
import { makeFolderDurablySync, objectsFolder, writeDurablySync } from '../../daemon/store/index.js'
import { selectionLimits } from '../batch/selection-limits.js'
import {
  normalisePlan,
  type PlanBody,
  type PlanDocument,
  type PlanId,
  parsePlanId,
  planIdOf,
} from '../plan/plan-document.js'
import { Builders, type Client } from './builders.js'
import { isSamePlace, type PackageAddress } from './daemon-leases.js'
import type { Door } from './door.js'
import { OpenPlan } from './open-plan.js'
import { SampleTable, type TableFacts, tableBytesMax } from './sample-table.js'
import type { TableTask } from './table-worker.js'

export interface PlansOptions {
  /** Whose store the objects are in. */
  readonly cacheDir: string
  /** Where plans and manifests are kept. Default: in the cache. */
  readonly stateDir?: string | undefined
  readonly source: Source
  readonly offline: boolean
  readonly defaultRegistry: string | undefined
  readonly door: Door
  /** Where clients have a package mounted. */
  readonly mountedAt?: (address: PackageAddress) => string | undefined
  /** Of several places of a plan, these come first. */
  readonly preferred?: readonly PackageAddress[]
  readonly log: Log
  /** Where packages and tables take their room from. Default: unownedRoom. */
  readonly room?: CacheRoom | undefined
}

interface StoredPlan {
  readonly document: PlanDocument
  /** Where it was made of. */
  readonly address: PackageAddress
  /** Other places of the same revision, the newest last. */
  readonly others?: readonly PackageAddress[]
}

interface Use {
  readonly opening: Promise<OpenPlan>
  users: number
}

/** Who asks, and whether they still wait. */
export interface Caller {
  readonly client: Client
  readonly signal: AbortSignal
}

/** A plan that is being made. When nobody waits for it any more, it is given up. */
interface Building {
  readonly made: Promise<void>
  readonly givingUp: AbortController
  clients: number
}

/** Open at once, but for those in use; each holds four descriptors and up to 80 MiB. */
const OPEN_MAX = 8
/** Of one plan, besides the first. */
const OTHERS_MAX = 7
/** In the cache; the oldest go. */
const STORED_MAX = 1000

export class Plans {
  readonly #open = new Map<PlanId, Use>()
  readonly #building = new Map<PlanId, Building>()
  readonly #folder: string
  readonly #builders = new Builders()
  /** Begun so far. */
  #tasks = 0
  /** Ends what is under way. */
  readonly #closing = new AbortController()

  constructor(private readonly options: PlansOptions) {
    this.#folder = join(options.stateDir ?? options.cacheDir, 'loader', 'v1')
    try {
      makeFolderDurablySync(this.#folder, { mode: 0o750 })
    } catch (error) {
      throw localError(`make the folder ${this.#folder}`, error)
    }
  }

  get #openOptions(): OpenOptions & { readonly room: CacheRoom } {
    const { cacheDir, stateDir = cacheDir, source, offline, room = unownedRoom(stateDir) } = this.options
    return { cacheDir: stateDir, source, offline, room }
  }

  get #objectsFolder(): string {
    return objectsFolder(this.options.cacheDir)
  }

  /**
   * Throws INVALID_ARGUMENT (a plan that makes no sense, with what is wrong), and what resolving and opening the
   * package throw. `admit` may refuse the plan before it is kept.
   */
  async create(
    body: PlanBody,
    admit: (facts: TableFacts) => Promise<void>,
    caller: Caller,
  ): Promise<{ id: PlanId; isNew: boolean }> {
    const { defaultRegistry } = this.options
    const reference = parseReference(body.package, {
      ...(body.topHash != null && { topHash: body.topHash }),
      ...(defaultRegistry !== undefined && { defaultRegistry }),
    })
    const opened = await this.options.door.open(reference, this.#openOptions)
    try {
      const document = normalisePlan(body, opened.topHash)
      const id = planIdOf(document)
      const address = { registry: formatRegistry(opened.registry), package: opened.name, topHash: opened.topHash }
      const known = this.#read(id)
      if (known !== undefined) {
        this.#addPlace(id, known, address)
        return { id, isNew: false }
      }
      const isNew = !this.#building.has(id)
      await this.#join(
        this.#building.get(id) ?? this.#begin(id, { document, address }, opened, admit, caller),
        id,
        caller,
      )
      return { id, isNew }
    } finally {
      opened.close()
    }
  }

  /** Open while `run` runs. Throws PLAN_NOT_FOUND, and what opening throws. */
  async use<T>(text: string, run: (plan: OpenPlan) => Promise<T>): Promise<T> {
    const id = parsePlanId(text)
    const use = this.#open.get(id) ?? this.#openKnown(id)
    // The last in the map is the one that was used last.
    this.#open.delete(id)
    this.#open.set(id, use)
    use.users++
    try {
      const plan = await use.opening
      return await plan.healing(() => run(plan))
    } catch (error) {
      const isOpen = await use.opening.then(
        () => true,
        () => false,
      )
      if (!isOpen && this.#open.get(id) === use) this.#open.delete(id)
      throw error
    } finally {
      use.users--
      if (this.#open.get(id) !== use) this.#closeUnused(use)
      this.#closeIdle()
    }
  }

  /** By the first digits of its id. Of plans that are not served here nothing is told, least of all the other digits. */
  async useByPrefix<T>(prefix: string, run: (plan: OpenPlan) => Promise<T>): Promise<T> {
    const names = readdirSync(this.#folder).filter(name => name.startsWith(prefix) && name.endsWith('.json'))
    const ids = names.map(name => name.slice(0, -'.json'.length)).filter(id => this.#isServed(id))
    if (ids.length === 1) return this.use(ids[0]!, run)
    throw new BobbinError('PLAN_NOT_FOUND', `this sidecar has no plan ${prefix}…: post it to /v1/plans first`)
  }

  /** Of all plans that are served here, the newest first; read as they are asked for. */
  *addresses(): Generator<PackageAddress> {
    for (const { id } of this.#stored()) {
      const stored = this.#read(id)
      if (stored !== undefined) yield* this.#placesOf(stored).slice(0, 1)
    }
  }

  async close(): Promise<void> {
    this.#closing.abort()
    await Promise.allSettled([...this.#building.values()].map(({ made }) => made))
    for (const { opening } of this.#open.values()) (await opening.catch(() => undefined))?.close()
  }

  #begin(
    id: PlanId,
    stored: StoredPlan,
    opened: OpenedPackage,
    admit: (facts: TableFacts) => Promise<void>,
    { client }: Caller,
  ): Building {
    const givingUp = new AbortController()
    const signal = AbortSignal.any([givingUp.signal, this.#closing.signal])
    const made = this.#build(id, stored, opened, admit, { client, signal })
    const building = { made, givingUp, clients: 0 }
    this.#building.set(id, building)
    const forget = () => {
      if (this.#building.get(id) === building) this.#building.delete(id)
    }
    givingUp.signal.addEventListener('abort', forget)
    void made.finally(forget).catch(() => {})
    return building
  }

  async #join(building: Building, id: PlanId, { signal }: Caller): Promise<void> {
    building.clients++
    const leave = () => {
      if (--building.clients > 0) return
      this.options.log.info({ plan: id }, 'gave up a plan that nobody waits for')
      building.givingUp.abort()
    }
    if (signal.aborted) leave()
    else signal.addEventListener('abort', leave, { once: true })
    try {
      await building.made
    } finally {
      signal.removeEventListener('abort', leave)
    }
  }

  async #build(
    id: PlanId,
    stored: StoredPlan,
    opened: OpenedPackage,
    admit: (facts: TableFacts) => Promise<void>,
    caller: Caller,
  ): Promise<void> {
    const { log } = this.options
    const path = this.#path(id, 'table')
    const started = Date.now()
    const facts = await this.#makeTable(opened, stored.document, path, caller)
    try {
      await admit(facts)
    } catch (error) {
      rmSync(path, { force: true })
      throw error
    }
    this.#write(id, stored)
    this.#forgetOldest()
    log.info({ plan: id, ...stored.address, samples: facts.samples, ms: Date.now() - started }, 'made a plan')
  }

  async #makeTable(
    opened: OpenedPackage,
    document: PlanDocument,
    path: string,
    { client, signal }: Caller,
  ): Promise<TableFacts> {
    const { indexPath, manifestPath, index } = opened
    const run = () => this.#runTask({ indexPath, manifestPath, document, path }, index.facts.entries, signal)
    return this.#builders.run(client, signal, async () => {
      const hold = this.#openOptions.room.hold(`a plan of the package ${opened.topHash}`)
      try {
        await hold.grow(tableBytesMax(index.facts.entries))
        return await run()
      } catch (error) {
        if (!hasCode(error, 'INDEX_DAMAGED')) throw error
        await opened.rebuild()
        return await run()
      } finally {
        hold.end()
      }
    })
  }

  /** In a process of its own: what is selected is said by whoever asks, and a plan of a million entries takes seconds. */
  async #runTask(task: TableTask, entries: number, signal: AbortSignal): Promise<TableFacts> {
    // Its own name, since a process that is ended leaves what it has written so far.
    const path = `${task.path}.${process.pid}-${++this.#tasks}`
    try {
      const options = { what: 'make the plan', signal, ...selectionLimits(entries) }
      const module = new URL('./table-worker.js', import.meta.url)
      const facts = await runConfined<TableFacts>(module, { ...task, path }, options)
      renameSync(path, task.path)
      return facts
    } catch (error) {
      const left = readdirSync(this.#folder).filter(name => name.startsWith(basename(path)))
      for (const name of left) rmSync(join(this.#folder, name), { force: true })
      throw error
    }
  }

  #openKnown(id: PlanId): Use {
    const stored = this.#read(id)
    const places = stored === undefined ? [] : this.#placesOf(stored)
    if (stored === undefined || places.length === 0)
      throw new BobbinError('PLAN_NOT_FOUND', `this sidecar has no plan ${id}: post it to /v1/plans first`)
    return { opening: this.#openStored(id, stored.document, places), users: 0 }
  }

  #isServed(id: string): boolean {
    const stored = this.#read(id)
    return stored !== undefined && this.#placesOf(stored).length > 0
  }

  /** Those that are served here. */
  #placesOf({ address, others = [] }: StoredPlan): PackageAddress[] {
    const { door, preferred = [] } = this.options
    const served = [address, ...others].filter(place => door.admits(place))
    const isPreferred = (place: PackageAddress) => preferred.some(one => isSamePlace(one, place))
    return [...served.filter(isPreferred), ...served.filter(place => !isPreferred(place))]
  }

  async #openStored(id: PlanId, document: PlanDocument, places: readonly PackageAddress[]): Promise<OpenPlan> {
    const opened = await this.#openFirst(places)
    const path = this.#path(id, 'table')
    const makeTable = async () => {
      const client = { listener: this, name: id }
      await this.#makeTable(opened, document, path, { client, signal: this.#closing.signal })
      return new SampleTable(path, id)
    }
    try {
      let table: SampleTable
      try {
        table = new SampleTable(path, id)
      } catch {
        // Damaged, of another version, or gone: it follows from the package and the document.
        table = await makeTable()
      }
      const now = new Date()
      utimesSync(this.#path(id, 'json'), now, now)
      const mountedAt = this.options.mountedAt?.(places[0]!)
      return new OpenPlan(id, document, places, opened, table, this.#objectsFolder, mountedAt, makeTable)
    } catch (error) {
      opened.close()
      throw error
    }
  }

  /** Of the first place that has it; throws what the first one threw. */
  async #openFirst(places: readonly PackageAddress[]): Promise<OpenedPackage> {
    let failure: unknown
    for (const { registry, package: name, topHash } of places) {
      const revision = { kind: 'hash', prefix: topHash } as const
      const reference = { registry: parseRegistry(registry), name: parsePackageName(name), revision }
      try {
        return await this.options.door.open(reference, this.#openOptions)
      } catch (error) {
        failure ??= error
      }
    }
    throw failure
  }

  #closeIdle(): void {
    for (const [id, use] of this.#open) {
      if (this.#open.size <= OPEN_MAX) return
      if (use.users > 0) continue
      this.#open.delete(id)
      this.#closeUnused(use)
    }
  }

  #closeUnused({ users, opening }: Use): void {
    if (users === 0) void opening.then(plan => plan.close()).catch(() => {})
  }

  /** Its package is to be had elsewhere, too; whoever uses it at the moment goes on without. */
  #addPlace(id: PlanId, known: StoredPlan, place: PackageAddress): void {
    const { address, others = [] } = known
    if ([address, ...others].some(one => isSamePlace(one, place))) return
    this.#write(id, { ...known, others: [...others, place].slice(-OTHERS_MAX) })
    const use = this.#open.get(id)
    this.#open.delete(id)
    if (use !== undefined) this.#closeUnused(use)
    this.options.log.info({ plan: id, ...place }, 'a plan has another place')
  }

  #write(id: PlanId, stored: StoredPlan): void {
    // Its id is given away, and may be used after a power cut. (Its table can be made again.)
    writeDurablySync(this.#path(id, 'json'), JSON.stringify(stored), { mode: 0o640 })
  }

  #read(id: string): StoredPlan | undefined {
    try {
      return JSON.parse(readFileSync(this.#path(id, 'json'), 'utf8')) as StoredPlan
    } catch (error) {
      if (systemCode(error) === 'ENOENT') return undefined
      this.options.log.error({ plan: id, error: String(error) }, 'a stored plan cannot be read, and is dropped')
      rmSync(this.#path(id, 'json'), { force: true })
      return undefined
    }
  }

  #stored(): { id: string; usedMs: number }[] {
    return readdirSync(this.#folder)
      .filter(name => /^[0-9a-f]{64}\.json$/.test(name))
      .map(name => ({
        id: name.slice(0, 64),
        usedMs: statSync(join(this.#folder, name), { throwIfNoEntry: false })?.mtimeMs ?? 0,
      }))
      .sort((a, b) => b.usedMs - a.usedMs)
  }

  #forgetOldest(): void {
    for (const { id } of this.#stored().slice(STORED_MAX)) {
      if (this.#open.has(id as PlanId)) continue
      for (const kind of ['json', 'table'] as const) rmSync(this.#path(id, kind), { force: true })
    }
  }

  #path(id: string, kind: 'json' | 'table'): string {
    return join(this.#folder, `${id}.${kind}`)
  }
}
