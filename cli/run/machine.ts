/** The hardware that a run has: results differ between kinds of GPUs and between versions of a driver. */
import { readdirSync, readFileSync } from 'node:fs'
import { arch, cpus, release, totalmem } from 'node:os'
import { join } from 'node:path'
import { hasCode } from '../../daemon/model/index.js'
import type { RunFacts } from '../record/run-facts.js'
import { runQuietly } from './process.js'

export type MachineFacts = NonNullable<RunFacts['machine']>
type Gpus = Pick<MachineFacts, 'gpus' | 'driver'>

/** Without its persistence daemon, a driver takes seconds to wake. */
const ANSWER_MS = 20_000
const QUERY = ['--query-gpu=name,uuid,memory.total,driver_version', '--format=csv,noheader,nounits']
const NONE: Gpus = { gpus: [], driver: null }

/** A machine without GPUs has an empty list. Throws INTERRUPTED. */
export async function lookAtMachine(signal: AbortSignal): Promise<MachineFacts> {
  const all = cpus()
  return {
    system: `${process.platform} ${release()}`,
    architecture: arch(),
    cpu: all[0]?.model.trim() || 'unknown',
    cpus: all.length,
    memoryBytes: totalmem(),
    ...((await askedGpus(signal)) ?? kernelsGpus()),
  }
}

/** Undefined: there is no nvidia-smi, or it cannot speak to a driver. */
async function askedGpus(signal: AbortSignal): Promise<Gpus | undefined> {
  try {
    const { status, stdout } = await runQuietly('nvidia-smi', QUERY, { signal, timeoutMs: ANSWER_MS })
    return status === 0 ? parseGpus(stdout.toString('utf8')) : undefined
  } catch (error) {
    if (hasCode(error, 'INTERRUPTED')) throw error
    return undefined
  }
}

/** Rows of `nvidia-smi --query-gpu=name,uuid,memory.total,driver_version --format=csv,noheader,nounits`. */
export function parseGpus(text: string): Gpus {
  const rows = text
    .split('\n')
    .map(line => line.split(',').map(field => field.trim()))
    .filter(fields => fields.length === 4)
  const gpus = rows.map(([name, uuid, mib]) => {
    // A unit of a machine with shared memory has none of its own: "[N/A]".
    const memory = /^\d+$/.test(mib!) ? { memoryBytes: Number(mib) * 2 ** 20 } : {}
    return { name: name!, uuid: uuid!, ...memory }
  })
  return { gpus, driver: rows[0]?.[3] ?? null }
}

/** What the driver itself says in /proc, for machines without its tools. */
function kernelsGpus(): Gpus {
  const folder = '/proc/driver/nvidia'
  try {
    const driver = /Kernel Module\D*([\d.]+)/.exec(readFileSync(join(folder, 'version'), 'utf8'))?.[1] ?? null
    const gpus = readdirSync(join(folder, 'gpus')).map(slot => {
      const text = readFileSync(join(folder, 'gpus', slot, 'information'), 'utf8')
      const field = (name: string) => new RegExp(`^${name}:\\s*(.+)$`, 'm').exec(text)?.[1]?.trim()
      return { name: field('Model') ?? 'unknown', uuid: field('GPU UUID') ?? 'unknown' }
    })
    return { gpus, driver }
  } catch {
    return NONE
  }
}
