/**
 * A run's own mounts: each run has one a package, also where the same revision is mounted already. They share the
 * objects and the index, cost milliseconds, and have an access log of their own: that is what makes ledgers exact.
 */
import { realpathSync } from 'node:fs'
import { basename, dirname, join, resolve } from 'node:path'
import { findBobbinFuse } from '../../daemon/control/bobbin-fuse.js'
import type { DaemonClient } from '../../daemon/control/client.js'
import type { MountFacts } from '../../daemon/control/schema.js'
import { BobbinError, hasCode } from '../../daemon/model/index.js'
import { NEEDS_ACCESS_LOGS } from '../../daemon/mount/access-logs.js'
import { mountAt, resolveMountpoint } from '../../daemon/mount/mount-table.js'
import { unmountPath } from '../../daemon/mount/unmount.js'
import { formatRegistry } from '../../daemon/registry/reference.js'
import { writeDurablySync } from '../../daemon/store/index.js'
import { type Context, openMeant, type PackageFlags } from '../context.js'
import { asSeen, mountScratch, SCRATCH_UMASK, type ScratchFacts, unmountOverlay } from '../overlay/mount-scratch.js'
import { findScratch, findScratches } from '../overlay/overlay.js'
import { lowerOf } from '../overlay/scratch-folder.js'
import type { RunMount } from '../record/run-facts.js'
import { type MadeFolder, makeFolders, removeFolders } from './made-folders.js'
import { isDead, isServed, settledStatus } from './mount-health.js'

/** Below the run's folder. */
const SCRATCH = 'scratch'

/** `PKG:TARGET` as typed. */
export interface MountWish {
  readonly asked: string
  /** A package, or a folder that is a mount already: then what is mounted there. */
  readonly source: string
  readonly target: string
}

/** The last colon before a path is the one. Throws INVALID_ARGUMENT. */
export function parseMountWish(text: string, isContainer: boolean): MountWish {
  const match = /^(.+?):((?:\/(?!\/)|\.\.?\/)[^:]*)$/s.exec(text)
  if (!match)
    throw new BobbinError('INVALID_ARGUMENT', `--mount ${text}: say PKG:/PATH, like s3://BUCKET/NS/NAME@3722a4:/data`)
  const [, source, target] = match
  if (isContainer && !isContainerTarget(target!))
    throw new BobbinError(
      'INVALID_ARGUMENT',
      `--mount ${text}: ${target} is not an absolute path, which a container needs`,
    )
  return { asked: text, source: source!, target: isContainer ? resolve(target!) : target! }
}

