import { rmSync } from 'node:fs'
import { join, resolve } from 'node:path'
import type { DaemonClient } from '../daemon/control/client.js'
import { BobbinError, hasCode } from '../daemon/model/index.js'
import { openPackage } from '../daemon/package/package-cache.js'
import { type Context, referenceOf, withContext } from './context.js'
import { runKey } from './record/dsse.js'
import { readLedger } from './record/ledger.js'
import { compareOutputs } from './record/outputs.js'
import type { RunFacts, RunMount } from './record/run-facts.js'
import { RunFolder, stateDir } from './record/run-folder.js'
import { type CodeIdentity, findCode, restoreCode } from './run/code.js'
import { type EngineName, findEngine } from './run/container.js'
import { askedBy, type Replay, replayOf } from './run/from-record.js'
import { type ImageIdentity, identifyImage } from './run/image.js'
import { checkCode, type FoundCode, Problems, prepareOutputs } from './run/preflight.js'
import {
  type ComparedOutput,
  checkResult,
  compareResult,
  isReproduced,
  linesOf,
  parseTolerance,
  shortened,
} from './run/result.js'
import { type AllowFlags, refuseUnlessAllowed, rightsOf } from './run/rights.js'
import { startRun } from './run/start.js'
import { surroundingDifferences } from './run/surroundings.js'
import { makeTemporaryFolder } from './run/temporary-folder.js'
import { upToDate } from './run/up-to-date.js'
import type { CommonFlags } from './settings.js'

export interface ReproduceFlags extends CommonFlags, AllowFlags {
  readonly version: string
  readonly output?: string
  /** Globs. */
  readonly outputs?: readonly string[]
  readonly tolerance?: string
}

const PREFETCHED_AT_ONCE = 256
/** A ledger may have more rows than memory has room for; the command itself asks for the others. */
const PREFETCHED_MAX = 100_000

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
        `${record.path} has ${facts.nodes.length} nodes: reproduce the record of each node, on as many machines`,
      )
    const scratch = makeTemporaryFolder('bobbin-code-')
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
  const tolerance = parseTolerance(flags.tolerance)
  const outputGlobs = flags.outputs ?? facts.outputGlobs
  checkResult(outputGlobs, facts.outputs ?? [])
  const { replay, allowed } = await checked(facts, flags, context)
  const codeDir = facts.code === undefined ? undefined : join(scratch, 'code')
  if (codeDir !== undefined)
    await restoreCode(facts.code!, record.file('source.diff'), codeDir, { isTrusted: allowed.has('code'), signal })
  const outcome = await startRun(
    {
      version: flags.version,
      state: stateDir(),
      container: await containerOf(facts, replay, signal),
      command: replay.command,
      cwd: resolve(codeDir ?? '', replay.cwd ?? ''),
      env: replay.env,
      passed: replay.passed,
      mounts: replay.mounts,
      code: codeDir === undefined ? undefined : await restoredCode(codeDir, facts.code!),
      outputDir: outputDirOf(facts, flags, text => output.note(text)),
      outputGlobs,
      withScratch: facts.mounts.some(({ scratch }) => scratch !== undefined),
      withLoader: facts.loaderSocket !== null,
      isForeign: true,
      key: runKey(),
      onMounted: (client, mounts, aborted) => void prefetch(record, client, mounts, context, aborted),
    },
    { ...flags, quarantine: facts.mounts.some(({ quarantine }) => quarantine === true) },
    context,
  )
  const { folder, facts: found } = outcome
  const recorded = facts.outputs ?? []
  const outputs = await compareResult(compareOutputs(recorded, found.outputs ?? []), {
    globs: outputGlobs,
    recorded,
    recordedFolder: record.outputsBeside() ?? facts.outputDir,
    recordedDir: facts.outputDir,
    foundDir: found.outputDir,
    tolerance,
    signal,
  })
  const deciding = outputs.filter(({ decides }) => decides)
  const differing = outputs.filter(output => !isReproduced(output))
  const equal = differing.length === 0 && found.exitCode === facts.exitCode
  const surroundings = surroundingDifferences(facts, found)
  const lines = [
    ...(found.exitCode === facts.exitCode ? [] : [`it ended with ${found.exitCode}, the record has ${facts.exitCode}`]),
    ...linesOf(outputs),
    ...loadedOtherwise(facts, found),
    ...shortened(surroundings.map(line => `  other surroundings: ${line}`)),
    outputs.length === 0 && equal
      ? `it ran again and ended with ${found.exitCode}; the run had no outputs to compare (--output)`
      : equal
        ? `reproduced: ${equalWords(deciding)}, exit code ${found.exitCode}`
        : `not the same: ${differing.length} of ${deciding.length} outputs differ`,
    `record: ${folder.path}`,
  ]
  await output.row(
    { equal, outputs, surroundings, runId: found.runId, exitCode: found.exitCode, record: folder.path },
    lines,
  )
  await output.flush()
  if (!equal) throw new BobbinError('FOLDER_DIFFERS', `the run ${record.runId} came out differently`)
}

