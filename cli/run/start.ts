/** One run, from what was asked for to its record. `bobbin run` and `bobbin reproduce` both come here. */
import type { KeyObject } from 'node:crypto'
import { accessSync, constants, mkdirSync, statfsSync } from 'node:fs'
import { hostname } from 'node:os'
import { join, relative, resolve } from 'node:path'
import type { DaemonClient } from '../../daemon/control/client.js'
import { ensureDaemon } from '../../daemon/control/launch.js'
import { BobbinError, formatBytes, localError, throwIfAborted } from '../../daemon/model/index.js'
import { objectsFolder } from '../../daemon/store/index.js'
import type { Context, PackageFlags } from '../context.js'
import { type RunFacts, RunFolder, type RunMount } from '../record/run-folder.js'
import { type CodeIdentity, identifyCode } from './code.js'
import { type Binding, bindingsOf, containerCommand, type EngineFacts, isShared } from './container.js'
import { type MountWish, mountFor, unmountAll } from './data.js'
import { finishRun } from './finish.js'
import type { ImageIdentity } from './image.js'
import { launch } from './launch.js'
import { type Sidecar, startSidecar } from './sidecar.js'

export interface RunWish {
  readonly version: string
  readonly state: string
  /** undefined: a bare process. */
  readonly container:
    | { readonly engine: EngineFacts; readonly image: ImageIdentity; readonly options: readonly string[] }
    | undefined
  readonly command: readonly string[]
  /** Of a bare process. */
  readonly cwd: string
  readonly env: Readonly<Record<string, string>>
  readonly mounts: readonly MountWish[]
  /** Where the code is, here; undefined: none is recorded. */
  readonly codeDir: string | undefined
  readonly requireClean: boolean
  /** `own`: in the run's folder. */
  readonly outputDir: string | 'own' | undefined
  readonly withLoader: boolean
  readonly key: KeyObject | undefined
  /** Told before the command starts. */
  readonly onMounted?: (client: DaemonClient, mounts: readonly RunMount[], signal: AbortSignal) => void
}

export interface RunOutcome {
  readonly folder: RunFolder
  readonly facts: RunFacts
}

/** Where a container finds things. */
const INSIDE = { code: '/code', outputs: '/outputs', loader: '/bobbin/loader', objects: '/bobbin/objects' } as const
/** Less room for outputs is worth a word. */
const OUTPUT_BYTES_LOW = 2 ** 30

export async function startRun(wish: RunWish, flags: PackageFlags, context: Context): Promise<RunOutcome> {
  const { settings, output, signal } = context
  const folder = RunFolder.create(wish.state)
  const code = await codeOf(wish, folder)
  const wanted = wish.outputDir === 'own' ? folder.file('outputs') : wish.outputDir
  const outputDir = wanted === undefined ? undefined : prepareOutputs(resolve(wanted), text => output.note(text))
  const { client, isStarted } = await ensureDaemon(settings)
  if (isStarted) output.note(`bobbin: started the daemon (process ${client.pid}) for ${settings.cacheDir}`)
  throwIfAborted(signal)
  const isContainer = wish.container !== undefined
  const mountsFolder = folder.file('mnt')
  const mounts = await mountFor(wish.mounts, flags, context, { client, folder: mountsFolder, isContainer })
  let sidecar: Sidecar | undefined
  let facts: RunFacts | undefined
  try {
    if (isContainer && mounts.length > 0 && !isShared(mountsFolder))
      output.note(
        `bobbin: ${mountsFolder} is on a mount that is not shared: the container does not see a mount that is made again (mount --make-rshared /)`,
      )
    sidecar = wish.withLoader ? await startSidecar(folder, settings.cacheDir, signal) : undefined
    facts = factsOf(wish, folder, { code, outputDir, mounts, socket: sidecar?.socket ?? null })
    folder.write(facts)
    throwIfAborted(signal)
    wish.onMounted?.(client, mounts, signal)
    const exitCode = await execute(wish, facts, sidecar, context)
    facts = { ...facts, exitCode }
  } finally {
    await sidecar?.stop()
    await unmountAll(client, mounts)
  }
  const finishedOn = new Date().toISOString()
  const { cacheDir } = settings
  return {
    folder,
    facts: await finishRun(folder, { ...facts, finishedOn }, { cacheDir, source: context.source, key: wish.key }),
  }
}

async function codeOf({ codeDir, requireClean }: RunWish, folder: RunFolder): Promise<CodeIdentity | undefined> {
  if (codeDir === undefined) return undefined
  const found = await identifyCode(codeDir, folder.path)
  if (found === undefined)
    throw new BobbinError(
      'INVALID_ARGUMENT',
      `${resolve(codeDir)} is in no git repository, so the run could not name its code: git init && git add -A && git commit, or give --code DIR or --no-code`,
    )
  if (requireClean && found.identity.isDirty)
    throw new BobbinError(
      'INVALID_ARGUMENT',
      `${found.identity.folder} differs from its commit (${found.identity.untracked} new files; git status shows it): commit it, or leave --require-clean out`,
    )
  if (found.diff !== undefined) folder.writeFile('source.diff', found.diff)
  return found.identity
}

