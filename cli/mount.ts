import { mkdirSync } from 'node:fs'
import { resolve } from 'node:path'
import { findBobbinFuse } from '../daemon/control/bobbin-fuse.js'
import { type DaemonClient, findDaemon } from '../daemon/control/client.js'
import { ensureDaemon } from '../daemon/control/launch.js'
import type { MountBody, MountFacts } from '../daemon/control/schema.js'
import { BobbinError, formatBytes, localError, throwIfAborted } from '../daemon/model/index.js'
import { checkMountpoint, mountAt, resolveMountpoint } from '../daemon/mount/mount-table.js'
import { formatRegistry } from '../daemon/registry/reference.js'
import { resolveRevision } from '../daemon/registry/registry.js'
import { type PackageFlags, withContext, withMeant, withPackage } from './context.js'
import { daemonDiffers } from './daemon-differs.js'
import { mountScratch, type ScratchFacts } from './overlay/mount-scratch.js'
import { findScratch, overlayMakers } from './overlay/overlay.js'
import { upperOf } from './overlay/scratch-folder.js'
import { readSettings, type Settings } from './settings.js'

interface MountFlags extends PackageFlags {
  readonly allowOther?: boolean
  readonly uid?: number
  readonly gid?: number
  readonly umask?: number
  readonly mkdir?: boolean
  /** A folder. */
  readonly scratch?: string
  readonly listAttributes?: boolean
}

/** Resolves and compiles here, with our credentials and our progress bar; the daemon then finds it all in the cache. */
export async function mount(text: string, dir: string, flags: MountFlags): Promise<void> {
  for (const name of ['uid', 'gid', 'umask'] as const) {
    if (flags[name] !== undefined && !Number.isInteger(flags[name]))
      throw new BobbinError('INVALID_ARGUMENT', `--${name} is not a number`)
  }
  if (flags.scratch !== undefined) overlayMakers()
  const mountpoint = await prepareMountpoint(resolve(dir), flags)
  const caller = findDaemon(readSettings(flags).cacheDir)
  if (caller?.isCaller) return mountAsCaller(text, mountpoint, flags, caller)
  await withPackage(text, flags, async (opened, { settings, output, signal }) => {
    const { client, isStarted } = await ensureDaemon(settings)
    if (isStarted) output.note(`bobbin: started the daemon (process ${client.pid}) for ${settings.cacheDir}`)
    else {
      const differs = await daemonDiffers(client, settings)
      if (differs !== undefined) output.note(`bobbin: ${differs}`)
    }
    throwIfAborted(signal)
    const facts = await mountBody(client, flags, settings, {
      registry: formatRegistry(opened.registry),
      package: opened.name,
      topHash: opened.topHash,
      mountpoint,
      quarantine: flags.quarantine ?? false,
      ...(flags.allowOther !== undefined && { allowOther: flags.allowOther }),
      // Whoever types the command owns the files, also when the daemon is another user's.
      uid: flags.uid ?? process.getuid?.() ?? 0,
      gid: flags.gid ?? process.getgid?.() ?? 0,
      ...(settings.openMode !== undefined && { openMode: settings.openMode }),
      ...(flags.umask !== undefined && { umask: flags.umask }),
      ...(flags.listAttributes && { listAttributes: true }),
    })
    const { entries, bytes, topHash } = facts
    if (facts.transport === 'fuse-native')
      output.note(`bobbin: mounted through fuse-native, which is slow: ${whyNotNative()}`)
    else if (facts.openModeReason !== undefined) output.note(`bobbin: ${facts.openModeReason}`)
    await output.row(facts, [
      topHash,
      `mounted on ${facts.mountpoint}: ${entries.toLocaleString('en')} entries, ${formatBytes(bytes)} (${facts.transport}, ${facts.openMode})`,
      ...scratchLines(facts),
    ])
  })
}

/** Another user's daemon, which lets others mount: it fetches and compiles, and the mount is ours alone. */
async function mountAsCaller(text: string, mountpoint: string, flags: MountFlags, client: DaemonClient): Promise<void> {
  if (flags.allowOther || flags.uid !== undefined || flags.gid !== undefined) {
    throw new BobbinError(
      'ACCESS_DENIED',
      `a mount through another user's daemon is for you alone: leave out --allow-other, --uid and --gid`,
    )
  }
  await withContext(flags, async context => {
    const { settings, output, source, signal } = context
    const { reference, topHash } = await withMeant(text, flags, context, async reference => ({
      reference,
      topHash: await resolveRevision(source, reference, { signal }),
    }))
    const facts = await mountBody(client, flags, settings, {
      registry: formatRegistry(reference.registry),
      package: reference.name,
      topHash,
      mountpoint,
      quarantine: flags.quarantine ?? false,
      ...(settings.openMode !== undefined && { openMode: settings.openMode }),
      ...(flags.umask !== undefined && { umask: flags.umask }),
      ...(flags.listAttributes && { listAttributes: true }),
    })
    const lines = [facts.topHash, `mounted on ${facts.mountpoint}: for this user alone`, ...scratchLines(facts)]
    await output.row(facts, lines)
  })
}

async function mountBody(
  client: DaemonClient,
  { scratch }: MountFlags,
  { cacheDir }: Settings,
  body: MountBody,
): Promise<MountFacts | ScratchFacts> {
  return scratch === undefined ? client.mount(body) : mountScratch(client, body, scratch, cacheDir)
}

function scratchLines(facts: MountFacts | ScratchFacts): string[] {
  if (!('scratch' in facts)) return []
  return [`what is written there lies in ${upperOf(facts.scratch.folder)}, and is no part of the package`]
}

function whyNotNative(): string {
  const { reason } = findBobbinFuse()
  return reason === undefined ? 'the daemon was started with that transport' : `bobbin-fuse cannot be used, ${reason}`
}

/** Looked at before anything is fetched: a wrong mountpoint should not cost a download. */
async function prepareMountpoint(dir: string, flags: MountFlags): Promise<string> {
  if (flags.mkdir && mountAt(dir) === undefined) {
    try {
      mkdirSync(dir, { recursive: true })
    } catch (error) {
      throw localError(`make the mountpoint ${dir}`, error)
    }
  }
  const mountpoint = await resolveMountpoint(dir)
  const scratch = findScratch(mountpoint)
  if (scratch?.overlay !== undefined && scratch.mountpoint === mountpoint)
    throw new BobbinError(
      'ALREADY_MOUNTED',
      `${mountpoint} is a mountpoint already (with the scratch folder ${scratch.folder}): bobbin umount ${mountpoint}`,
    )
  await checkMountpoint(mountpoint)
  return mountpoint
}
