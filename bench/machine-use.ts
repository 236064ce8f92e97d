/** CPU that processes use, over a stretch of a benchmark. */
import { readFileSync } from 'node:fs'

export interface Use {
  readonly cpuSecondsPerGb: number
}

const TICKS_A_SECOND = 100

/** Of processes with all their threads. */
function cpuSeconds(pid: number): number {
  const stat = readFileSync(`/proc/${pid}/stat`, 'utf8')
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
  return (Number(fields[11]) + Number(fields[12])) / TICKS_A_SECOND
}

export function machineUse(pids: readonly number[]) {
  const before = pids.reduce((sum, pid) => sum + cpuSeconds(pid), 0)
  return {
    since(epochs: number, bytesAnEpoch: number): Use {
      const used = pids.reduce((sum, pid) => sum + cpuSeconds(pid), 0) - before
      return { cpuSecondsPerGb: used / ((epochs * bytesAnEpoch) / 1e9) }
    },
  }
}
