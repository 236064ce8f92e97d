/**
 * The mounts of one daemon, by mountpoint. Which mountpoints they are is kept in `<cache>/mounts`, so
 * that a daemon which starts after one that was killed can clear the dead ones away.
 */
import { readFileSync, renameSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { BobbinError, type Log, parsePackageName, type Source } from '../model/index.js'
import { isDeadMount } from '../mount/dead-mounts.js'
import { checkMountpoint, mountAt, resolveMounted, resolveMountpoint } from '../mount/mount-table.js'
import type { FuseTransport, ObjectProvider, OpenModeWish, SurvivingMount, TransportMount } from '../mount/transport.js'
import { unmountPath } from '../mount/unmount.js'
import { type OpenedPackage, openPackage } from '../package/package-cache.js'
import { formatRegistry, parseRegistry } from '../registry/reference.js'
import { confined, type Places } from '../registry/served.js'
import type { CacheRoom } from '../store/cache-room.js'
import { findBobbinFuse } from './bobbin-fuse.js'
import { requireWithin } from './leases.js'
import type { MountBody, MountFacts } from './schema.js'

/** A user who is not the owner, and what may be read for them. */
export interface MountsCaller {
  /** By which bobbin-fuse knows them. */
  readonly number: number
  readonly uid: number
  /** `undefined`: anything. */
  readonly places: Places | undefined
}

/** What the next daemon has to know of a mount that outlives this one. */
interface MountNote {
  readonly body: MountBody
  readonly mountedAt: string
  readonly caller?: MountsCaller | undefined
}

interface Mounted {
  readonly facts: MountFacts
  readonly mount: TransportMount
}

export interface MountsOptions {
  readonly cacheDir: string
  readonly source: Source
  /** A reload changes it. */
  readonly isOffline: () => boolean
  /** For a package that has to be compiled. */
  readonly room?: CacheRoom | undefined
  readonly transport: FuseTransport
  /** Where a mount does not say. */
  readonly openMode: OpenModeWish
  readonly objects: ObjectProvider
  readonly log: Log
}

export class Mounts {
  readonly #mounted = new Map<string, Mounted>()
  readonly #starting = new Set<string>()
  #onStarted: (() => void) | undefined
  #isClosing = false

  constructor(private readonly options: MountsOptions) {}

  /**
   * For the start, before anything is mounted: mounts that outlived an earlier daemon are taken over, and
   * those that did not are cleared away.
   */
  async begin(): Promise<void> {
    for (const survivor of this.options.transport.survivors?.() ?? []) await this.#adopt(survivor)
    await clearDeadMounts(this.#listPath, this.options.log)
    this.#writeList()
  }

  async #adopt(survivor: SurvivingMount): Promise<void> {
    const { log, objects } = this.options
    try {
      const { body, mountedAt, caller } = JSON.parse(survivor.note) as MountNote
      const opened = await this.#open(body, caller?.places)
      const mount = survivor.attach({
        mountpoint: body.mountpoint,
        opened,
        objects: within(objects, caller?.places),
        log,
        mountedAt: Date.parse(mountedAt),
        run: body.run,
      })
      this.#keep(opened, mount, body, mountedAt, caller)
      log.info({ mountpoint: body.mountpoint, package: opened.name, topHash: opened.topHash }, 'goes on with a mount')
    } catch (error) {
      // Its package cannot be opened, so its readers would wait for nothing.
      log.error({ note: survivor.note, error: String(error) }, 'a mount cannot go on and is detached')
      survivor.abandon()
    }
  }

  get #listPath(): string {
    return join(this.options.cacheDir, 'mounts')
  }

  /** Throws what opening the package, checking the mountpoint and mounting throw; nothing is mounted then. */
  async add(body: MountBody): Promise<MountFacts> {
    this.#refuseWhenClosing()
    this.#refuseInside(body.mountpoint)
    const mountpoint = await resolveMountpoint(body.mountpoint)
    return this.#addAt(mountpoint, body, undefined)
  }

  /** For a user who is not the owner. bobbin-fuse looks at the folder; the daemon, which may see more, does not. */
  async addFor(caller: MountsCaller, body: MountBody): Promise<MountFacts> {
    this.#refuseWhenClosing()
    return this.#addAt(body.mountpoint, body, caller)
  }

  async #addAt(mountpoint: string, body: MountBody, caller: MountsCaller | undefined): Promise<MountFacts> {
    if (this.#starting.has(mountpoint))
      throw new BobbinError('ALREADY_MOUNTED', `${mountpoint} is being mounted already`)
    this.#starting.add(mountpoint)
    try {
      this.#refuseInside(mountpoint)
      if (caller === undefined) await checkMountpoint(mountpoint)
      else if (this.#mounted.has(mountpoint))
        throw new BobbinError('ALREADY_MOUNTED', `${mountpoint} is mounted already`)
      const opened = await this.#open(body, caller?.places)
      try {
        this.#refuseWhenClosing()
        return await this.#mount(opened, mountpoint, body, caller)
      } catch (error) {
        opened.close()
        throw error
      }
    } finally {
      this.#starting.delete(mountpoint)
      this.#onStarted?.()
    }
  }

  #refuseWhenClosing(): void {
    if (this.#isClosing) throw new BobbinError('DAEMON_UNAVAILABLE', 'the daemon is about to end: try again')
  }

  /** Looking at such a mountpoint would be a call of ours on a mount of ours. */
  #refuseInside(path: string): void {
    const outer = [...this.#mounted.keys()].find(mountpoint => path.startsWith(`${mountpoint}/`))
    if (outer === undefined) return
    throw new BobbinError('MOUNTPOINT_UNUSABLE', `${path} lies inside the mount ${outer}: choose a folder outside`)
  }

  /** Its manifest, too, is a file like others, and may be a link that leads out. */
  #open(body: MountBody, places: Places | undefined): Promise<OpenedPackage> {
    const { cacheDir, isOffline, room } = this.options
    const source = confined(this.options.source, places?.folders)
    return openPackage(
      {
        registry: parseRegistry(body.registry),
        name: parsePackageName(body.package),
        revision: { kind: 'hash', prefix: body.topHash },
      },
      { cacheDir, source, offline: isOffline(), room, quarantine: body.quarantine ?? false },
    )
  }

  async #mount(
    opened: OpenedPackage,
    mountpoint: string,
    body: MountBody,
    caller: MountsCaller | undefined,
  ): Promise<MountFacts> {
    const { objects, log, transport } = this.options
    const mountedAt = new Date().toISOString()
    const note: MountNote = { body: { ...body, mountpoint }, mountedAt, caller }
    const mount = await transport.mount({
      mountpoint,
      opened,
      objects: within(objects, caller?.places),
      log,
      caller: caller?.number,
      mountedAt: Date.parse(mountedAt),
      run: body.run,
      openMode: body.openMode ?? this.options.openMode,
      note: JSON.stringify(note),
      unmountProgram: findBobbinFuse().path,
      options: {
        allowOther: caller === undefined && (body.allowOther ?? process.getuid?.() === 0),
        uid: body.uid ?? process.getuid?.() ?? 0,
        gid: body.gid ?? process.getgid?.() ?? 0,
        umask: body.umask ?? 0,
        showsWriteBits: body.showsWriteBits ?? false,
        listAttributes: body.listAttributes ?? false,
      },
    })
    log.info({ mountpoint, package: opened.name, topHash: opened.topHash }, 'mounted')
    return this.#keep(opened, mount, { ...body, mountpoint }, mountedAt, caller)
  }

  #keep(
    opened: OpenedPackage,
    mount: TransportMount,
    { mountpoint, listAttributes = false }: MountBody,
    mountedAt: string,
    caller: MountsCaller | undefined,
  ): MountFacts {
    const { log, transport } = this.options
    const facts: MountFacts = {
      mountpoint,
      registry: formatRegistry(opened.registry),
      package: opened.name,
      topHash: opened.topHash,
      transport: transport.name,
      openMode: mount.openMode,
      ...(mount.openModeReason !== undefined && { openModeReason: mount.openModeReason }),
      listsAttributes: listAttributes,
      entries: opened.index.facts.entries,
      bytes: opened.index.facts.bytes,
      mountedAt,
      ...(caller !== undefined && { uid: caller.uid }),
    }
    this.#mounted.set(mountpoint, { facts, mount })
    this.#writeList()
    mount.closed.then(() => {
      this.#mounted.delete(mountpoint)
      this.#writeList()
      log.info({ mountpoint }, 'unmounted')
    })
    mount.ended.then(() => opened.close())
    return facts
  }

  /** Throws NOT_MOUNTED, and ALREADY_MOUNTED when it is in use. */
  async remove(path: string, isForced: boolean): Promise<void> {
    const mounted = this.#mounted.get(path) ?? this.#mounted.get(await resolveMounted(path))
    if (mounted === undefined)
      throw new BobbinError('NOT_MOUNTED', `${path} is not a mount of this daemon (bobbin status lists them)`)
    await mounted.mount.unmount({ isForced })
    await mounted.mount.closed
  }

  /** Throws NOT_MOUNTED for what is not a mount of that user, whatever it is. */
  async removeOwn(mountpoint: string, isForced: boolean, uid: number): Promise<void> {
    const mounted = this.#mounted.get(mountpoint)
    if (mounted?.facts.uid !== uid)
      throw new BobbinError('NOT_MOUNTED', `${mountpoint} is not a mount of yours (bobbin status lists them)`)
    await mounted.mount.unmount({ isForced })
    await mounted.mount.closed
  }

  list(): MountFacts[] {
    return Array.from(this.#mounted.values(), ({ facts }) => facts)
  }

  /**
   * Unmounts all that can be. `isForced`: busy ones vanish, too, and last until their files are
   * closed. Throws what the first of those threw that could not.
   */
  async removeAll(isForced: boolean): Promise<void> {
    const removals = [...this.#mounted.keys()].map(mountpoint => this.remove(mountpoint, isForced))
    for (const removal of await Promise.allSettled(removals)) if (removal.status === 'rejected') throw removal.reason
  }

  /** Takes no more, and waits for what is being mounted. */
  async settle(): Promise<void> {
    this.#isClosing = true
    while (this.#starting.size > 0) {
      await new Promise<void>(resolve => {
        this.#onStarted = resolve
      })
    }
  }

  /** For the end: also what is being mounted is unmounted, and what is busy is detached. */
  async close(): Promise<void> {
    await this.settle()
    for (const mountpoint of [...this.#mounted.keys()]) {
      try {
        await this.remove(mountpoint, false)
      } catch (error) {
        this.options.log.warn(
          { mountpoint, error: String(error) },
          'a mount is in use and is detached: its open files end with the daemon',
        )
        await this.remove(mountpoint, true).catch(failure =>
          this.options.log.error({ mountpoint, error: String(failure) }, 'a mount could not be removed'),
        )
      }
    }
  }

  /**
   * The list is only a help to a later daemon: a full disk ends no mount, and is no reason to refuse one. Mounts of others are
   * not in it: dead ones are unmounted by path, and others can put links in the way of theirs.
   */
  #writeList(): void {
    const path = this.#listPath
    const own = this.list().filter(({ uid }) => uid === undefined)
    try {
      writeFileSync(`${path}.new`, own.map(({ mountpoint }) => `${JSON.stringify(mountpoint)}\n`).join(''), {
        mode: 0o640,
      })
      renameSync(`${path}.new`, path)
    } catch (error) {
      this.options.log.warn({ path, error: String(error) }, 'cannot write down which mounts there are')
    }
  }
}

/** Of what is opened there, nothing from anywhere else is read. */
function within(objects: ObjectProvider, places: Places | undefined): ObjectProvider {
  if (places === undefined) return objects
  return {
    ...objects,
    open: async (spec, options) => {
      requireWithin(spec, [places])
      return objects.open(spec, { ...options, within: places.folders })
    },
  }
}

/** Unmounts what a daemon that was killed has left: mounts of ours on which every call fails with ENOTCONN. */
async function clearDeadMounts(listPath: string, log: Log): Promise<void> {
  let lines: string[]
  try {
    lines = readFileSync(listPath, 'utf8')
      .split('\n')
      .filter(line => line !== '')
  } catch {
    return
  }
  for (const line of lines) {
    let mountpoint: string
    try {
      mountpoint = String(JSON.parse(line))
    } catch {
      continue
    }
    if (mountAt(mountpoint)?.type !== 'fuse.bobbin') continue
    if (!(await isDeadMount(mountpoint))) continue
    try {
      await unmountPath(mountpoint, { isForced: true, program: findBobbinFuse().path })
      log.warn({ mountpoint }, 'a dead mount of an earlier daemon was cleared away')
    } catch (error) {
      log.error({ mountpoint, error: String(error) }, 'a dead mount of an earlier daemon cannot be cleared away')
    }
  }
}
