/** Makes up for the end of a run whose process has gone. */
import { hostname } from 'node:os'
import { findDaemon } from '../../daemon/control/client.js'
import type { Context } from '../context.js'
import { runKey } from '../record/dsse.js'
import { areLogsThere } from '../record/reads.js'
import type { RunFacts } from '../record/run-facts.js'
import { type RunFolder, stateDir } from '../record/run-folder.js'
import { containerName, removeContainer } from './container.js'
import { finishRun } from './finish.js'
import { hiddenOf } from './hidden.js'
import { endLeftovers } from './leftovers.js'
import { removeFolders } from './made-folders.js'
import { unmountAll, unmountUnrecorded } from './run-mounts.js'
import { isUnderWay } from './running.js'

const MADE_LATER = 'bobbin run was ended before the record was whole: it was made later'

/**
 * Makes up for the end of a run whose process has gone. Only of one that was made here: what the record of somebody else
 * says is left running or mounted is nothing to end, and another node's may go on there.
 */
export async function upToDate(folder: RunFolder, context: Context): Promise<RunFacts> {
  const { settings, source, signal } = context
  const facts = folder.read()
  const isOver = facts.finishedOn !== undefined || facts.host !== hostname()
  if (isOver || !folder.isIn(stateDir()) || isUnderWay(facts)) return facts
  const { cacheDir } = facts.mounts[0] ?? settings
  const client = findDaemon(cacheDir)
  await endLeftovers(facts.runId)
  // Its engine has gone on with it; there is nobody left who would take its exit code.
  if (facts.engine.name !== 'host') await removeContainer(facts.engine.name, containerName(facts.runId))
  const hidden = await hiddenOf(facts.mounts, context)
  await unmountAll(client, facts.mounts)
  if (client !== undefined && facts.mounting !== undefined)
    await unmountUnrecorded(client, facts.mounting, facts.startedOn)
  removeFolders(facts.madeFolders ?? [])
  const { mounting: _, ...known } = facts
  const { exitCode, endedOn, problems = [] } = facts
  const finishedOn = endedOn ?? new Date().toISOString()
  // Whoever looked after it had seen the command's end.
  const ended =
    exitCode === undefined
      ? { wasAbandoned: true }
      : { problems: [...problems, MADE_LATER], areLogsWhole: facts.areLogsWhole === true && areLogsThere(facts) }
  const key = runKey()
  return finishRun(folder, { ...known, ...hidden, finishedOn, ...ended }, { cacheDir, source, key, signal })
}
