import type { Revision, RevisionOptions } from '../daemon/folder/push/push-revision.js'
import { BobbinError } from '../daemon/model/index.js'
import { formatRegistry, type PackageReference } from '../daemon/registry/reference.js'
import { readLatest } from '../daemon/registry/registry.js'
import { checkWorkflow } from '../daemon/workflow/workflow.js'
import { createRegistryWriter } from '../daemon/writer/index.js'
import { type Context, type PackageFlags, sourceConfigOf, withContext } from './context.js'
import { overlayMakers } from './overlay/overlay.js'
import { compilePaths } from './path-globs.js'
import { runKey } from './record/dsse.js'
import { stateDir } from './record/run-folder.js'
import { targetOf, workflowOf } from './revisions.js'
import { checkBindable, type EngineName, findEngine } from './run/container.js'
import { type EngineFlags, engineOptions, refuseEngineFlags } from './run/engine-options.js'
import { identifyImage } from './run/image.js'
import { checkCode, checkMounting, Problems, prepareOutputs } from './run/preflight.js'
import { addressOf, pushOutputs } from './run/push-outputs.js'
import { parseMountWish } from './run/run-mounts.js'
import { type RunOutcome, type RunWish, startRun } from './run/start.js'

export interface RunFlags extends PackageFlags, EngineFlags {
  readonly version: string
  readonly mount?: readonly string[]
  readonly host?: boolean
  readonly engine?: EngineName
  readonly env?: readonly string[]
  /** A folder; false: `--no-code`. */
  readonly code?: string | false
  readonly requireClean?: boolean
  readonly output?: string
  /** Globs. */
  readonly outputs?: readonly string[]
  readonly pushOutput?: string
  /** Of `pushOutput`'s registry. */
  readonly workflow?: string
  readonly scratch?: boolean
  /** false: `--no-loader`. */
  readonly loader?: boolean
  readonly key?: string
}

/** Ends with the command's own exit code, or with that of the push that failed behind it. */
export async function run(words: readonly string[], flags: RunFlags): Promise<void> {
  await withContext(flags, async context => {
    const outcome = await runAs(words, flags, context)
    process.exitCode = outcome.facts.exitCode ?? 1
    const { pushOutput } = flags
    if (pushOutput === undefined) return report(outcome, context)
    const { revision, error } = await pushed(outcome, pushOutput, flags, context)
    await report(outcome, context, revision)
    await context.output.flush()
    if (error !== undefined) throw error
  })
}

/** The outputs of what has failed are no new revision: somebody would train on with them. */
async function pushed(
  outcome: RunOutcome,
  text: string,
  flags: RunFlags,
  context: Context,
): Promise<{ readonly revision?: Revision; readonly error?: unknown }> {
  const { runId, exitCode, outputDir } = outcome.facts
  const again = `bobbin record push ${runId} ${text}${workflowWords(flags)}`
  if (exitCode !== 0) {
    context.output.note(`bobbin: a run that failed is not pushed; if you want it: ${again}`)
    return {}
  }
  try {
    const revision = await pushOutputs(outcome, outputTargetOf(text, flags, context), context)
    context.output.note(
      `bobbin: its outputs are ${formatRegistry(revision.registry)}/${revision.name}@${revision.topHash}`,
    )
    return { revision }
  } catch (error) {
    context.output.note(`bobbin: the outputs are in ${outputDir}; to push them again: ${again}`)
    return { error }
  }
}

