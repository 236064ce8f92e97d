/** One run, from what was asked for to its record. `bobbin run` and `bobbin reproduce` both come here. */
import type { KeyObject } from 'node:crypto'
import { existsSync, realpathSync, rmSync } from 'node:fs'
import { hostname } from 'node:os'
import { join, relative } from 'node:path'
import type { DaemonClient } from '../../daemon/control/client.js'
import { ensureDaemon } from '../../daemon/control/launch.js'
import { asFound, BobbinError, throwIfAborted } from '../../daemon/model/index.js'
import { readMountTable } from '../../daemon/mount/mount-table.js'
import { objectsFolder } from '../../daemon/store/index.js'
import type { Context, PackageFlags } from '../context.js'
import { daemonDiffers } from '../daemon-differs.js'
import { type FilesBefore, lookAtOutputs } from '../record/outputs.js'
import type { RunFacts, RunMount } from '../record/run-facts.js'
import { RunFolder } from '../record/run-folder.js'
import {
  type Binding,
  bindingsOf,
  containerCommand,
  containerName,
  type EngineFacts,
  followedAt,
  isShared,
  removeContainer,
} from './container.js'
import { type EngineOption, formatEngineOption } from './engine-options.js'
import { finishRun } from './finish.js'
import { hashVariables } from './hashes.js'
import { hiddenOf } from './hidden.js'
import type { ImageIdentity } from './image.js'
import { launch } from './launch.js'
import { startOf } from './leftovers.js'
import { type MadeFolder, removeFolders } from './made-folders.js'
import { endedMounts, settledStatus } from './mount-health.js'
import { type FoundCode, isFull, prepareOutputs } from './preflight.js'
import { type MountWish, mountFor, unmountAll, withoutOverlay } from './run-mounts.js'
import { type Sidecar, startSidecar } from './sidecar.js'
import { lookAround } from './surroundings.js'
import { shadowText } from './written.js'

export interface RunWish {
  readonly version: string
  readonly state: string
  /** undefined: a bare process. */
  readonly container:
    | { readonly engine: EngineFacts; readonly image: ImageIdentity; readonly options: readonly EngineOption[] }
    | undefined
  readonly command: readonly string[]
  /** Of a bare process. */
  readonly cwd: string
  readonly env: Readonly<Record<string, string>>
  /** Variables of this process that the command gets, too. */
  readonly passed: readonly string[]
  readonly mounts: readonly MountWish[]
  /** undefined: none is recorded. */
  readonly code: FoundCode | undefined
  /** `own`: in the run's folder. */
  readonly outputDir: string | 'own' | undefined
  /** Which outputs are the result; undefined: all of them. */
  readonly outputGlobs?: readonly string[] | undefined
  readonly withLoader: boolean
  /** The command may write above its data. */
  readonly withScratch: boolean
  /** The command comes from a record: a stranger's, perhaps. */
  readonly isForeign?: boolean
  readonly key: KeyObject | undefined
  /** Told before the command starts. */
  readonly onMounted?: (client: DaemonClient, mounts: readonly RunMount[], signal: AbortSignal) => void
}

export interface RunOutcome {
  readonly folder: RunFolder
  readonly facts: RunFacts
}

/** Where a container finds things. */
const INSIDE = { code: '/code', outputs: '/outputs', loader: '/bobbin/loader' } as const
/** Nothing is left of one whose command could not be started. */
export async function startRun(wish: RunWish, flags: PackageFlags, context: Context): Promise<RunOutcome> {
  const folder = RunFolder.create(wish.state)
  let facts: RunFacts
  try {
    if (isFull(folder.path))
      throw new BobbinError(
        'STORE_FULL',
        `no space left on the device of ${folder.path}: a run could not keep its record`,
      )
    facts = await runIn(folder, wish, flags, context)
  } catch (error) {
    // Its output is the first thing that a command leaves. What has run stays, and `bobbin runs` makes its record.
    if (!existsSync(folder.file('stdout.log'))) removeUnlessMounted(folder.path)
    throw error
  }
  return { folder, facts: await finish(folder, facts, wish, context) }
}

/** What could not be unmounted is not ours to walk into: `bobbin runs` tries again. */
function removeUnlessMounted(path: string): void {
  const real = realpathSync(path)
  const isMountedBelow = readMountTable().some(({ mountpoint }) => mountpoint.startsWith(`${real}/`))
  if (!isMountedBelow) rmSync(path, { recursive: true, force: true })
}

