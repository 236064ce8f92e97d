/** A plan: which samples, in which order, in what batches; and reading them, over whatever happens to the sidecar. */
import { randomBytes } from 'node:crypto'
import { constants } from 'node:fs'
import { access } from 'node:fs/promises'
import type { Readable } from 'node:stream'
import type { CursorFacts, PlanFacts } from '../http/schema.js'
import { formatCursor } from '../plan/cursor.js'
import type { PlanBody, PlanDocument } from '../plan/plan-document.js'
import { type Connection, Patience } from './connection.js'
import { Cut, damaged, LoaderError } from './errors.js'
import { type Batch, linesOf, type PathsLine, type Sample, samplesOfLine, samplesOfTar } from './samples.js'

export type { PlanBody } from '../plan/plan-document.js'

/**
 * `paths` reads the store's own files, `tar` streams; `auto` takes paths where BOBBIN_OBJECTS, or the sidecar's own
 * folder of objects, can be read here.
 */
export type Transport = 'auto' | 'paths' | 'tar'

export interface BatchesOptions {
  readonly rank?: number
  readonly world?: number
  /** Where to begin; or a cursor. */
  readonly epoch?: number
  readonly step?: number
  readonly cursor?: string
  /** Each so-manieth step: for readers that share a rank. */
  readonly stride?: number
  readonly transport?: Transport
  /** Hash what came. Default: what came as tar; the sidecar names only files that were hashed. */
  readonly verify?: boolean
  /** Without progress, over restarts of the sidecar. */
  readonly patienceMs?: number
}

const PATIENCE_MS = 600_000
const PATHS_TYPE = 'application/vnd.bobbin.paths+ndjson'
const TAR_TYPE = 'application/x-tar'
/** One answer: enough that its round trip is little beside reading it, few enough that the leases are. */
const SAMPLES_AN_ANSWER = 256
const BYTES_AN_ANSWER = 64 * 2 ** 20
const STEPS_MAX = 64

/** What one walk over an epoch has settled. */
interface Walk {
  readonly epoch: number
  readonly rank: number
  readonly world: number
  readonly stride: number
  /** The folder to read below, or undefined for tar. */
  readonly objects: string | undefined
  readonly verify: boolean
  readonly session: string
  release: string | undefined
}

export class Plan {
  readonly id: string
  readonly document: PlanDocument

  constructor(
    private readonly connection: Connection,
    readonly facts: PlanFacts,
    private readonly body: PlanBody,
  ) {
    this.id = facts.planId
    this.document = facts.plan as PlanDocument
  }

  /** Samples of one rank in a full step. Throws INVALID_ARGUMENT unless the world divides the global batch. */
  batchSize(world = 1): number {
    const { global } = this.document.batch
    if (Number.isInteger(world) && world > 0 && global % world === 0) return global / world
    throw new LoaderError('INVALID_ARGUMENT', `${world} ranks do not divide the global batch of ${global} samples`)
  }