function equalWords(deciding: readonly ComparedOutput[]): string {
  const close = deciding.filter(({ change }) => change !== 'same').length
  const within = close === 0 ? '' : `, ${close} more within the tolerance`
  return `${deciding.length - close} outputs are equal${within}`
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

/**
 * Before anything is started. Throws INVALID_ARGUMENT for what `bobbin run` does not write, for rights that were not allowed, and
 * for variables whose values are missing, since they are in no record.
 */
async function checked(facts: RunFacts, flags: ReproduceFlags, { output }: Context) {
  const allowed = rightsOf(flags)
  const replay = replayOf(facts)
  const asked = askedBy(replay, facts.code && (await findCode(facts.code)))
  const problems = new Problems()
  await problems.try(() => refuseUnlessAllowed(asked, allowed))
  await problems.try(() => {
    const missing = replay.passed.filter(name => process.env[name] === undefined)
    if (missing.length === 0) return
    const names = missing.join(', ')
    throw new BobbinError(
      'INVALID_ARGUMENT',
      `the run was given ${names}, whose values a record does not hold: export ${names}`,
    )
  })
  problems.throwIfAny()
  for (const { right, what } of asked) output.note(`bobbin: allowed: ${right}: ${what}`)
  return { replay, allowed }
}

function outputDirOf({ outputDir }: RunFacts, { output }: ReproduceFlags, note: (text: string) => void) {
  if (outputDir === undefined) return undefined
  return output === undefined ? 'own' : prepareOutputs(output, note)
}

/** Throws OBJECT_GONE when the image is not to be had any more, or is another one. */
async function containerOf({ image, engine }: RunFacts, replay: Replay, signal: AbortSignal) {
  if (image === undefined || replay.image === undefined || engine.name === 'host') return undefined
  const found = await findEngine(engine.name, signal)
  const again = await identifyImage(found.name, replay.image, { signal, onPull: () => {} })
  const isSame = again.digest === image.digest || (again.id !== null && again.id === image.id)
  if (!isSame)
    throw new BobbinError('OBJECT_GONE', `${image.reference} is ${again.digest} here, the record has ${image.digest}`)
  const asked = (await isNameOf(image.asked, again, found.name, signal)) ? image.asked : again.asked
  return { engine: found, image: { ...again, asked, reference: replay.image }, options: replay.options }
}

/** A record may call its image what it likes; the new one says so only where that is a name of what runs now. */
async function isNameOf(name: string, { digest }: ImageIdentity, program: EngineName, signal: AbortSignal) {
  try {
    return (await identifyImage(program, name, { signal, onPull: undefined })).digest === digest
  } catch (error) {
    if (hasCode(error, 'INVALID_ARGUMENT', 'OBJECT_GONE')) return false
    throw error
  }
}

interface FirstRead {
  readonly key: string
  /** RFC 3339. */
  readonly first: string
}

function earliest(rows: readonly FirstRead[]): FirstRead[] {
  return [...rows].sort((a, b) => (a.first < b.first ? -1 : 1)).slice(0, PREFETCHED_MAX)
}

/** What the first run opened, in the order in which it did, PREFETCHED_MAX entries of a package at most: asked for while the command is on its way. */
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
      let rows: FirstRead[] = []
      for await (const { package: rowPackage, topHash: rowHash, key, first } of readLedger(
        record.file('reads.jsonl'),
      )) {
        if (rowPackage !== name || rowHash !== topHash) continue
        rows.push({ key, first })
        if (rows.length >= 2 * PREFETCHED_MAX) rows = earliest(rows)
      }
      rows = earliest(rows)
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
