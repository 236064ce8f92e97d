/**
 * The threads that fetch and hash: one pool a process, as many threads as cores, many jobs a thread
 * (they mostly wait for the network). Small jobs run in the calling thread, where that is faster.
 *
 * Threads start with the first job that needs one, and do not keep the process alive.
 */
import { availableParallelism } from 'node:os'
import { fileURLToPath } from 'node:url'
import pLimit from 'p-limit'
import { Piscina } from 'piscina'
import { BobbinError, throwIfAborted } from '../model/index.js'
import { JobControl } from './job-control.js'
import { JobRunner, type Outcome } from './job-runner.js'
import type { FetchJob, HashedFile, HashFilesJob, HashJob, Job } from './jobs.js'
import type { SourceConfig } from './source/index.js'
import type { WorkerTask } from './worker.js'

export interface WorkersOptions {
  /** Default: one a core. */
  readonly threads?: number
  /** Jobs of up to this many bytes run in the calling thread. Default: INLINE_BYTES_MAX. */
  readonly inlineBytesMax?: number
}

export interface JobOptions {
  readonly signal?: AbortSignal | undefined
  /** Bytes so far, now and then. */
  readonly onBytes?: ((bytes: number) => void) | undefined
}

const INLINE_BYTES_MAX = 256 * 1024

/** Enough that a thread always has bytes to work on while other jobs wait for their first one. */
const JOBS_A_THREAD = 64
/** Of all objects together, so that small objects find a place between the chunks of large ones. */
const CHUNK_JOBS_MAX = 16
const PROGRESS_MS = 100

export class Workers {
  readonly threads: number
  /** Jobs for chunks of large objects go through here. */
  readonly chunkLimit = pLimit(CHUNK_JOBS_MAX)
  readonly #inline: JobRunner
  readonly #inlineBytesMax: number
  #pool: Piscina<WorkerTask, Outcome> | undefined
  #isClosed = false

  constructor(
    private readonly sourceConfig: SourceConfig,
    options: WorkersOptions = {},
  ) {
    this.threads = options.threads ?? availableParallelism()
    this.#inlineBytesMax = options.inlineBytesMax ?? INLINE_BYTES_MAX
    this.#inline = new JobRunner(sourceConfig)
  }

  /** The hash (hex) of what was fetched. */
  async fetch(job: FetchJob, options: JobOptions = {}): Promise<string> {
    return (await this.#run(job, job.range?.length ?? job.objectBytes, options)) as string
  }

  /** The hash (hex) of a range of an open file. */
  async hash(job: HashJob, options: JobOptions = {}): Promise<string> {
    return (await this.#run(job, job.range.length, options)) as string
  }

  async hashFiles(job: HashFilesJob, options: JobOptions = {}): Promise<HashedFile[]> {
    // Never in the calling thread: there is always another batch for it to prepare.
    return (await this.#run(job, Infinity, options)) as HashedFile[]
  }

  /** Ends the threads. Whoever has jobs under way cancels them first and waits. */
  async close(): Promise<void> {
    this.#isClosed = true
    this.#inline.close()
    await this.#pool?.destroy()
  }

  async #run(job: Job, bytes: number, { signal, onBytes }: JobOptions): Promise<unknown> {
    throwIfAborted(signal)
    const control = new JobControl()
    const cancel = () => control.cancel()
    signal?.addEventListener('abort', cancel)
    const timer = onBytes && setInterval(() => onBytes(control.bytes), PROGRESS_MS)
    try {
      const outcome =
        bytes <= this.#inlineBytesMax ? await this.#inline.run(job, control) : await this.#runInPool(job, control)
      if ('code' in outcome) throw new BobbinError(outcome.code, outcome.message)
      onBytes?.(control.bytes)
      return outcome.value
    } finally {
      clearInterval(timer)
      signal?.removeEventListener('abort', cancel)
    }
  }

  async #runInPool(job: Job, control: JobControl): Promise<Outcome> {
    if (this.#isClosed) throw new BobbinError('INTERRUPTED', 'the workers were stopped')
    this.#pool ??= new Piscina({
      filename: fileURLToPath(new URL('./worker.js', import.meta.url)),
      minThreads: this.threads,
      maxThreads: this.threads,
      concurrentTasksPerWorker: JOBS_A_THREAD,
      workerData: this.sourceConfig,
      // A thread that sleeps in Atomics.wait does not see its idle connections close.
      atomics: 'disabled',
    })
    try {
      return await this.#pool.run({ job, control: control.buffer })
    } catch (error) {
      const code = this.#isClosed ? 'INTERRUPTED' : 'INTERNAL'
      throw new BobbinError(code, `a worker ended: ${error instanceof Error ? error.message : error}`, { cause: error })
    }
  }
}
