/** A plan at work: which samples a step has, what is known of each, and which objects they need. */
import { LRUCache } from 'lru-cache'
import { standardCanonicalJson } from '../../daemon/json/python-json.js'
import { BobbinError, type Entry, hasCode } from '../../daemon/model/index.js'
import type { OpenedPackage } from '../../daemon/package/package-cache.js'
import { objectId } from '../../daemon/store/index.js'
import type { PackedObject } from '../batch/packing.js'
import { sampleBody } from '../format/paths.js'
import { hashText, type SampleMembers, sampleMembers } from '../format/shard.js'
import { formatCursor } from '../plan/cursor.js'
import { Epoch } from '../plan/epoch.js'
import type { PlanDocument, PlanId } from '../plan/plan-document.js'
import { sampleNameOf } from '../plan/samples.js'
import type { PackageAddress } from './daemon-leases.js'
import type { SampleTable } from './sample-table.js'

export interface SampleEntry {
  readonly ino: number
  readonly suffix: string
  readonly entry: Entry
  /** Where clients find it, below their `folder`. */
  readonly path: string
  readonly packed: PackedObject
}

/** What is the same in every epoch. */
export interface SampleFacts {
  readonly entries: readonly SampleEntry[]
  /** JSON text: metadata by suffix. */
  readonly meta: string
  readonly members: SampleMembers
  /** Its part of a line of paths. */
  readonly body: string
  /** Of its files together. */
  readonly bytes: number
}

export interface PlacedSample {
  readonly pos: number
  readonly isPad: boolean
  readonly facts: SampleFacts
}

/** One rank's part of a step, or samples that were asked for one by one (step null). */
export interface StepContent {
  readonly epoch: number
  readonly step: number | null
  readonly samples: readonly PlacedSample[]
  /** Of all their files, in order; repeated samples are in it twice. */
  readonly inos: readonly number[]
  readonly bytes: number
}

export interface RankOf {
  readonly rank: number
  readonly world: number
}

/** A few kilobytes a sample: about 15,000 samples, 50 MiB. */
const CACHED_CHARACTERS_MAX = 8 * 2 ** 20
const EPOCHS_MAX = 8
/** A distance that nobody knows. */
const UNKNOWN = -1

