/** Processes of a run that nobody looks after any more. They are told by BOBBIN_RUN, which all of them have inherited. */
import { readdirSync, readFileSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'

/** The run's loader writes down in that time what it has delivered. */
const PATIENCE_MS = 5000
const LOOK_AGAIN_MS = 50

/** Ends them, the hard way when they do not go. */
export async function endLeftovers(runId: string): Promise<void> {
  signal(processesOf(runId), 'SIGTERM')
  for (const deadline = Date.now() + PATIENCE_MS; Date.now() < deadline; ) {
    if (processesOf(runId).length === 0) return
    await sleep(LOOK_AGAIN_MS)
  }
  signal(processesOf(runId), 'SIGKILL')
}

function processesOf(runId: string): number[] {
  const entry = `BOBBIN_RUN=${runId}`
  return readdirSync('/proc')
    .filter(name => /^\d+$/.test(name) && Number(name) !== process.pid)
    .filter(pid => environmentOf(pid).includes(entry))
    .map(Number)
}

/** Of processes of others nothing is told. */
function environmentOf(pid: string): string[] {
  try {
    return readFileSync(`/proc/${pid}/environ`, 'utf8').split('\0')
  } catch {
    return []
  }
}

/** When a process started, in ticks since the machine did; undefined: it is not there. Numbers of processes come again. */
export function startOf(pid: number): string | undefined {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8')
    // proc_pid_stat(5): field 22. The second one, a name in parentheses, may hold anything.
    return stat.slice(stat.lastIndexOf(')') + 2).split(' ')[19]
  } catch {
    return undefined
  }
}

function signal(pids: readonly number[], name: NodeJS.Signals): void {
  for (const pid of pids) {
    try {
      process.kill(pid, name)
    } catch {
      // It has gone meanwhile.
    }
  }
}
