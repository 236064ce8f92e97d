/** How an engine of docker's kind is asked to start a run. Every value is behind its own `--name=`, so none is an option. */
import { readFileSync } from 'node:fs'
import { basename } from 'node:path'
import { BobbinError, throwIfAborted } from '../../daemon/model/index.js'
import type { RunMount } from '../record/run-facts.js'
import { type EngineOption, formatEngineOption } from './engine-options.js'
import { firstLine, type ImageIdentity } from './image.js'
import { runQuietly } from './process.js'

export const ENGINES = ['docker', 'podman'] as const
export type EngineName = (typeof ENGINES)[number]

export interface EngineFacts {
  readonly name: EngineName
  readonly version: string
  readonly imageStore?: string
}

/** An engine that hangs is none. */
const ANSWER_MS = 60_000

/** Throws DAEMON_UNAVAILABLE with what to do, INTERRUPTED. */
export async function findEngine(wish: EngineName | undefined, signal: AbortSignal): Promise<EngineFacts> {
  const problems: string[] = []
  for (const name of wish === undefined ? ENGINES : [wish]) {
    try {
      const { status, stdout, stderr } = await runQuietly(name, ['info', '--format', '{{json .}}'], {
        signal,
        timeoutMs: ANSWER_MS,
      })
      const facts = status === 0 ? (JSON.parse(stdout.toString('utf8')) as Record<string, unknown>) : {}
      const version = facts.ServerVersion ?? (facts.version as { Version?: string } | undefined)?.Version
      if (typeof version === 'string' && version !== '')
        return { name, version, ...(typeof facts.Driver === 'string' && { imageStore: facts.Driver }) }
      problems.push(`${name} does not answer (${firstLine(stderr)})`)
    } catch (error) {
      throwIfAborted(signal)
      problems.push(error instanceof Error ? error.message : String(error))
    }
  }
  throw new BobbinError(
    'DAEMON_UNAVAILABLE',
    `no container engine: ${problems.join('; ')}. Start one (systemctl start docker), or run without a container: bobbin run --host`,
  )
}

export interface Binding {
  readonly source: string
  readonly target: string
  readonly isWritable?: boolean
  /** Mounts that come and go below it are seen inside. */
  readonly isFollowed?: boolean
}

export function containerName(runId: string): string {
  return `bobbin-${runId}`
}

/** Also while it runs. One that is not there is no error. */
export async function removeContainer(engine: EngineName, name: string): Promise<void> {
  await runQuietly(engine, ['rm', '--force', '--', name])
}

export function containerCommand(options: {
  readonly engine: EngineName
  readonly runId: string
  readonly image: ImageIdentity
  readonly command: readonly string[]
  readonly env: Readonly<Record<string, string>>
  /** Names; their values come from the engine's client, so that they are in no command line. */
  readonly passed: readonly string[]
  readonly bindings: readonly Binding[]
  readonly engineOptions: readonly EngineOption[]
}): string[] {
  const { engine, runId, image, command, env, passed, bindings } = options
  return [
    engine,
    'run',
    '--rm',
    '--init',
    `--name=${containerName(runId)}`,
    `--label=bobbin.run=${runId}`,
    // It was resolved: what a tag points to now does not matter any more.
    '--pull=never',
    ...bindings.map(mountOption),
    ...Object.entries(env).map(([key, value]) => `--env=${key}=${value}`),
    ...passed.map(name => `--env=${name}`),
    ...options.engineOptions.map(formatEngineOption),
    '--',
    image.reference,
    ...command,
  ]
}

/** The options of `--mount` are CSV. Throws INVALID_ARGUMENT. */
export function checkBindable(path: string): void {
  if (/[,\n"]/.test(path))
    throw new BobbinError('INVALID_ARGUMENT', `engines cannot bind ${JSON.stringify(path)}: choose a plainer path`)
}

function mountOption({ source, target, isWritable = false, isFollowed = false }: Binding): string {
  for (const path of [source, target]) checkBindable(path)
  const parts = [`type=bind`, `source=${source}`, `target=${target}`, ...(isWritable ? [] : ['readonly'])]
  return `--mount=${[...parts, ...(isFollowed ? ['bind-propagation=rslave'] : [])].join(',')}`
}

/** Engines bind with `rslave` only what is shared here. */
export function isShared(path: string): boolean {
  let best = ''
  let found = false
  for (const line of readFileSync('/proc/self/mountinfo', 'utf8').split('\n')) {
    const fields = line.split(' ')
    const mountpoint = fields[4]?.replaceAll('\\040', ' ')
    if (mountpoint === undefined || mountpoint.length < best.length) continue
    if (path !== mountpoint && !path.startsWith(mountpoint === '/' ? '/' : `${mountpoint}/`)) continue
    best = mountpoint
    found = fields.slice(6, fields.indexOf('-')).some(field => field.startsWith('shared:'))
  }
  return found
}

/** Where a container finds the folder above all mounts. */
const MOUNTS_INSIDE = '/bobbin/mounts'

/** Where a container finds a mount (the one of this number), and the next one when it is made again (data.ts names the folders). */
export function followedAt({ target }: RunMount, number: number): string {
  return `${MOUNTS_INSIDE}/${number}/${basename(target)}`
}

/** The mount where it was asked for, and the folder above all mounts, which sees one that is made again. */
export function bindingsOf(mounts: readonly RunMount[], folder: string): Binding[] {
  const isFollowed = isShared(folder)
  return [
    ...(mounts.length > 0 ? [{ source: folder, target: MOUNTS_INSIDE, isFollowed }] : []),
    ...mounts.map(({ mountpoint, target, scratch }) => ({
      source: scratch?.mountpoint ?? mountpoint,
      target,
      isFollowed,
      isWritable: scratch !== undefined,
    })),
  ]
}
