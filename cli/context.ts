/** What a verb works with: settings, output, progress, a source, and a signal that fires on Ctrl-C. */
import { accessSync, constants, existsSync } from 'node:fs'
import { dirname } from 'node:path'
import { daemonRoom } from '../daemon/control/room-holds.js'
import { BobbinError, hasCode, homeFolder, isInHome, type Source, userName } from '../daemon/model/index.js'
import { type OpenedPackage, type OpenOptions, openPackage } from '../daemon/package/package-cache.js'
import { formatRegistry, type PackageReference, parseReference } from '../daemon/registry/reference.js'
import { createSource, type SourceConfig } from '../daemon/source/index.js'
import { refuseForeignFolder } from '../daemon/store/index.js'
import { Output } from './output.js'
import { type Progress, startProgress } from './progress.js'
import { quiltRegistries } from './quilt-config.js'
import { type CommonFlags, readSettings, type Settings } from './settings.js'
import { tellOfWaiting } from './waiting.js'

/** The flags of verbs that take a package. */
export interface PackageFlags extends CommonFlags {
  readonly registry?: string
  readonly topHash?: string
  readonly quarantine?: boolean
}

export interface Context {
  readonly settings: Settings
  readonly output: Output
  readonly progress: Progress
  readonly source: Source
  readonly signal: AbortSignal
}

/** The signal that ended us, for the exit code. */
export let endingSignal: EndingSignal | undefined

/** With what a shell says that a program ended by them. */
export const ENDING_SIGNALS = { SIGINT: 130, SIGTERM: 143, SIGHUP: 129 } as const
type EndingSignal = keyof typeof ENDING_SIGNALS

/**
 * Runs a verb and closes what it was given, also when it fails or is interrupted. `onlyAsks`: the verb leaves nothing in the
 * cache, it only looks there or asks the daemon, so that root may run it on anybody's.
 */
export async function withContext(
  flags: CommonFlags,
  run: (context: Context) => Promise<void>,
  { onlyAsks = false }: { readonly onlyAsks?: boolean } = {},
): Promise<void> {
  const settings = readSettings(flags)
  if (!onlyAsks) requireCache(settings.cacheDir)
  const controller = new AbortController()
  const onSignal = (signal: EndingSignal) => {
    // A second Ctrl-C means it: clean-up took too long for whoever typed it.
    if (endingSignal !== undefined) process.exit(ENDING_SIGNALS[signal])
    endingSignal = signal
    controller.abort()
  }
  const signals = Object.keys(ENDING_SIGNALS) as EndingSignal[]
  for (const signal of signals) process.on(signal, onSignal)
  const output = new Output(flags)
  const progress = startProgress(flags)
  const tellNoMore = tellOfWaiting(flags, progress)
  const source = createSource(sourceConfigOf(settings))
  try {
    await run({ settings, output, progress, source, signal: controller.signal })
    await output.flush()
  } finally {
    tellNoMore()
    progress.stop()
    source.close()
    for (const signal of signals) process.off(signal, onSignal)
  }
}

/**
 * Before a verb leaves something in the cache. Throws INVALID_ARGUMENT where nobody has said where it is, for a user without a
 * home, and ACCESS_DENIED where it cannot be made, or belongs to somebody else and this is root.
 */
export function requireCache(cacheDir: string): void {
  if (!isInHome(cacheDir)) {
    throw new BobbinError(
      'INVALID_ARGUMENT',
      `user ${userName()} has no home folder for a cache: name one with --cache or BOBBIN_CACHE, or set HOME`,
    )
  }
  const otherwise = 'name a cache of your own with --cache or BOBBIN_CACHE'
  if (existsSync(cacheDir)) {
    refuseForeignFolder(cacheDir, 'the cache', otherwise)
    return
  }
  const home = homeFolder()
  if (cacheDir.startsWith(`${home}/`)) refuseForeignFolder(home, 'the home', otherwise)
  let nearest = dirname(cacheDir)
  while (!existsSync(nearest)) nearest = dirname(nearest)
  if (isWritable(nearest)) return
  throw new BobbinError(
    'ACCESS_DENIED',
    `cannot make the cache folder ${cacheDir}: user ${userName()} may not write to ${nearest}; ${otherwise}`,
  )
}

function isWritable(folder: string): boolean {
  try {
    accessSync(folder, constants.W_OK)
    return true
  } catch {
    return false
  }
}

/** What worker threads need to build a source of their own. */
export function sourceConfigOf({ ioTimeoutMs, offline }: Settings): SourceConfig {
  return { ioTimeoutMs, offline }
}