function prepareOutputs(dir: string, note: (text: string) => void): string {
  try {
    mkdirSync(dir, { recursive: true })
    accessSync(dir, constants.W_OK)
    const { bavail, bsize } = statfsSync(dir)
    if (bavail * bsize < OUTPUT_BYTES_LOW)
      note(`bobbin: only ${formatBytes(bavail * bsize)} are free for outputs in ${dir}`)
    return dir
  } catch (error) {
    throw localError(`use ${dir} for outputs`, error)
  }
}

function factsOf(
  { version, container, command, env, cwd }: RunWish,
  { runId }: RunFolder,
  found: {
    readonly code: CodeIdentity | undefined
    readonly outputDir: string | undefined
    readonly mounts: readonly RunMount[]
    readonly socket: string | null
  },
): RunFacts {
  const { code, outputDir, mounts, socket } = found
  return {
    version: 1,
    runId,
    bobbin: version,
    pid: process.pid,
    host: hostname(),
    engine: container?.engine ?? { name: 'host', version: process.version },
    command,
    env,
    options: container?.options ?? [],
    ...(container !== undefined && { image: container.image }),
    ...(code !== undefined && { code }),
    mounts,
    loaderSocket: socket,
    ...(container === undefined && { cwd: code === undefined ? cwd : relative(code.folder, cwd) }),
    ...(outputDir !== undefined && { outputDir }),
    startedOn: new Date().toISOString(),
  }
}

function execute(
  wish: RunWish,
  facts: RunFacts,
  sidecar: Sidecar | undefined,
  { settings, output }: Context,
): Promise<number> {
  const { container, command, codeDir } = wish
  const objects = objectsFolder(settings.cacheDir)
  const hashes = hashVariables(facts)
  const folder = join(wish.state, 'runs', facts.runId)
  const logs = { stdout: join(folder, 'stdout.log'), stderr: join(folder, 'stderr.log') }
  const common = { logs, isJson: output.isJson }
  if (container === undefined) {
    const variables = {
      ...hashes,
      ...(facts.outputDir !== undefined && { BOBBIN_OUTPUT: facts.outputDir }),
      ...(sidecar !== undefined && { BOBBIN_SIDECAR: `unix:${sidecar.socket}`, BOBBIN_OBJECTS: objects }),
    }
    return launch(command, { ...common, cwd: wish.cwd, env: { ...process.env, ...variables, ...wish.env } })
  }
  const { engine, image, options } = container
  const bindings: Binding[] = [
    ...bindingsOf(facts.mounts, join(folder, 'mnt')),
    ...(facts.code === undefined || codeDir === undefined ? [] : [{ source: facts.code.folder, target: INSIDE.code }]),
    ...(facts.outputDir === undefined ? [] : [{ source: facts.outputDir, target: INSIDE.outputs, isWritable: true }]),
    ...(sidecar === undefined
      ? []
      : [
          { source: sidecar.folder, target: INSIDE.loader },
          { source: objects, target: INSIDE.objects },
        ]),
  ]
  const env = {
    ...hashes,
    ...(facts.outputDir !== undefined && { BOBBIN_OUTPUT: INSIDE.outputs }),
    ...(sidecar !== undefined && {
      BOBBIN_SIDECAR: `unix:${INSIDE.loader}/loader.sock`,
      BOBBIN_OBJECTS: INSIDE.objects,
    }),
    ...wish.env,
  }
  const workdir =
    facts.code === undefined || options.some(text => text.startsWith('--workdir=')) ? [] : [`--workdir=${INSIDE.code}`]
  const line = containerCommand({
    engine: engine.name,
    runId: facts.runId,
    image,
    command,
    env,
    bindings,
    engineOptions: [...workdir, ...options],
  })
  return launch(line, { ...common, env: process.env })
}

/** The three hashes, and one for each mount after the first: `QUILT_HASH_2`, … */
function hashVariables({ code, image, mounts, runId }: RunFacts): Record<string, string> {
  return {
    BOBBIN_RUN: runId,
    ...(code !== undefined && { GIT_HASH: code.commit, GIT_TREE: code.tree }),
    ...(image !== undefined && { DOCKER_HASH: image.digest }),
    ...(mounts[0] !== undefined && { QUILT_HASH: mounts[0].topHash }),
    ...Object.fromEntries(mounts.map(({ topHash }, i) => [`QUILT_HASH_${i + 1}`, topHash])),
  }
}
