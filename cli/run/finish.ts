/**
 * The end of a run, however it came: its reads become the ledger, its outputs get hashes, and the statements are
 * written. Everything here is made from files, so it can be made up for by another process when the first one was killed.
 */
import type { KeyObject } from 'node:crypto'
import { rmSync } from 'node:fs'
import { pino } from 'pino'
import type { Source } from '../../daemon/model/index.js'
import { NEEDS_ACCESS_LOGS } from '../../daemon/mount/access-logs.js'
import { Served } from '../../daemon/registry/served.js'
import { syncFile } from '../../daemon/store/index.js'
import type { PackageAddress } from '../../loader/supply/daemon-leases.js'
import { Door } from '../../loader/supply/door.js'
import { OpenPackages } from '../../loader/supply/open-packages.js'
import { Plans } from '../../loader/supply/plans.js'
import { fileSha256, type Ledger, textSha256, writeLedger } from '../record/ledger.js'
import { openRecorded } from '../record/open-recorded.js'
import { hashOutputs } from '../record/outputs.js'
import { Reads } from '../record/reads.js'
import { formatFacts, type RunFacts } from '../record/run-facts.js'
import type { RunFolder } from '../record/run-folder.js'
import { diffNames } from '../record/statement.js'
import { writeStatements } from '../record/write-statements.js'
import { unfitting } from './result.js'
import { hashWritten, shadowText, type Written } from './written.js'

export interface FinishOptions {
  readonly cacheDir: string
  readonly source: Source
  readonly key?: KeyObject | undefined
  /** Ends the hashing of outputs, with INTERRUPTED; the record is then made by who asks for it next. */
  readonly signal?: AbortSignal | undefined
}

/** The mounts are gone and the loader has ended, so that their logs are whole. */
export async function finishRun(run: RunFolder, facts: RunFacts, options: FinishOptions): Promise<RunFacts> {
  const { reads, ledger } = await ledgerOf(run, facts, options)
  const hashed =
    facts.outputDir === undefined
      ? undefined
      : await hashOutputs(facts.outputDir, facts.outputsBefore ?? {}, options.signal)
  const above = await writtenAbove(facts, options)
  const problems = [
    ...(facts.problems ?? []),
    ...above.problems,
    ...(hashed?.problems ?? []),
    ...(hashed === undefined ? [] : unfitting(facts.outputGlobs, hashed.files)),
  ]
  const { hidden: _, ...known } = facts
  const finished: RunFacts = {
    ...known,
    ...(above.written.length > 0 && { written: above.written }),
    loaded: loadedOnly(facts, reads),
    areLogsWhole: reads.lost === 0 && facts.areLogsWhole === true && facts.wasAbandoned !== true,
    ...(hashed !== undefined && { outputs: hashed.files }),
    ...(problems.length > 0 && { problems }),
  }
  const files = new Map([['run.json', textSha256(formatFacts(finished))]])
  for (const name of ['stdout.log', 'stderr.log', ...diffNames(finished)]) {
    const sha256 = await fileSha256(run.file(name))
    if (sha256 === undefined) continue
    // What the statement names outlives a power cut as it does.
    await syncFile(run.file(name))
    files.set(name, sha256)
  }
  const isComplete = finished.areLogsWhole === true
  writeStatements(run, finished, ledger, { isComplete, files }, options.key)
  // Last: whoever sees the end in it finds the rest in its place.
  run.write(finished)
  rmSync(run.file(NEEDS_ACCESS_LOGS), { force: true })
  return finished
}

/** Of each mount with a scratch folder. */
async function writtenAbove(
  { mounts, hidden = [] }: RunFacts,
  { cacheDir, source, signal }: FinishOptions,
): Promise<{ readonly written: Written[]; readonly problems: string[] }> {
  const written: Written[] = []
  const problems: string[] = []
  for (const mount of mounts) {
    if (mount.scratch === undefined) continue
    const opened = await openRecorded(mount, { cacheDir, source, offline: true, quarantine: true, signal })
    try {
      const hashed = await hashWritten(mount, opened.index, signal)
      const seen = hidden.find(({ target }) => target === mount.target)
      const one: Written = {
        ...hashed.written,
        ...(seen !== undefined && { hidden: seen.hidden, hiddenMore: seen.hiddenMore }),
      }
      const unknown = `what the command deleted at ${mount.target} is not known: its overlay was gone before it could be looked at`
      written.push(one)
      problems.push(...hashed.problems, ...(seen === undefined ? [unknown] : []), ...[shadowText(one) ?? []].flat())
    } finally {
      opened.close()
    }
  }
  return { written, problems }
}

/** The loader serves any package that it is asked for, mounted or not. */
function loadedOnly({ mounts }: RunFacts, reads: Reads): PackageAddress[] {
  const isMounted = ({ registry, topHash }: PackageAddress) =>
    mounts.some(mount => mount.topHash === topHash && mount.registry === registry)
  return reads.packages().filter(address => !isMounted(address))
}

/** Gathers the reads, and writes them down. */
async function ledgerOf(
  run: RunFolder,
  { mounts }: RunFacts,
  { cacheDir, source, signal }: FinishOptions,
): Promise<{ readonly reads: Reads; readonly ledger: Ledger }> {
  const reads = new Reads(signal)
  const offline = true
  const log = pino({ level: 'silent' })
  const door = new Door(Served.everything, log)
  const packages = new OpenPackages(door, { cacheDir, source, offline, quarantine: true })
  // Of a plan that was posted from several places, the run's loader used the one that was mounted.
  const plans = new Plans({ cacheDir, source, offline, defaultRegistry: undefined, door, preferred: mounts, log })
  try {
    for (const mount of mounts) await reads.addMount(mount)
    await reads.addDeliveries(run.file('deliveries.ndjson'), plans, packages)
    const rows = reads.rows(address => openRecorded(address, { cacheDir, source, offline, quarantine: true }))
    return { reads, ledger: await writeLedger(run.file('reads.jsonl'), rows) }
  } finally {
    packages.close()
    await plans.close()
  }
}