/** Engines take their options for mounts as CSV, and `/` is the image's. */
export function isContainerTarget(target: string): boolean {
  return target.startsWith('/') && !/[,\n"\0]/.test(target) && resolve(target) !== '/'
}

/**
 * Resolves, and mounts below `folder` (in containers; it lies in the run's folder) or at the target itself. What was mounted is undone by
 * `undo`. The access logs are kept from now on, until the record is made.
 */
export async function mountFor(
  wishes: readonly MountWish[],
  flags: PackageFlags,
  context: Context,
  {
    client,
    folder,
    isContainer,
    withScratch,
    onProgress,
  }: {
    readonly client: DaemonClient
    readonly folder: string
    readonly isContainer: boolean
    /** Each mount has a scratch folder of its own, in the run's folder. */
    readonly withScratch: boolean
    /** Told of a mount before and behind its making, and of all folders that were made for mounts. */
    onProgress(mounts: readonly RunMount[], madeFolders: readonly MadeFolder[], mounting?: string): void
  },
): Promise<RunMount[]> {
  const { settings } = context
  const mounts: RunMount[] = []
  const madeFolders: MadeFolder[] = []
  const run = resolve(dirname(folder))
  if (wishes.length > 0) writeDurablySync(join(run, NEEDS_ACCESS_LOGS), '')
  try {
    for (const [i, wish] of wishes.entries()) {
      const text = (await mountedPackage(client, wish.source)) ?? wish.source
      const { opened } = await openMeant(text, flags, context)
      try {
        // The folder above the mountpoint is bound, too: a mount that is made again is seen there, and only there.
        const wanted = isContainer ? join(folder, String(i), basename(wish.target)) : resolve(wish.target)
        madeFolders.push(...makeFolders(wanted))
        const mountpoint = await resolveMountpoint(wanted)
        const scratchFolder = withScratch ? join(realpathSync(run), SCRATCH, String(i)) : undefined
        onProgress(mounts, madeFolders, scratchFolder === undefined ? mountpoint : lowerOf(scratchFolder))
        const body = {
          registry: formatRegistry(opened.registry),
          package: opened.name,
          topHash: opened.topHash,
          mountpoint,
          run,
          quarantine: flags.quarantine ?? false,
          // Containers may run as anybody.
          ...(isContainer && { allowOther: true }),
          uid: process.getuid?.() ?? 0,
          gid: process.getgid?.() ?? 0,
          ...(settings.openMode !== undefined && { openMode: settings.openMode }),
        }
        const facts: MountFacts & Partial<ScratchFacts> =
          scratchFolder === undefined
            ? await client.mount(body)
            : await mountScratch(
                client,
                { ...body, umask: isContainer ? 0 : SCRATCH_UMASK },
                scratchFolder,
                settings.cacheDir,
              )
        mounts.push({
          asked: wish.asked,
          registry: facts.registry,
          package: facts.package,
          topHash: facts.topHash,
          manifestSha256: opened.index.facts.manifestSha256,
          entries: facts.entries,
          bytes: facts.bytes,
          mountpoint: facts.scratch?.lower ?? mountpoint,
          target: isContainer ? wish.target : mountpoint,
          mountedAt: facts.mountedAt,
          cacheDir: settings.cacheDir,
          ...(flags.quarantine && { quarantine: true }),
          ...(facts.scratch !== undefined && {
            scratch: { folder: facts.scratch.folder, mountpoint, overlay: facts.scratch.overlay },
          }),
        })
        onProgress(mounts, madeFolders)
      } finally {
        opened.close()
      }
    }
  } catch (error) {
    await unmountAll(client, mounts)
    removeFolders(madeFolders)
    throw error
  }
  return mounts
}

/** Those whose overlay is not there any more: what the command wrote and read from then on went elsewhere. */
export function withoutOverlay(mounts: readonly RunMount[]): readonly RunMount[] {
  const overlays = new Set(findScratches().flatMap(({ lower, overlay }) => (overlay === undefined ? [] : [lower])))
  return mounts.filter(({ scratch, mountpoint }) => scratch !== undefined && !overlays.has(mountpoint))
}

/** What is mounted at a folder, as a reference. */
async function mountedPackage(client: DaemonClient, text: string): Promise<string | undefined> {
  const mounts = asSeen((await client.status()).mounts)
  const found = mounts.find(({ mountpoint }) => mountpoint === resolve(text))
  if (found !== undefined) return `${found.registry}/${found.package}@${found.topHash}`
  if (mountAt(resolve(text))?.type !== 'fuse.bobbin') return undefined
  throw new BobbinError(
    'INVALID_ARGUMENT',
    `${text} is mounted by the daemon of another cache: pass that cache with --cache, or name the package`,
  )
}

/** One whose maker was killed before it could write down that it is there. */
export async function unmountUnrecorded(client: DaemonClient, mountpoint: string, startedOn: string): Promise<void> {
  const scratch = findScratch(mountpoint)
  if (scratch?.overlay !== undefined && scratch.lower === mountpoint) await unmountOverlay(scratch, true)
  const { mounts } = await client.status()
  const found = mounts.find(one => one.mountpoint === mountpoint)
  if (found !== undefined && Date.parse(found.mountedAt) >= Date.parse(startedOn))
    await client.unmount(mountpoint, true)
}

/** Also while something is open in them, since the run is over. What somebody else has mounted there since then stays. */
export async function unmountAll(client: DaemonClient | undefined, mounts: readonly RunMount[]): Promise<void> {
  if (mounts.length === 0) return
  const overlays = findScratches()
  for (const { mountpoint: lower } of mounts) {
    const scratch = overlays.find(one => one.lower === lower && one.overlay !== undefined)
    if (scratch !== undefined) await unmountOverlay(scratch, true)
  }
  const status = client && (await settledStatus(client, mounts))
  for (const mount of mounts) {
    const { mountpoint } = mount
    try {
      if (status !== undefined && isServed(mount, status)) await client?.unmount(mountpoint, true)
      else if (await isDead(mountpoint))
        await unmountPath(mountpoint, { isForced: true, program: findBobbinFuse().path })
    } catch (error) {
      if (!hasCode(error, 'NOT_MOUNTED', 'DAEMON_UNAVAILABLE')) throw error
    }
  }
}
