/** Runs fio on one file and reads its answer. */
import { runToEnd } from './run.js'

export interface FioJob {
  readonly engine: 'psync' | 'mmap'
  readonly pattern: 'read' | 'randread'
  /** As fio spells it: 4k, 1m. */
  readonly blockSize: string
}

export interface FioResult {
  readonly mibPerSecond: number
  readonly iops: number
  /** Of a read; 0 where fio does not tell. */
  readonly p99Us: number
}

/** Random reads end after so long, or when each block was read once. */
const RANDOM_SECONDS_MAX = 3

/**
 * `--invalidate=0`: else fio drops the page cache that was prepared. Random reads take each block at
 * most once, so no block is served twice from a cache that filled meanwhile.
 */
export async function fio(path: string, { engine, pattern, blockSize }: FioJob): Promise<FioResult> {
  const limit = pattern === 'randread' ? [`--runtime=${RANDOM_SECONDS_MAX}`] : []
  const { stdout } = await runToEnd('fio', [
    '--name=bench',
    `--filename=${path}`,
    ...['--readonly', '--invalidate=0', `--ioengine=${engine}`, `--rw=${pattern}`, `--bs=${blockSize}`],
    ...['--randrepeat=0', ...limit, '--output-format=json'],
  ])
  const { jobs } = JSON.parse(stdout.slice(stdout.indexOf('{'))) as {
    jobs: {
      error: number
      read: { bw_bytes: number; iops: number; clat_ns: { percentile?: Record<string, number> } }
    }[]
  }
  const { error, read } = jobs[0]!
  if (error !== 0) throw new Error(`fio on ${path}: error ${error}`)
  return {
    mibPerSecond: read.bw_bytes / 2 ** 20,
    iops: read.iops,
    p99Us: (read.clat_ns.percentile?.['99.000000'] ?? 0) / 1000,
  }
}
