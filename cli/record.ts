import { BobbinError } from '../daemon/model/index.js'
import { type PackageFlags, withContext } from './context.js'
import { readKey, runKey } from './record/dsse.js'
import { mergeRecords } from './record/merge.js'
import { RunFolder, stateDir } from './record/run-folder.js'
import { verifyRecord } from './record/verify.js'
import { printRevision, targetOf, workflowOf } from './revisions.js'
import { pushOutputs } from './run/push-outputs.js'
import { upToDate } from './run/up-to-date.js'
import type { CommonFlags } from './settings.js'

const SHOWN_MAX = 20

/** Is a record sound; ends with 13 when it is not. */
export async function verify(text: string, flags: CommonFlags & { readonly publicKey?: string }): Promise<void> {
  await withContext(flags, async context => {
    const { output, settings, source, signal } = context
    const run = RunFolder.find(text, stateDir())
    const facts = await upToDate(run, context)
    if (facts.finishedOn === undefined)
      throw new BobbinError('INVALID_ARGUMENT', `the run ${run.runId} is not over yet`)
    const publicKey = flags.publicKey === undefined ? undefined : readKey(flags.publicKey, 'public')
    const { cacheDir, offline } = settings
    const packages = { cacheDir, source, offline, quarantine: true, signal }
    const verdict = await verifyRecord(run, { publicKey, packages })
    const { problems, remarks, reads, outputs, isSignatureChecked } = verdict
    const ok = problems.length === 0
    const signed = isSignatureChecked ? ', signed by this key' : ''
    const lines = ok
      ? [`${run.path} is sound: ${reads} rows of reads in its packages, ${outputs} outputs${signed}`]
      : problems.slice(0, SHOWN_MAX)
    if (problems.length > SHOWN_MAX) lines.push(`and ${problems.length - SHOWN_MAX} more`)
    lines.push(...remarks.map(remark => `  but ${remark}`))
    await output.row({ ok, record: run.path, ...verdict }, lines)
    await output.flush()
    if (!ok) throw new BobbinError('FOLDER_DIFFERS', `the record ${run.path} is not sound: ${problems.length} problems`)
  })
}

/** Records of the nodes of one job become a record of its own. */
export async function merge(records: readonly string[], flags: CommonFlags): Promise<void> {
  await withContext(flags, async context => {
    const state = stateDir()
    const runs = records.map(text => RunFolder.find(text, state))
    if (runs.length < 2) throw new BobbinError('INVALID_ARGUMENT', 'name at least two records to merge')
    for (const run of runs) await upToDate(run, context)
    const { folder, facts } = await mergeRecords(runs, state, runKey())
    await context.output.row(
      { runId: facts.runId, record: folder.path, nodes: facts.nodes },
      `${folder.path}: ${runs.length} records in one`,
    )
  })
}

/** The outputs of a run become a revision, with its record in it. */
export async function push(
  text: string,
  pkg: string,
  flags: PackageFlags & { readonly workflow?: string },
): Promise<void> {
  await withContext(flags, async context => {
    const folder = RunFolder.find(text, stateDir())
    const facts = await upToDate(folder, context)
    if (facts.finishedOn === undefined)
      throw new BobbinError('INVALID_ARGUMENT', `the run ${folder.runId} is not over yet`)
    const target = { ...targetOf(pkg, flags, context.settings), workflow: workflowOf(flags.workflow) }
    const revision = await pushOutputs({ folder, facts }, target, context)
    await printRevision(revision, context.output)
  })
}
