/** Runs jobs in the thread that made it, many at a time, on one source. */
import { BobbinError, type ErrorCode } from '../model/index.js'
import type { createSource, SourceConfig } from '../source/index.js'
import type { JobControl } from './job-control.js'
import { type Job, runFetch, runHash, runHashFiles } from './jobs.js'

/** What a job gives. Errors are plain values here: structured cloning would drop their code. */
export type Outcome = { readonly value: unknown } | { readonly code: ErrorCode; readonly message: string }

type OpenSource = ReturnType<typeof createSource>

export class JobRunner {
  #source: OpenSource | undefined

  constructor(private readonly config: SourceConfig) {}

  /** Never throws. */
  async run(job: Job, control: JobControl): Promise<Outcome> {
    try {
      control.throwIfCancelled()
      return { value: await this.#valueOf(job, control) }
    } catch (error) {
      if (control.isCancelled) return { code: 'INTERRUPTED', message: 'interrupted' }
      if (error instanceof BobbinError) return { code: error.code, message: error.message }
      return { code: 'INTERNAL', message: error instanceof Error ? (error.stack ?? error.message) : String(error) }
    } finally {
      control.unwatch()
    }
  }

  close(): void {
    this.#source?.close()
    this.#source = undefined
  }

  async #valueOf(job: Job, control: JobControl): Promise<unknown> {
    switch (job.kind) {
      case 'fetch': {
        // Loaded late: threads that only hash start sooner.
        const { createSource } = await import('../source/index.js')
        if (!job.isFresh) {
          this.#source ??= createSource(this.config)
          return await runFetch(job, this.#source, control)
        }
        const source = createSource(this.config)
        try {
          return await runFetch(job, source, control)
        } finally {
          source.close()
        }
      }
      case 'prepare': {
        const { prepareSource } = await import('../source/index.js')
        return await prepareSource()
      }
      case 'hash':
        return await runHash(job, control)
      case 'hash-files':
        return await runHashFiles(job, control)
      default:
        return job satisfies never
    }
  }
}
