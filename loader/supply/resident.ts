/**
 * Leases that outlive their steps. An epoch needs the objects of the one before it again: as many of them as fit stay
 * leased, in whatever steps they come next, and cost the daemon nothing any more (warm, its leases were half of the CPU
 * that batches by paths took). The first that come stay: of what is read in cycles, any part is as good as another. A plan
 * that nobody uses for a while loses all of them.
 */
import type { Lease, Objects, Priority } from './daemon-leases.js'
import type { OpenPlan, StepContent } from './open-plan.js'

interface Residents {
  readonly inos: Set<number>
  readonly leases: Lease[]
  bytes: number
  objects: number
  /** Steps that somebody holds and that rely on it. */
  users: number
  usedMs: number
}

/** A set of numbers, about 50 bytes each. */
const OBJECTS_MAX = 1_000_000
/** The daemon takes 100,000 of an owner, and steps that are read need theirs. */
const LEASES_MAX = 20_000
const IDLE_MS = 120_000
const SWEEP_MS = 5000

/** What a step needs is leased already, and has to stay so until the step is done with. */
function use(own: Residents): Lease {
  own.users++
  let isUsed = true
  return {
    id: '',
    failed: new Map(),
    release() {
      if (!isUsed) return
      isUsed = false
      own.users--
      own.usedMs = Date.now()
    },
  }
}

export class Resident {
  readonly #plans = new Map<string, Residents>()
  readonly #timer: NodeJS.Timeout
  #bytes = 0
  #objects = 0
  #leases = 0

  constructor(
    private readonly objects: Objects,
    /** Of all plans together. */
    private readonly bytesMax: number,
  ) {
    this.#timer = setInterval(() => this.#sweep(), SWEEP_MS)
    this.#timer.unref()
  }

  get bytes(): number {
    return this.#bytes
  }

  /** As `Objects.lease`. `isAnew`: also of what should be here, because it turned out not to be. */
  async lease(
    plan: OpenPlan,
    { inos, samples }: StepContent,
    options: { readonly priority: Priority; readonly signal?: AbortSignal | undefined; readonly isAnew?: boolean },
  ): Promise<Lease> {
    const own = this.#of(plan)
    if (options.isAnew) for (const ino of inos) own.inos.delete(ino)
    const missing = inos.flatMap((ino, i) => (own.inos.has(ino) ? [] : i))
    if (missing.length === 0) return use(own)
    const rest = use(own)
    const lease = await this.objects
      .lease(
        plan.places,
        missing.map(i => inos[i]!),
        options,
      )
      .catch(error => {
        rest.release()
        throw error
      })
    return {
      ...lease,
      release: distances => {
        rest.release()
        const sizes = samples.flatMap(({ facts }) => facts.entries.map(({ entry }) => entry.size))
        const bytes = missing.reduce((sum, i) => sum + sizes[i]!, 0)
        if (lease.failed.size === 0 && this.#keep(plan, own, lease, missing.length, bytes)) {
          for (const i of missing) own.inos.add(inos[i]!)
          return
        }
        const all = distances?.()
        lease.release(all && (() => missing.map(i => all[i]!)))
      },
    }
  }

  close(): void {
    clearInterval(this.#timer)
    for (const id of [...this.#plans.keys()]) this.#drop(id)
  }

  /** Of plans that nobody reads at the moment. */
  dropUnused(): void {
    for (const [id, { users }] of this.#plans) if (users === 0) this.#drop(id)
  }

  #of({ id }: OpenPlan): Residents {
    let own = this.#plans.get(id)
    if (own === undefined) {
      own = { inos: new Set(), leases: [], bytes: 0, objects: 0, users: 0, usedMs: 0 }
      this.#plans.set(id, own)
    }
    own.usedMs = Date.now()
    return own
  }

  #keep({ id }: OpenPlan, own: Residents, lease: Lease, objects: number, bytes: number): boolean {
    const isFull =
      this.#bytes + bytes > this.bytesMax || this.#objects + objects > OBJECTS_MAX || this.#leases >= LEASES_MAX
    if (isFull || this.#plans.get(id) !== own) return false
    own.leases.push(lease)
    own.bytes += bytes
    own.objects += objects
    this.#bytes += bytes
    this.#objects += objects
    this.#leases++
    return true
  }

  #sweep(): void {
    for (const [id, { users, usedMs }] of this.#plans) {
      if (users === 0 && Date.now() - usedMs > IDLE_MS) this.#drop(id)
    }
  }

  #drop(id: string): void {
    const own = this.#plans.get(id)!
    this.#plans.delete(id)
    this.#bytes -= own.bytes
    this.#objects -= own.objects
    this.#leases -= own.leases.length
    for (const lease of own.leases) lease.release()
  }
}