async function finish(
  folder: RunFolder,
  facts: RunFacts,
  { key }: RunWish,
  { settings: { cacheDir }, source, signal, output }: Context,
): Promise<RunFacts> {
  for (const problem of facts.problems ?? []) output.note(`bobbin: ${problem}`)
  const { runId, exitCode } = facts
  try {
    // How it ended, for whoever makes up for the rest when we are ended now.
    folder.write(facts)
    const whole = await finishRun(folder, { ...facts, finishedOn: facts.endedOn! }, { cacheDir, source, key, signal })
    for (const text of (whole.written ?? []).flatMap(one => shadowText(one) ?? [])) output.note(`bobbin: ${text}`)
    return whole
  } catch (error) {
    if (!(error instanceof BobbinError)) throw error
    const how = `the command ended with ${exitCode}, but its record is not whole`
    if (error.code === 'INTERRUPTED') output.note(`bobbin: ${how}; bobbin runs ${runId} makes it`)
    else
      throw new BobbinError(error.code, `${how}: ${error.message}; when that is mended, bobbin runs ${runId} makes it`)
    throw error
  }
}

/** From the mounts to the command's end. */
async function runIn(folder: RunFolder, wish: RunWish, flags: PackageFlags, context: Context): Promise<RunFacts> {
  const { settings, output, signal } = context
  if (wish.code?.diff !== undefined) folder.writeFile('source.diff', wish.code.diff)
  const outputDir =
    wish.outputDir === 'own' ? prepareOutputs(folder.file('outputs'), text => output.note(text)) : wish.outputDir
  const outputsBefore = outputDir === undefined ? {} : lookAtOutputs(outputDir)
  let facts = factsOf(wish, folder, outputDir, outputsBefore)
  const know = (more: Partial<RunFacts>) => {
    const { mounting: _, ...known } = facts
    facts = { ...known, ...more }
    folder.write(facts)
  }
  // Before anything is started that somebody else would have to end if we were killed.
  know({})
  // It takes a second or two, beside the mounts.
  const surroundings = lookAround(wish, folder, signal)
  surroundings.catch(() => {})
  const { client, isStarted } = await ensureDaemon(settings)
  if (isStarted) output.note(`bobbin: started the daemon (process ${client.pid}) for ${settings.cacheDir}`)
  else {
    const differs = await daemonDiffers(client, settings)
    if (differs !== undefined) output.note(`bobbin: ${differs}`)
  }
  throwIfAborted(signal)
  const isContainer = wish.container !== undefined
  const mountsFolder = folder.file('mnt')
  const onProgress = (made: readonly RunMount[], madeFolders: readonly MadeFolder[], mounting?: string) =>
    know({
      mounts: [...made],
      ...(madeFolders.length > 0 && { madeFolders: [...madeFolders] }),
      ...(mounting !== undefined && { mounting }),
    })
  const mounts = await mountFor(wish.mounts, flags, context, {
    client,
    folder: mountsFolder,
    isContainer,
    withScratch: wish.withScratch,
    onProgress,
  })
  let sidecar: Sidecar | undefined
  let ended: RunFacts
  const problems: string[] = []
  const inTheWay = Object.keys(outputsBefore).length
  if (inTheWay > 0)
    problems.push(
      `before the run ${outputDir} held ${inTheWay} files: it may have read them, and no hash says which they were`,
    )
  let areReadsKept = true
  try {
    if (isContainer && mounts.length > 0 && !isShared(mountsFolder))
      output.note(
        `bobbin: ${mountsFolder} is on a mount that is not shared: the container does not see a mount that is made again (mount --make-rshared /)`,
      )
    if (wish.withLoader) {
      const served = isContainer ? mounts.map((mount, i) => ({ ...mount, seenAt: followedAt(mount, i) })) : mounts
      sidecar = await startSidecar(folder, settings.cacheDir, served, signal, settings)
    }
    const { problems: unseen, ...around } = await surroundings
    problems.push(...unseen)
    know({ ...around, loaderSocket: sidecar?.socket ?? null })
    throwIfAborted(signal)
    wish.onMounted?.(client, mounts, signal)
    const exitCode = await execute(wish, facts, sidecar, context, problems)
    ended = { ...facts, exitCode, endedOn: new Date().toISOString() }
    const status = await settledStatus(client, mounts)
    // fuse-native keeps no log of what was opened.
    if (mounts.length > 0) areReadsKept = status?.mounts.every(({ transport }) => transport === 'native') ?? false
    ended = { ...ended, ...(await hiddenOf(mounts, context)) }
    for (const { target } of withoutOverlay(mounts))
      problems.push(`the overlay at ${target} ended during the run: what was written from then on is not in the record`)
    for (const { mountpoint } of await endedMounts(status, mounts)) {
      areReadsKept = false
      problems.push(`the mount ${mountpoint} ended during the run: its folder was empty, or reads failed, from then on`)
    }
  } finally {
    if ((await sidecar?.stop()) === false) {
      areReadsKept = false
      problems.push("the run's loader ended during the run: its log is loader.log")
    }
    areReadsKept = (await unmountedByOne(client, mounts)) && areReadsKept
    removeFolders(facts.madeFolders ?? [])
  }
  if (outputDir !== undefined && isFull(outputDir))
    problems.push(`no space is left in ${outputDir}: outputs may be cut short`)
  return { ...ended, areLogsWhole: areReadsKept, ...(problems.length > 0 && { problems }) }
}