/**
 * The package that is meant. The registry of a name without one is the first that is set: flag, environment, config file
 * (`settings`), quilt3's `default_remote_registry`, quilt3's local registry if it has packages.
 */
export function referenceOf(text: string, flags: PackageFlags, settings: Settings): PackageReference {
  return parseReference(text, {
    ...(flags.registry !== undefined && { registry: flags.registry }),
    ...(flags.topHash !== undefined && { topHash: flags.topHash }),
    defaultRegistry: () => defaultRegistryOf(settings),
  })
}

/** For reading; nothing is written to a local registry because nobody named another. */
export function defaultRegistryOf(settings: Settings, isForWriting = false): string | undefined {
  if (settings.registry !== undefined) return settings.registry
  const { remote, local, hasLocal } = quiltRegistries()
  if (remote !== undefined) return formatRegistry(remote)
  return hasLocal && !isForWriting ? formatRegistry(local) : undefined
}

/** What quilt3's local registry has of a name that its remote one does not know. */
function localReference(text: string, flags: PackageFlags, settings: Settings): PackageReference | undefined {
  if (flags.registry !== undefined || settings.registry !== undefined) return undefined
  const { remote, local, hasLocal } = quiltRegistries()
  if (remote === undefined || !hasLocal) return undefined
  // A registry in the text stands for itself.
  const reference = referenceOf(text, flags, settings)
  const other = parseReference(text, {
    ...(flags.topHash !== undefined && { topHash: flags.topHash }),
    defaultRegistry: () => formatRegistry(local),
  })
  return formatRegistry(reference.registry) === formatRegistry(other.registry) ? undefined : other
}

/** Its manifest is fetched and compiled, with progress, unless it is cached. Whoever opened it closes it. */
export function openNamed(
  reference: PackageReference,
  { quarantine = false }: PackageFlags,
  { settings, source, output, progress, signal }: Context,
): Promise<OpenedPackage> {
  const { cacheDir, offline } = settings
  const onProgress: OpenOptions['onProgress'] = ({ phase, done, total }) => progress.update(phase, done, total)
  const room = daemonRoom(cacheDir, settings)
  const onNote = (text: string) => output.note(`bobbin: ${text}`)
  return openPackage(reference, { cacheDir, source, offline, quarantine, room, signal, onProgress, onNote })
}

/**
 * Gives `use` the package that is meant. A name without a registry is looked for in quilt3's remote registry first; `use`
 * throws PACKAGE_NOT_FOUND or REVISION_NOT_FOUND when it is not there, and is then called with quilt3's local one, which is
 * said. So `use` only looks: what changes something comes after it.
 */
export async function withMeant<T>(
  text: string,
  flags: PackageFlags,
  { settings, output }: Context,
  use: (reference: PackageReference) => Promise<T>,
): Promise<T> {
  const reference = referenceOf(text, flags, settings)
  try {
    return await use(reference)
  } catch (error) {
    const other = isUnknown(error) ? localReference(text, flags, settings) : undefined
    if (other === undefined) throw error
    // Both do not know it: the remote registry is the one that a user thinks of.
    const used = await use(other).catch((second: unknown) => Promise.reject(isUnknown(second) ? error : second))
    output.note(
      `bobbin: ${other.name} is not in ${formatRegistry(reference.registry)}, but in quilt3's local registry ${formatRegistry(other.registry)}`,
    )
    return used
  }
}

function isUnknown(error: unknown): boolean {
  return hasCode(error, 'PACKAGE_NOT_FOUND', 'REVISION_NOT_FOUND', 'REGISTRY_NOT_FOUND')
}

/** As `openNamed`, of the package that is meant. */
export function openMeant(
  text: string,
  flags: PackageFlags,
  context: Context,
): Promise<{ readonly opened: OpenedPackage; readonly reference: PackageReference }> {
  return withMeant(text, flags, context, async reference => ({
    opened: await openNamed(reference, flags, context),
    reference,
  }))
}

/** Runs a verb on one revision. */
export async function withPackage(
  text: string,
  flags: PackageFlags,
  run: (opened: OpenedPackage, context: Context, reference: PackageReference) => Promise<void>,
): Promise<void> {
  await withContext(flags, async context => {
    const { opened, reference } = await openMeant(text, flags, context)
    try {
      const left = opened.index.quarantined()
      if (left.length > 0) {
        context.output.note(`bobbin: left out ${left.length} rows of the manifest:`)
        for (const { row, key, reason } of left.slice(0, 20))
          context.output.note(`  row ${row}, ${JSON.stringify(key)}: ${reason}`)
        if (left.length > 20) context.output.note(`  and ${left.length - 20} more`)
      }
      await run(opened, context, reference)
    } finally {
      opened.close()
    }
  })
}