async function runAs(words: readonly string[], flags: RunFlags, context: Context): Promise<RunOutcome> {
  const isContainer = !flags.host
  const [image, command] = isContainer ? [words[0], words.slice(1)] : [undefined, words]
  if (isContainer && image === undefined)
    throw new BobbinError(
      'INVALID_ARGUMENT',
      'name the image: bobbin run IMAGE COMMAND…, or bobbin run --host -- COMMAND…',
    )
  if (!isContainer && command.length === 0)
    throw new BobbinError('INVALID_ARGUMENT', 'name the command: bobbin run --host -- COMMAND…')
  const problems = new Problems()
  const note = (text: string) => context.output.note(text)
  const { signal } = context
  if (!isContainer) await problems.try(() => refuseEngineFlags(flags))
  const engine = isContainer ? await problems.try(() => findEngine(flags.engine, context.signal)) : undefined
  const mounts = await problems.try(() => (flags.mount ?? []).map(text => parseMountWish(text, isContainer)))
  if (mounts !== undefined && mounts.length > 0) await problems.try(() => checkMounting(isContainer))
  if (flags.scratch) await problems.try(() => overlayMakers())
  const env = await problems.try(() => environmentOf(flags.env ?? []))
  const { code: codeDir = process.cwd(), output: dir, pushOutput } = flags
  const outputDir = dir === undefined ? undefined : await problems.try(() => prepareOutputs(dir, note))
  const { requireClean, outputs: outputGlobs } = flags
  if (outputGlobs !== undefined) {
    await problems.try(() => compilePaths(outputGlobs, () => false))
    if (dir === undefined && pushOutput === undefined)
      await problems.try(() => {
        throw new BobbinError(
          'INVALID_ARGUMENT',
          '--outputs says which files of the output folder are the result: pass --output DIR, too',
        )
      })
  }
  const code = codeDir === false ? undefined : await problems.try(() => checkCode(codeDir, { requireClean, outputDir }))
  if (pushOutput !== undefined || flags.workflow !== undefined) await problems.try(() => checkTarget(flags, context))
  const bound = isContainer ? [stateDir(), context.settings.cacheDir, outputDir, code?.identity.folder] : []
  for (const path of bound) if (path !== undefined) await problems.try(() => checkBindable(path))
  const key = await problems.try(() => runKey(flags.key))
  if (pushOutput !== undefined && code?.identity.remote === null)
    note(`bobbin: ${code.identity.folder} has no remote: with what is pushed, only a clone of it can make this again`)
  // Last: a pull may take hours, and would be for nothing when something else is the matter.
  const onPull = problems.isEmpty ? () => note(`bobbin: pulling ${image}`) : undefined
  const found = engine && (await problems.try(() => identifyImage(engine.name, image!, { signal, onPull })))
  problems.throwIfAny()
  const wish = {
    version: flags.version,
    state: stateDir(),
    container: isContainer ? { engine: engine!, image: found!, options: engineOptions(flags) } : undefined,
    command,
    cwd: process.cwd(),
    ...env!,
    mounts: mounts!,
    code,
    outputDir: outputDir ?? (pushOutput === undefined ? undefined : 'own'),
    outputGlobs,
    withLoader: flags.loader ?? true,
    withScratch: flags.scratch ?? false,
    key,
  }
  return startRun(wish, flags, context)
}

type OutputTarget = PackageReference & Pick<RevisionOptions, 'workflow'>

function outputTargetOf(text: string, flags: RunFlags, { settings }: Context): OutputTarget {
  return { ...targetOf(text, flags, settings), workflow: workflowOf(flags.workflow) }
}

function workflowWords({ workflow }: RunFlags): string {
  return workflow === undefined ? '' : ` --workflow ${workflow || "''"}`
}

/** Whoever cannot push learns it before hours of training, not behind them: all that does not depend on the outputs. */
async function checkTarget(flags: RunFlags, context: Context): Promise<void> {
  if (flags.pushOutput === undefined)
    throw new BobbinError(
      'INVALID_ARGUMENT',
      '--workflow is for --push-output: pass that, too, or leave --workflow out',
    )
  const target = outputTargetOf(flags.pushOutput, flags, context)
  const { source, settings, signal } = context
  await readLatest(source, target.registry, target.name, { signal })
  const { cacheDir } = settings
  const writer = createRegistryWriter(target.registry, { ...sourceConfigOf(settings), cacheDir })
  try {
    // No rule asks more of a message than that there is one, and that of outputs has their hashes.
    await checkWorkflow(source, writer, { ...target, message: 'the hashes' }, { signal })
  } finally {
    await writer.close()
  }
}

/**
 * `NAME=VALUE`, or `NAME` for what it is here: that one is recorded by its name alone, since this is how secrets are
 * given. Throws INVALID_ARGUMENT.
 */
export function environmentOf(words: readonly string[]): Pick<RunWish, 'env' | 'passed'> {
  const env: Record<string, string> = {}
  const passed: string[] = []
  for (const word of words) {
    const [, name, value] = /^([A-Za-z_][A-Za-z0-9_]*)(?:=(.*))?$/s.exec(word) ?? []
    if (name === undefined) throw new BobbinError('INVALID_ARGUMENT', `--env ${JSON.stringify(word)} is not NAME=VALUE`)
    if (value !== undefined) env[name] = value
    else if (process.env[name] !== undefined) passed.push(name)
  }
  return { env, passed }
}

export async function report({ folder, facts }: RunOutcome, { output }: Context, revision?: Revision): Promise<void> {
  const { runId, exitCode, image, code, mounts } = facts
  const document = {
    runId,
    exitCode,
    record: folder.path,
    topHashes: mounts.map(({ topHash }) => topHash),
    imageDigest: image?.digest ?? null,
    gitCommit: code?.commit ?? null,
    gitTree: code?.tree ?? null,
    outputs: facts.outputs ?? [],
    ...(revision !== undefined && { pushed: addressOf(revision) }),
  }
  if (output.isJson) await output.row(document, '')
  else output.note(`bobbin: run ${runId} ended with ${exitCode}; its record: ${folder.path}`)
}
