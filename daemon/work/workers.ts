/**
 * The threads that fetch and hash: one pool a process, as many threads as cores, many jobs a thread
 * (they mostly wait for the network). They start with the first job and do not keep the process
 * alive.
 *
 * Measured on 2 cores that a server shared: for 100 KB objects the calling thread alone gives 0.5 to
 * 1.2 times what the workers do (they win when the machine is busy), for large ones 0.6 to 0.9. It
 * would also have no time left for anything else, so everything goes to the workers.
 */
import { availableParallelism } from 'node:os'
import { fileURLToPath } from 'node:url'
import pLimit, { type LimitFunction } from 'p-limit'
import { Piscina } from 'piscina'
import { BobbinError, throwIfAborted, WORKER_FLAGS } from '../model/index.js'
import type { SourceConfig } from '../source/index.js'
import { JobControl } from './job-control.js'
import { JobRunner, type Outcome } from './job-runner.js'
import type { FetchJob, HashedFile, HashFilesJob, HashJob, Job } from './jobs.js'
import type { WorkerTask } from './worker.js'

export interface WorkersOptions {
  /** Default: one a core. 0: jobs run in the calling thread, for who has one small object and no time. */
  readonly threads?: number
}

export interface JobOptions {
  readonly signal?: AbortSignal | undefined
  /** 1: its turn has come. -1: it is over. Before and after, it waits for other jobs. */
  readonly onTurn?: ((change: 1 | -1) => void) | undefined
  /** Bytes so far, now and then, when there are more of them. */
  readonly onBytes?: ((bytes: number) => void) | undefined
}

/** Enough that a thread always has bytes to work on while other jobs wait for their first one. */
const JOBS_A_THREAD = 64
/** Of all objects together, so that small objects find a place between the chunks of large ones. */
export const CHUNK_JOBS_MAX = 16
/**
 * Of files that are hashed. Each holds up the fetches of its thread for a piece at a time; few enough that these are
 * never held up for long, and enough that a small file finds a turn beside large ones.
 */
const HASH_JOBS_A_THREAD = 4
const PROGRESS_MS = 100

interface Threads {
  readonly pool: Piscina<WorkerTask, Outcome>
  jobs: number
}

export class Workers {
  readonly threads: number
  /** Jobs for chunks of large objects go through here. */
  readonly chunkLimit = pLimit(CHUNK_JOBS_MAX)
  /** How many files, or chunks of files, are hashed at a time. */
  readonly hashJobsMax: number
  readonly #hashLimit: LimitFunction
  #inline: JobRunner
  #present: Threads | undefined
  /** Those before a reload, until their last job has ended. */
  readonly #former = new Set<Threads>()
  #isClosed = false

  constructor(
    private sourceConfig: SourceConfig,
    options: WorkersOptions = {},
  ) {
    this.threads = options.threads ?? availableParallelism()
    this.hashJobsMax = HASH_JOBS_A_THREAD * Math.max(1, this.threads)
    this.#hashLimit = pLimit(this.hashJobsMax)
    this.#inline = new JobRunner(sourceConfig)
  }

  /** The hash (hex) of what was fetched. */
  async fetch(job: FetchJob, options: JobOptions = {}): Promise<string> {
    return (await this.#run(job, options)) as string
  }

  /** The hash (hex) of a range of an open file. */
  async hash(job: HashJob, options: JobOptions = {}): Promise<string> {
    return (await this.#hashLimit(() => this.#run(job, options))) as string
  }

  async hashFiles(job: HashFilesJob, options: JobOptions = {}): Promise<HashedFile[]> {
    return (await this.#hashLimit(() => this.#run(job, options))) as HashedFile[]
  }

  /** Starts the threads, and loads what their first fetches need. Never throws. */
  async prepare(): Promise<void> {
    if (this.sourceConfig.offline || this.threads === 0) return
    await Promise.allSettled(Array.from({ length: this.threads }, () => this.#run({ kind: 'prepare' }, {})))
  }

  /** Ends the threads. Whoever has jobs under way cancels them first and waits. */
  async close(): Promise<void> {
    this.#isClosed = true
    this.#inline.close()
    const all = [...this.#former, ...(this.#present === undefined ? [] : [this.#present])]
    await Promise.all(all.map(({ pool }) => pool.destroy()))
  }

  /** From the next job on: another config, in threads that have the environment of now. */
  replace(sourceConfig: SourceConfig): void {
    this.sourceConfig = sourceConfig
    this.#inline.close()
    this.#inline = new JobRunner(sourceConfig)
    const before = this.#present
    this.#present = undefined
    if (before === undefined) return
    this.#former.add(before)
    this.#endFormer(before)
  }

  #endFormer(threads: Threads): void {
    if (threads.jobs > 0 || !this.#former.delete(threads)) return
    // Nobody waits for anything of them.
    void threads.pool.destroy().catch(() => {})
  }

  async #run(job: Job, { signal, onTurn, onBytes }: JobOptions): Promise<unknown> {
    throwIfAborted(signal)
    const control = new JobControl()
    const cancel = () => control.cancel()
    signal?.addEventListener('abort', cancel)
    let reported = 0
    const report = () => {
      const { bytes } = control
      if (bytes > reported) onBytes?.(bytes)
      reported = bytes
    }
    const timer = onBytes && setInterval(report, PROGRESS_MS)
    onTurn?.(1)
    try {
      const outcome = await (this.threads === 0 ? this.#inline.run(job, control) : this.#runInPool(job, control))
      if ('code' in outcome) throw new BobbinError(outcome.code, outcome.message)
      report()
      return outcome.value
    } finally {
      onTurn?.(-1)
      clearInterval(timer)
      signal?.removeEventListener('abort', cancel)
    }
  }

  async #runInPool(job: Job, control: JobControl): Promise<Outcome> {
    if (this.#isClosed) throw new BobbinError('INTERRUPTED', 'the workers were stopped')
    this.#present ??= { jobs: 0, pool: this.#startThreads() }
    const threads = this.#present
    threads.jobs++
    try {
      return await threads.pool.run({ job, control: control.buffer })
    } catch (error) {
      const code = this.#isClosed ? 'INTERRUPTED' : 'INTERNAL'
      throw new BobbinError(code, `a worker ended: ${error instanceof Error ? error.message : error}`, { cause: error })
    } finally {
      threads.jobs--
      this.#endFormer(threads)
    }
  }

  #startThreads(): Piscina<WorkerTask, Outcome> {
    return new Piscina({
      filename: fileURLToPath(new URL('./worker.js', import.meta.url)),
      minThreads: this.threads,
      maxThreads: this.threads,
      concurrentTasksPerWorker: JOBS_A_THREAD,
      workerData: this.sourceConfig,
      execArgv: WORKER_FLAGS,
      // A thread that sleeps in Atomics.wait does not see its idle connections close.
      atomics: 'disabled',
    })
  }
}
