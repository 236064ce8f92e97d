import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import type { DaemonClient } from '../daemon/control/client.js'
import { BobbinError } from '../daemon/model/index.js'
import { openPackage } from '../daemon/quilt/package-cache.js'
import { type Context, referenceOf, withContext } from './context.js'
import { runKey } from './record/dsse.js'
import { readLedger } from './record/ledger.js'
import type { RunFacts, RunMount } from './record/run-facts.js'
import { RunFolder, stateDir } from './record/run-folder.js'
import { type CodeIdentity, restoreCode } from './run/code.js'
import { findEngine } from './run/container.js'
import { identifyImage } from './run/image.js'
import { compareOutputs } from './run/outputs.js'
import { checkCode, type FoundCode, prepareOutputs } from './run/preflight.js'
import { startRun } from './run/start.js'
import { upToDate } from './runs.js'
import type { CommonFlags } from './settings.js'

export interface ReproduceFlags extends CommonFlags {
  readonly version: string
  readonly output?: string
}

const PREFETCHED_AT_ONCE = 256

/** The same hashes, the same command, once more; ends with 13 when the outputs differ. */
export async function reproduce(text: string, flags: ReproduceFlags): Promise<void> {
  await withContext(flags, async context => {
    const record = RunFolder.find(text, stateDir())
    const facts = await upToDate(record, context)
    if (facts.finishedOn === undefined)
      throw new BobbinError('INVALID_ARGUMENT', `the run ${record.runId} is not over yet`)
    if (facts.nodes !== undefined)
      throw new BobbinError(
        'INVALID_ARGUMENT',
        `${record.path} is of ${facts.nodes.length} nodes: reproduce the record of each, on as many`,
      )
    const scratch = mkdtempSync(join(tmpdir(), 'bobbin-code-'))
    try {
      await again(record, facts, scratch, flags, context)
    } finally {
      rmSync(scratch, { recursive: true, force: true })
    }
  })
}

async function again(
  record: RunFolder,
  facts: RunFacts,
  scratch: string,
  flags: ReproduceFlags,
  context: Context,
): Promise<void> {
  const { output, signal } = context
  const codeDir = facts.code === undefined ? undefined : join(scratch, 'code')
  if (codeDir !== undefined) await restoreCode(facts.code!, record.file('source.diff'), codeDir, signal)
  const outcome = await startRun(
    {
      version: flags.version,
      state: stateDir(),
      container: await containerOf(facts, signal),
      command: facts.command,
      cwd: resolve(codeDir ?? '', facts.cwd ?? ''),
      env: facts.env,
      passed: passedOf(facts),
      mounts: facts.mounts.map(({ registry, package: name, topHash, target }) => {
        const source = `${registry}/${name}@${topHash}`
        return { asked: `${source}:${target}`, source, target }
      }),
      code: codeDir === undefined ? undefined : await restoredCode(codeDir, facts.code!),
      outputDir: outputDirOf(facts, flags, text => output.note(text)),
      withLoader: facts.loaderSocket !== null,
      key: runKey(),
      onMounted: (client, mounts, aborted) => void prefetch(record, client, mounts, context, aborted),
    },
    { ...flags, quarantine: facts.mounts.some(({ quarantine }) => quarantine === true) },
    context,
  )
  const { folder, facts: found } = outcome
  const outputs = compareOutputs(facts.outputs ?? [], found.outputs ?? [])
  const differing = outputs.filter(({ change }) => change !== 'same')
  const equal = differing.length === 0 && found.exitCode === facts.exitCode
  const lines = [
    ...(found.exitCode === facts.exitCode ? [] : [`it ended with ${found.exitCode}, the record has ${facts.exitCode}`]),
    ...differing.map(({ path, change }) => `  ${change}  ${path}`),
    ...loadedOtherwise(facts, found),
    outputs.length === 0 && equal
      ? `it ran again and ended with ${found.exitCode}; the run had no outputs to compare (--output)`
      : equal
        ? `reproduced: ${outputs.length} outputs are equal, exit code ${found.exitCode}`
        : `not the same: ${differing.length} of ${outputs.length} outputs differ`,
    `record: ${folder.path}`,
  ]
  await output.row(
    { equal, outputs, runId: found.runId, exitCode: found.exitCode, record: folder.path },
    lines.join('\n'),
  )
  await output.flush()
  if (!equal) throw new BobbinError('FOLDER_DIFFERS', `the run ${record.runId} came out differently`)
}

