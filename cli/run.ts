import { BobbinError } from '../daemon/model/index.js'
import { type Context, type PackageFlags, withContext } from './context.js'
import { readKey } from './record/dsse.js'
import { stateDir } from './record/run-folder.js'
import { type EngineFlags, type EngineName, engineOptions, findEngine } from './run/container.js'
import { parseMountWish } from './run/data.js'
import { identifyImage } from './run/image.js'
import { checkCode, checkMounting, Problems, prepareOutputs } from './run/preflight.js'
import { type RunOutcome, startRun } from './run/start.js'

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
  /** false: `--no-loader`. */
  readonly loader?: boolean
  readonly key?: string
}

/** Ends with the command's own exit code. */
export async function run(words: readonly string[], flags: RunFlags): Promise<void> {
  await withContext(flags, async context => {
    const outcome = await runAs(words, flags, context)
    await report(outcome, context)
    process.exitCode = outcome.facts.exitCode ?? 1
  })
}

async function runAs(words: readonly string[], flags: RunFlags, context: Context): Promise<RunOutcome> {
  const isContainer = !flags.host
  const [image, command] = isContainer ? [words[0], words.slice(1)] : [undefined, words]
  if (isContainer && image === undefined)
    throw new BobbinError(
      'INVALID_ARGUMENT',
      'which image? bobbin run IMAGE COMMAND…, or bobbin run --host -- COMMAND…',
    )
  if (!isContainer && command.length === 0)
    throw new BobbinError('INVALID_ARGUMENT', 'which command? bobbin run --host -- COMMAND…')
  const problems = new Problems()
  const note = (text: string) => context.output.note(text)
  const { signal } = context
  const keyPath = flags.key || process.env.BOBBIN_RUN_KEY
  const engine = isContainer ? await problems.try(() => findEngine(flags.engine)) : undefined
  const onPull = () => note(`bobbin: pulling ${image}`)
  const found = engine && (await problems.try(() => identifyImage(engine.name, image!, { signal, onPull })))
  const mounts = await problems.try(() => (flags.mount ?? []).map(text => parseMountWish(text, isContainer)))
  if (mounts !== undefined && mounts.length > 0) await problems.try(() => checkMounting(isContainer))
  const env = await problems.try(() => environmentOf(flags.env ?? []))
  const { code: codeDir = process.cwd(), output: dir } = flags
  const code = codeDir === false ? undefined : await problems.try(() => checkCode(codeDir, flags.requireClean ?? false))
  const outputDir = dir === undefined ? undefined : await problems.try(() => prepareOutputs(dir, note))
  const key = keyPath ? await problems.try(() => readKey(keyPath, 'private')) : undefined
  problems.throwIfAny()
  const wish = {
    version: flags.version,
    state: stateDir(),
    container: isContainer ? { engine: engine!, image: found!, options: engineOptions(flags) } : undefined,
    command,
    cwd: process.cwd(),
    env: env!,
    mounts: mounts!,
    code,
    outputDir,
    withLoader: flags.loader ?? true,
    key,
  }
  return startRun(wish, flags, context)
}

/** `NAME=VALUE`, or `NAME` for what it is here. Throws INVALID_ARGUMENT. */
export function environmentOf(words: readonly string[]): Record<string, string> {
  const env: Record<string, string> = {}
  for (const word of words) {
    const [, name, value] = /^([A-Za-z_][A-Za-z0-9_]*)(?:=(.*))?$/s.exec(word) ?? []
    if (name === undefined) throw new BobbinError('INVALID_ARGUMENT', `--env ${JSON.stringify(word)} is not NAME=VALUE`)
    const found = value ?? process.env[name]
    if (found !== undefined) env[name] = found
  }
  return env
}

export async function report({ folder, facts }: RunOutcome, { output }: Context): Promise<void> {
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
  }
  if (output.isJson) await output.row(document, '')
  else output.note(`bobbin: run ${runId} ended with ${exitCode}; its record: ${folder.path}`)
}