  /** Throws CURSOR_FOREIGN for one of another plan or package. */
  checkCursor(cursor: string): Promise<CursorFacts> {
    return this.#ask(() =>
      this.connection.ask({ method: 'POST', path: '/v1/cursor/check', body: { plan: this.id, cursor } }),
    )
  }

  /** A rank's batches, from a step (or a cursor) to the end of that epoch. Throws LoaderError. */
  async *batches(options: BatchesOptions = {}): AsyncGenerator<Batch> {
    const { rank = 0, world = 1, stride = 1, cursor, transport = 'auto', patienceMs = PATIENCE_MS } = options
    if (!(rank >= 0 && rank < world))
      throw new LoaderError('INVALID_ARGUMENT', `there is no rank ${rank} of ${world}; ranks begin at 0`)
    const batch = this.batchSize(world)
    const start = cursor === undefined ? { epoch: 0, step: 0, ...options } : await this.checkCursor(cursor)
    const objects = await this.#objects(transport)
    const walk: Walk = {
      epoch: start.epoch,
      rank,
      world,
      stride,
      objects,
      verify: options.verify ?? objects === undefined,
      session: randomBytes(8).toString('hex'),
      release: undefined,
    }
    const stepBytes = Math.max(1, this.facts.maxStepBytes / world)
    const most = Math.max(1, Math.min(STEPS_MAX, SAMPLES_AN_ANSWER / batch, BYTES_AN_ANSWER / stepBytes))
    const patience = new Patience(this.connection, patienceMs)
    let step = start.step
    // The first answer is one step, to have it soon.
    let count = 1
    try {
      while (step < this.facts.stepsPerEpoch) {
        try {
          const answer = objects === undefined ? this.#fromTar(walk, step, count) : this.#fromPaths(walk, step, count)
          for await (const samples of answer) {
            const at = step
            step += stride
            patience.progress()
            yield { samples, epoch: walk.epoch, step: at, cursor: this.cursor(walk.epoch, at + 1) }
          }
          count = Math.floor(Math.min(count * 2, most))
        } catch (error) {
          if (error instanceof LoaderError && error.code === 'PLAN_NOT_FOUND') await this.#postAgain()
          else await patience.wait(error)
        }
      }
    } finally {
      if (objects !== undefined) await this.#releaseAll(walk)
    }
  }

  /** Samples by their positions in an epoch, in the order asked for. */
  samplesAt(positions: readonly number[], { epoch = 0 }: { readonly epoch?: number } = {}): Promise<Sample[]> {
    const read = async () => {
      const response = await this.connection.send({
        method: 'POST',
        path: `/v1/plans/${this.id}/samples`,
        body: { epoch, positions },
        accept: TAR_TYPE,
      })
      const samples: Sample[] = []
      const options = { meta: this.document.meta, verify: true, onIndex: () => {} }
      for await (const { sample } of samplesOfTar(response, options)) samples.push(sample)
      return samples
    }
    return this.#ask(read)
  }

  /** The resume point before a step; behind the last one it is the start of the next epoch. */
  cursor(epoch: number, step: number): string {
    const isOver = step >= this.facts.stepsPerEpoch
    return formatCursor({
      topHash: this.document.topHash,
      planId: this.id,
      epoch: isOver ? epoch + 1 : epoch,
      position: isOver ? 0 : step * this.document.batch.global,
    })
  }

  async *#fromPaths(walk: Walk, step: number, count: number): AsyncGenerator<readonly Sample[]> {
    const lines = await linesOf(await this.#send(walk, step, count, PATHS_TYPE))
    for (const [i, line] of lines.entries()) {
      const expected = step + i * walk.stride
      if (line.step !== expected || line.epoch !== walk.epoch)
        throw damaged(`step ${expected} of epoch ${walk.epoch} was asked for, not ${line.step} of ${line.epoch}`)
      yield await this.#read(walk, line, expected)
      walk.release = line.lease
    }
  }

  async #read(walk: Walk, line: PathsLine, step: number): Promise<readonly Sample[]> {
    try {
      return await samplesOfLine(line, walk.objects!, walk.verify)
    } catch {
      // The sidecar or its daemon was started anew, and its leases went with it; or the folder is another one.
      for await (const samples of this.#fromTar({ ...walk, verify: true }, step, 1)) return samples
      throw new Cut(`step ${step} did not come`)
    }
  }

  async *#fromTar(walk: Walk, step: number, count: number): AsyncGenerator<readonly Sample[]> {
    const response = await this.#send(walk, step, count, TAR_TYPE)
    let steps: readonly number[] = []
    const all = samplesOfTar(response, {
      meta: this.document.meta,
      verify: walk.verify,
      onIndex: index => {
        if (index.plan !== this.id || index.topHash !== this.document.topHash || index.epoch !== walk.epoch)
          throw damaged('the answer is of another plan or epoch')
        if (index.steps.length === 0 || index.steps.some((got, i) => got !== step + i * walk.stride))
          throw damaged(`${count} steps from ${step} on were asked for, not ${index.steps}`)
        steps = index.steps
      },
    })
    let at = 0
    let samples: Sample[] = []
    for await (const one of all) {
      // A rank may have no sample in the last step, with the tail `uneven`.
      for (; one.step !== steps[at]; samples = []) {
        if (at >= steps.length) throw damaged(`a sample of step ${one.step} should not come here`)
        at++
        yield samples
      }
      samples.push(one.sample)
    }
    // Only now has the end member been seen.
    for (; at < steps.length; samples = []) {
      at++
      yield samples
    }
  }

  #send(
    { epoch, rank, world, stride, session, release }: Walk,
    step: number,
    count: number,
    accept: string,
  ): Promise<Readable> {
    const query = new URLSearchParams()
    for (const [name, value] of Object.entries({ epoch, step, rank, world, n: count, stride }))
      query.set(name, String(value))
    if (accept === PATHS_TYPE) {
      query.set('session', session)
      if (release !== undefined) query.set('release', release)
    }
    return this.connection.send({ method: 'GET', path: `/v1/plans/${this.id}/batches?${query}`, accept })
  }

  async #objects(transport: Transport): Promise<string | undefined> {
    if (transport === 'tar') return undefined
    const folder = process.env.BOBBIN_OBJECTS ?? this.facts.objects
    try {
      await access(folder, constants.R_OK | constants.X_OK)
      return folder
    } catch (error) {
      if (transport === 'auto') return undefined
      throw new LoaderError(
        'INVALID_ARGUMENT',
        `paths: ${folder} cannot be read here. Bind the sidecar's folder of objects into this container, read-only, and say in BOBBIN_OBJECTS where it is`,
        { cause: error },
      )
    }
  }

  /** Asks again while it may help, and makes the plan known to a sidecar that has forgotten it. */
  async #ask<T>(ask: () => Promise<T>): Promise<T> {
    for (const patience = new Patience(this.connection, PATIENCE_MS); ; ) {
      try {
        return await ask()
      } catch (error) {
        if (error instanceof LoaderError && error.code === 'PLAN_NOT_FOUND') await this.#postAgain()
        else await patience.wait(error)
      }
    }
  }

  async #postAgain(): Promise<void> {
    const { package: name, topHash } = this.facts
    const body = { ...this.body, package: name, topHash }
    const again = await this.connection.ask<PlanFacts>({ method: 'POST', path: '/v1/plans', body })
    if (again.planId !== this.id)
      throw new LoaderError('PLAN_NOT_FOUND', `the sidecar makes another plan of it now: ${again.planId}`)
  }

  /** So that the store need not wait until they time out. */
  async #releaseAll({ session }: Walk): Promise<void> {
    await this.connection.document({ method: 'DELETE', path: `/v1/sessions/${session}` }).catch(() => {})
  }
}
