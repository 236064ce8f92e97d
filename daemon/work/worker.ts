/** What runs in a worker thread: jobs, on a source of its own. */
import '../model/library-words.js'
import { workerData } from 'node:worker_threads'
import type { SourceConfig } from '../source/index.js'
import { JobControl } from './job-control.js'
import { JobRunner, type Outcome } from './job-runner.js'
import type { Job } from './jobs.js'

export interface WorkerTask {
  readonly job: Job
  readonly control: SharedArrayBuffer
}

const runner = new JobRunner(workerData as SourceConfig)

// A default export is what piscina asks for.
export default function work({ job, control }: WorkerTask): Promise<Outcome> {
  return runner.run(job, new JobControl(control))
}
