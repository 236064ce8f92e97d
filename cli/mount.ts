import { mkdirSync } from 'node:fs'
import { resolve } from 'node:path'
import { findBobbinFuse } from '../daemon/control/bobbin-fuse.js'
import { ensureDaemon } from '../daemon/control/launch.js'
import { BobbinError, formatBytes, localError, throwIfAborted } from '../daemon/model/index.js'
import { checkMountpoint, mountAt, resolveMountpoint } from '../daemon/mount/mount-table.js'
import { formatRegistry } from '../daemon/quilt/reference.js'
import { type PackageFlags, withPackage } from './context.js'

interface MountFlags extends PackageFlags {
  readonly allowOther?: boolean
  readonly uid?: number
  readonly gid?: number
  readonly umask?: number
  readonly mkdir?: boolean
}

/** Resolves and compiles here, with our credentials and our progress bar; the daemon then finds it all in the cache. */
export async function mount(text: string, dir: string, flags: MountFlags): Promise<void> {
  for (const name of ['uid', 'gid', 'umask'] as const) {
    if (flags[name] !== undefined && !Number.isInteger(flags[name]))
      throw new BobbinError('INVALID_ARGUMENT', `--${name} is not a number`)
  }
  const mountpoint = await prepareMountpoint(resolve(dir), flags)
  await withPackage(text, flags, async (opened, { settings, output, signal }) => {
    const { client, isStarted } = await ensureDaemon(settings)
    if (isStarted) output.note(`bobbin: started the daemon (process ${client.pid}) for ${settings.cacheDir}`)
    throwIfAborted(signal)
    const facts = await client.mount({
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
    })
    const { entries, bytes, topHash } = facts
    if (facts.transport === 'fuse-native')
      output.note(`bobbin: mounted through fuse-native, which is slow: ${whyNotNative()}`)
    else if (facts.openModeReason !== undefined) output.note(`bobbin: ${facts.openModeReason}`)
    await output.row(facts, [
      topHash,
      `mounted on ${facts.mountpoint}: ${entries.toLocaleString('en')} entries, ${formatBytes(bytes)} (${facts.transport}, ${facts.openMode})`,
    ])
  })
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
  await checkMountpoint(mountpoint)
  return mountpoint
}