/**
 * What was opened is kept by bobbin-fuse until a daemon has it in the log, but not beyond the end of the mount: false
 * when the daemon died just then.
 */
async function unmountedByOne(client: DaemonClient, mounts: readonly RunMount[]): Promise<boolean> {
  const daemon = async () => {
    const status = await settledStatus(client, mounts)
    return status && `${status.daemon.pid} ${status.daemon.startedAt}`
  }
  const before = await daemon()
  await unmountAll(client, mounts)
  return mounts.length === 0 || (before !== undefined && (await daemon()) === before)
}

function factsOf(
  { version, container, command, env, passed, cwd, code: found, outputGlobs }: RunWish,
  { runId }: RunFolder,
  outputDir: string | undefined,
  outputsBefore: FilesBefore,
): RunFacts {
  const code = found?.identity
  const pidStart = startOf(process.pid)
  const below = code === undefined ? '..' : relative(code.folder, cwd)
  return {
    version: 1,
    runId,
    bobbin: version,
    pid: process.pid,
    ...(pidStart !== undefined && { pidStart }),
    host: hostname(),
    engine: container?.engine ?? { name: 'host', version: process.version },
    command,
    env,
    ...(passed.length > 0 && { passed }),
    options: (container?.options ?? []).map(formatEngineOption),
    ...(container !== undefined && { image: container.image }),
    ...(code !== undefined && { code }),
    mounts: [],
    loaderSocket: null,
    ...(container === undefined && { cwd: below.startsWith('..') ? cwd : below }),
    ...(outputDir !== undefined && { outputDir }),
    ...(outputGlobs !== undefined && { outputGlobs }),
    ...(Object.keys(outputsBefore).length > 0 && { outputsBefore }),
    startedOn: new Date().toISOString(),
  }
}

async function execute(
  wish: RunWish,
  facts: RunFacts,
  sidecar: Sidecar | undefined,
  { settings, output }: Context,
  problems: string[],
): Promise<number> {
  const { container, command } = wish
  const hashes = hashVariables(facts)
  const folder = join(wish.state, 'runs', facts.runId)
  const logs = { stdout: join(folder, 'stdout.log'), stderr: join(folder, 'stderr.log') }
  const onLogCut = (name: string) => problems.push(`${name} lacks the end: it could not be written`)
  const common = { logs, isJson: output.isJson, isForeign: wish.isForeign ?? false, onLogCut }
  if (container === undefined) {
    const variables = {
      ...hashes,
      ...(facts.outputDir !== undefined && { BOBBIN_OUTPUT: facts.outputDir }),
      ...(sidecar !== undefined && {
        BOBBIN_SIDECAR: `unix:${sidecar.socket}`,
        BOBBIN_OBJECTS: objectsFolder(settings.cacheDir),
      }),
    }
    return launch(command, { ...common, cwd: wish.cwd, env: asFound({ ...process.env, ...variables, ...wish.env }) })
  }
  const { engine, image, options } = container
  const bindings: Binding[] = [
    ...bindingsOf(facts.mounts, join(folder, 'mnt')),
    ...(facts.code === undefined ? [] : [{ source: facts.code.folder, target: INSIDE.code }]),
    ...(facts.outputDir === undefined ? [] : [{ source: facts.outputDir, target: INSIDE.outputs, isWritable: true }]),
    // No folder of the store: what comes as paths lies in the run's own mounts.
    ...(sidecar === undefined ? [] : [{ source: sidecar.folder, target: INSIDE.loader }]),
  ]
  const env = {
    ...hashes,
    ...(facts.outputDir !== undefined && { BOBBIN_OUTPUT: INSIDE.outputs }),
    ...(sidecar !== undefined && { BOBBIN_SIDECAR: `unix:${INSIDE.loader}/loader.sock` }),
    ...wish.env,
  }
  const hasWorkdir = facts.code === undefined || options.some(({ name }) => name === 'workdir')
  const workdir: EngineOption[] = hasWorkdir ? [] : [{ name: 'workdir', value: INSIDE.code }]
  const line = containerCommand({
    engine: engine.name,
    runId: facts.runId,
    image,
    command,
    env,
    passed: wish.passed,
    bindings,
    engineOptions: [...workdir, ...options],
  })
  const exitCode = await launch(line, { ...common, env: process.env })
  // A client that a signal ends while the container is made leaves it behind.
  if (exitCode !== 0) await removeContainer(engine.name, containerName(facts.runId))
  return exitCode
}
