/** Runs that are under way: of this user's state folder, on this machine. */
import { hostname } from 'node:os'
import { BobbinError } from '../../daemon/model/index.js'
import { isAlive } from '../../daemon/store/index.js'
import type { RunFacts } from '../record/run-facts.js'
import { RunFolder, stateDir } from '../record/run-folder.js'
import { startOf } from './leftovers.js'

/** Older ones have ended, or are found by `bobbin runs`. */
const RUNS_LOOKED_AT = 100

export function runningRuns(): { readonly folder: RunFolder; readonly facts: RunFacts }[] {
  return RunFolder.all(stateDir())
    .slice(-RUNS_LOOKED_AT)
    .flatMap(folder => {
      const facts = folder.tryRead()
      return facts !== undefined && isUnderWay(facts) ? [{ folder, facts }] : []
    })
}

/** Its `bobbin run` still lives. */
export function isUnderWay({ finishedOn, host, pid, pidStart }: RunFacts): boolean {
  const isHere = finishedOn === undefined && host === hostname()
  return isHere && isAlive(pid) && (pidStart === undefined || pidStart === startOf(pid))
}

/** Throws ALREADY_MOUNTED when a mount of a run that is under way would go: its command would find an empty folder. */
export function refuseWhileRunning(isMeant: (mount: RunFacts['mounts'][number]) => boolean): void {
  for (const { facts } of runningRuns()) {
    const mount = facts.mounts.find(isMeant)
    if (mount === undefined) continue
    const what = `${mount.mountpoint} belongs to the run ${facts.runId}, which is under way`
    throw new BobbinError('ALREADY_MOUNTED', `${what}: wait until it ends, or take its data away with --force`)
  }
}

/** A command as a shell would take it, on one line. */
export function commandLine(command: readonly string[]): string {
  const quoted = (word: string) => (/^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", `'\\''`)}'`)
  return command.map(quoted).join(' ').replaceAll('\n', '\\n')
}