export class OpenPlan {
  readonly #samples = new LRUCache<number, SampleFacts>({
    maxSize: CACHED_CHARACTERS_MAX,
    sizeCalculation: ({ meta, body }) => meta.length + body.length + 200,
  })
  #isOpen = true
  #rebuilding: Promise<void> | undefined
  readonly #epochs = new LRUCache<number, Epoch>({ max: EPOCHS_MAX })

  constructor(
    readonly id: PlanId,
    readonly document: PlanDocument,
    /** Where its objects may be had: at least one place, the first one first. */
    readonly places: readonly PackageAddress[],
    private readonly opened: OpenedPackage,
    private table: SampleTable,
    private readonly objectsFolder: string,
    /** Where clients have the package mounted; `undefined`: they read below the objects folder, as this process does. */
    private readonly mountedAt: string | undefined,
    private readonly rebuildTable: () => Promise<SampleTable>,
  ) {}

  get address(): PackageAddress {
    return this.places[0]!
  }

  /** What the paths of its samples are below. */
  get folder(): string {
    return this.mountedAt ?? this.objectsFolder
  }

  get facts() {
    return this.table.facts
  }

  get stepsPerEpoch(): number {
    return this.epoch(0).steps
  }

  epoch(number: number): Epoch {
    let epoch = this.#epochs.get(number)
    if (epoch === undefined) {
      epoch = new Epoch(this.document, this.table.facts.samples, number)
      this.#epochs.set(number, epoch)
    }
    return epoch
  }

  /** The resume point in front of a step; behind the last one it is the next epoch's first. */
  cursorAt(epoch: number, step: number): string {
    const isOver = step >= this.stepsPerEpoch
    return formatCursor({
      topHash: this.document.topHash,
      planId: this.id,
      epoch: isOver ? epoch + 1 : epoch,
      position: isOver ? 0 : step * this.document.batch.global,
    })
  }

  /** Throws INVALID_ARGUMENT for a rank or a world size that the plan cannot have, or a step that the epoch has not. */
  step(epochNumber: number, step: number, { rank, world }: RankOf): StepContent {
    const { first, end } = this.epoch(epochNumber).slice(step, rank, world)
    const positions = Array.from({ length: end - first }, (_, i) => first + i)
    return this.#place(epochNumber, step, positions)
  }

  /** Of a rank's part of a step. Throws as `step` does. */
  samplesIn(epochNumber: number, step: number, { rank, world }: RankOf): number {
    const { first, end } = this.epoch(epochNumber).slice(step, rank, world)
    return end - first
  }

  at(epochNumber: number, positions: readonly number[]): StepContent {
    const epoch = this.epoch(epochNumber)
    for (const position of positions) {
      if (position >= epoch.positions)
        throw new BobbinError('INVALID_ARGUMENT', `position ${position}: an epoch of this plan has ${epoch.positions}`)
    }
    return this.#place(epochNumber, null, positions)
  }

  /** Where a cursor points. */
  place({ epoch, position }: { readonly epoch: number; readonly position: number }): { epoch: number; step: number } {
    return { epoch, step: Math.floor(position / this.document.batch.global) }
  }

  /** The text of a sample of which some files cannot be had. */
  bodyWithErrors({ entries, meta }: SampleFacts, failed: ReadonlyMap<number, BobbinError>): string {
    const texts = entries.map(({ ino, suffix, entry, path }) => {
      const error = failed.get(ino)
      return [suffix, fileText(entry, path, error)] as const
    })
    return sampleBody(texts, this.document.meta === null ? null : meta)
  }

  /** Bytes until each of the content's objects is needed again by this plan, in the order of `inos`. */
  distances(content: StepContent): number[] {
    const epoch = this.epoch(content.epoch)
    const meanBytes = this.facts.bytes / this.facts.samples
    const distances: number[] = []
    for (const { pos, facts } of content.samples) {
      const distance = Math.round(epoch.nextUse(pos) * meanBytes)
      for (let i = 0; i < facts.entries.length; i++) distances.push(Number.isFinite(distance) ? distance : UNKNOWN)
    }
    return distances
  }

  #place(epochNumber: number, step: number | null, positions: readonly number[]): StepContent {
    const epoch = this.epoch(epochNumber)
    const samples: PlacedSample[] = []
    const inos: number[] = []
    let bytes = 0
    for (const pos of positions) {
      const { sample, isPad } = epoch.sampleAt(pos)
      const facts = this.#sample(sample)
      samples.push({ pos, isPad, facts })
      for (const { ino } of facts.entries) inos.push(ino)
      bytes += facts.bytes
    }
    return { epoch: epochNumber, step, samples, inos, bytes }
  }

  entriesOf(sample: number): Entry[] {
    return this.#sample(sample).entries.map(({ entry }) => entry)
  }

  #sample(sample: number): SampleFacts {
    const cached = this.#samples.get(sample)
    if (cached !== undefined) return cached
    const { index } = this.opened
    const files = this.table.members(sample).map(ino => {
      const entry = index.entry(ino)
      const { suffix } = sampleNameOf(entry.key.slice(entry.key.lastIndexOf('/') + 1))
      const id = objectId(entry)
      const slashAt = id.indexOf('/')
      const object = `${id.slice(0, slashAt)}/${id.slice(slashAt + 1, slashAt + 3)}/${id.slice(slashAt + 1)}`
      const path = this.mountedAt === undefined ? object : entry.key
      const { size, hash } = entry
      return { ino, suffix, entry, path, packed: { path: `${this.objectsFolder}/${object}`, size, hash } }
    })
    const meta = `{${files.map(({ ino, suffix }) => `${JSON.stringify(suffix)}:${canonicalText(index.metadata(ino))}`).join(',')}}`
    const texts = files.map(({ suffix, entry, path }) => [suffix, fileText(entry, path)] as const)
    const facts = {
      entries: files,
      meta,
      members: sampleMembers(
        files.map(({ suffix, entry: { key, size, hash } }) => ({ suffix, key, size, hash })),
        this.document.meta,
        meta,
      ),
      body: sampleBody(texts, this.document.meta === null ? null : meta),
      bytes: files.reduce((sum, { entry }) => sum + entry.size, 0),
    }
    this.#samples.set(sample, facts)
    return facts
  }

  /** Runs, and once again after what was damaged was made anew: the package index, or the sample table. */
  async healing<T>(run: () => Promise<T>): Promise<T> {
    const { table } = this
    try {
      return await run()
    } catch (error) {
      if (!hasCode(error, 'INDEX_DAMAGED')) throw error
      if (table.isDamaged) await this.#replace(table)
      else await this.opened.rebuild()
      return run()
    }
  }

  async #replace(damaged: SampleTable): Promise<void> {
    // Others may have found the same.
    if (this.table !== damaged) return
    this.#rebuilding ??= this.rebuildTable()
      .then(table => {
        this.table = table
        damaged.close()
      })
      .finally(() => {
        this.#rebuilding = undefined
      })
    await this.#rebuilding
  }

  get isOpen(): boolean {
    return this.#isOpen
  }

  close(): void {
    this.#isOpen = false
    this.opened.close()
    this.table.close()
  }
}

/** As the top hash sees it: manifests of one top hash may differ in spaces, order of keys and spelling, and answers not. Numbers that are not finite are strings. */
function canonicalText(json: string | undefined): string {
  return json === undefined ? 'null' : standardCanonicalJson(json)
}

function fileText({ key, size, hash }: Entry, path: string, error?: BobbinError): string {
  const facts = { key, size, hash: hashText(hash) }
  return JSON.stringify(
    error === undefined ? { path, ...facts } : { error: { code: error.code, detail: error.message }, ...facts },
  )
}