/** What a command names to the loader without a hash may be another revision by now. */
function loadedOtherwise({ loaded: before = [] }: RunFacts, { loaded: now = [] }: RunFacts): string[] {
  return before.flatMap(({ package: name, topHash }) => {
    const other = now.find(one => one.package === name && one.topHash !== topHash)
    const isSame = now.some(one => one.package === name && one.topHash === topHash)
    return other === undefined || isSame
      ? []
      : [`  it read ${name}@${other.topHash} through the loader, the record has @${topHash}: name it by its hash`]
  })
}

/** A restored repository knows where it was cloned from, and no branch: what the record has stays true. */
async function restoredCode(dir: string, { remote, ref }: CodeIdentity): Promise<FoundCode> {
  const { identity, diff } = await checkCode(dir, {})
  return { identity: { ...identity, remote, ref }, diff }
}

/** Throws INVALID_ARGUMENT: their values are in no record. */
function passedOf({ passed = [] }: RunFacts): readonly string[] {
  const missing = passed.filter(name => process.env[name] === undefined)
  if (missing.length === 0) return passed
  const names = missing.join(', ')
  throw new BobbinError(
    'INVALID_ARGUMENT',
    `the run was given ${names}, and records hold no such values: export ${names}`,
  )
}

function outputDirOf({ outputDir }: RunFacts, { output }: ReproduceFlags, note: (text: string) => void) {
  if (outputDir === undefined) return undefined
  return output === undefined ? 'own' : prepareOutputs(output, note)
}

/** Throws OBJECT_GONE when the image is not to be had any more, or is another one. */
async function containerOf({ image, engine, options }: RunFacts, signal: AbortSignal) {
  if (image === undefined || engine.name === 'host') return undefined
  const found = await findEngine(engine.name, signal)
  const again = await identifyImage(found.name, image.reference, { signal, onPull: () => {} })
  const isSame = again.digest === image.digest || (again.id !== null && again.id === image.id)
  if (!isSame)
    throw new BobbinError('OBJECT_GONE', `${image.reference} is ${again.digest} here, the record has ${image.digest}`)
  return { engine: found, image: { ...again, asked: image.asked, reference: image.reference }, options }
}

/** What the first run opened, in the order in which it did: asked for while the command is on its way. */
async function prefetch(
  record: RunFolder,
  client: DaemonClient,
  mounts: readonly RunMount[],
  { settings, source }: Context,
  signal: AbortSignal,
): Promise<void> {
  const owner = `reproduce-${process.pid}`
  try {
    for (const { registry, package: name, topHash } of mounts) {
      const rows: { readonly key: string; readonly first: string }[] = []
      for await (const row of readLedger(record.file('reads.jsonl')))
        if (row.package === name && row.topHash === topHash) rows.push(row)
      rows.sort((a, b) => (a.first < b.first ? -1 : 1))
      const { cacheDir, offline } = settings
      const reference = referenceOf(`${registry}/${name}@${topHash}`, {}, settings)
      const opened = await openPackage(reference, { cacheDir, source, offline, quarantine: true })
      try {
        const inos = rows.flatMap(({ key }) => opened.index.find(key)?.ino ?? [])
        for (let at = 0; at < inos.length && !signal.aborted; at += PREFETCHED_AT_ONCE) {
          const lease = `at-${at}`
          const body = { registry, package: name, topHash, inos: inos.slice(at, at + PREFETCHED_AT_ONCE) }
          await client.leaseObjects({ owner, lease, priority: 'ahead', ...body })
          await client.releaseObjects({ owner, leases: [{ lease }] })
        }
      } finally {
        opened.close()
      }
    }
  } catch {
    // The command fetches what it opens itself, and is told what is the matter.
  }
}
