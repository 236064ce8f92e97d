/**
 * The transport over bobbin-fuse, the process that owns the mounts and started us. It answers names and
 * hits by itself; what comes here is what it cannot know: objects that have to be fetched, indexes that
 * have to be made again, and what was read.
 *
 * Nothing here is needed for a mount to go on: when we end, the next daemon finds the mounts again
 * (`survivors`) and is asked again for whatever readers wait for.
 */
import { fstatSync } from 'node:fs'
import { BobbinError, hasCode, type Log, loggedLine } from '../model/index.js'
import { atPresentPlace } from '../package/moved-objects.js'
import type { OpenedPackage } from '../package/package-cache.js'
import { formatRegistry } from '../registry/reference.js'
import { type ObjectId, objectId } from '../store/index.js'
import { AccessLog } from './access-log.js'
import { AccessLogRoom } from './access-logs.js'
import { errnoOf } from './errno.js'
import { Link, type LinkHandlers } from './link.js'
import {
  type EvictOutcome,
  KEPT_BYTES_MAX,
  type LinkedMount,
  type LinkOpenMode,
  SHOWS_WRITE_BITS,
  type VerifiedObject,
} from './link-frames.js'
import type {
  FuseTransport,
  MountRequest,
  OpenMode,
  SurvivingMount,
  TransportMount,
  TransportStats,
} from './transport.js'

/** Readers' deadlines are on progress: what has gone on is said this often, and be it only that we are there. */
const WORKING_MS = 1000

export interface NativeOptions {
  /** Our end of the link, inherited. */
  readonly linkFd: number
  readonly cacheDir: string
  readonly version: string
  readonly log: Log
  /** What access logs may take together. Bytes. */
  readonly accessLogBytesMax?: () => number
}

type Attached = Pick<MountRequest, 'mountpoint' | 'opened' | 'objects' | 'log' | 'mountedAt' | 'run'>

/** A user who is not the owner of the cache, as the kernel has told bobbin-fuse. */
export interface Caller {
  /** By which bobbin-fuse knows them, as long as they wait. */
  readonly number: number
  readonly uid: number
  readonly gid: number
}

/** A mount as bobbin-fuse has it. */
interface Served {
  readonly id: number
  readonly attached: Attached
  readonly accesses: AccessLog
  onClosed(): void
  onEnded(): void
}

interface Fetching {
  readonly mount: number
  readonly controller: AbortController
  /** Since bobbin-fuse was told. */
  hasMoved: boolean
}

export class NativeTransport implements FuseTransport, LinkHandlers {
  readonly name = 'native'
  readonly #served = new Map<number, Served>()
  /** What was asked of mounts that nobody has attached yet. */
  readonly #early = new Map<number, (() => void)[]>()
  readonly #fetching = new Map<number, Fetching>()
  readonly #rebuilding = new Map<number, Promise<void>>()
  readonly #working: NodeJS.Timeout
  readonly #accessLogRoom: AccessLogRoom
  #answer: ((caller: Caller, line: string) => Promise<string>) | undefined

  private constructor(
    private readonly link: Link,
    private readonly left: readonly LinkedMount[],
    private readonly options: NativeOptions,
  ) {
    this.#accessLogRoom = new AccessLogRoom(options.cacheDir, options.accessLogBytesMax)
    for (const { mount } of left) this.#early.set(mount, [])
    this.#working = setInterval(() => {
      if (this.#fetching.size > 0) link.send({ kind: 'working', requests: this.#takeMoved() })
    }, WORKING_MS)
    this.#working.unref()
  }

  /** Says hello to bobbin-fuse. Throws DAEMON_UNAVAILABLE. */
  static async connect(options: NativeOptions): Promise<NativeTransport> {
    const { link, mounts } = await Link.open(options.linkFd, options)
    return new NativeTransport(link, mounts, options)
  }

  /** From now on it answers; the store has to be open. */
  start(known: Iterable<VerifiedObject>): void {
    this.link.listen(this)
    void this.link.tellKnown(known)
  }

  /** Has lines of callers who are not the owner answered, by a line; without this they are hung up on. */
  answerCallers(answer: (caller: Caller, line: string) => Promise<string>): void {
    this.#answer = answer
  }

  /** The next daemon that bobbin-fuse starts finds this in its environment. False: it is too long. */
  keep(text: string): boolean {
    if (Buffer.byteLength(text) > KEPT_BYTES_MAX) return false
    this.link.send({ kind: 'keep', text })
    return true
  }

  asked(number: number, uid: number, gid: number, line: string): void {
    const answered = this.#answer?.({ number, uid, gid }, line) ?? Promise.resolve('')
    void answered.then(text => this.link.send({ kind: 'answer', caller: number, line: text }))
  }

  /** Resolves when bobbin-fuse has gone. */
  get gone(): Promise<void> {
    return this.link.closed
  }

  letGo(ids: readonly ObjectId[]): Promise<readonly EvictOutcome[]> {
    return this.link.letGo(ids)
  }

  async stats(): Promise<TransportStats> {
    const { hits, openBytes, notReplaced, said, ...counts } = await this.link.stats()
    const { version, daemonsStarted, unkeptMounts, waiting, openObjects, knownObjects } = counts
    return {
      hits,
      pinnedBytes: openBytes,
      fuse: {
        ...{ version, daemonsStarted, unkeptMounts, waiting, openObjects, openBytes, knownObjects },
        notReplaced: notReplaced === '' ? undefined : notReplaced,
        lastErrors: said.map(({ timeMs, level, message, fields }) =>
          loggedLine({ at: new Date(timeMs), program: 'bobbin-fuse', level, message }, parseFields(fields)),
        ),
      },
    }
  }

  /** Callers are answered from now on. */
  tellServing(): void {
    this.link.send({ kind: 'serving' })
  }

  /** Ends what is under way. `isFinal`: bobbin-fuse is to end, too. */
  async close({ isFinal }: { readonly isFinal: boolean }): Promise<void> {
    clearInterval(this.#working)
    for (const { controller } of this.#fetching.values()) controller.abort()
    if (isFinal) await this.link.stop()
    for (const { accesses } of this.#served.values()) accesses.close()
  }

  async mount(request: MountRequest): Promise<TransportMount> {
    const { opened, options, mountpoint } = request
    const { uid, gid, umask, allowOther, listAttributes, showsWriteBits = false } = options
    const answer = await this.link.mount({
      ...{ uid, gid, allowOther, listAttributes },
      umask: umask | (showsWriteBits ? SHOWS_WRITE_BITS : 0),
      openMode: request.openMode,
      timeNs: BigInt(opened.timestampMs) * 1_000_000n,
      mountpoint,
      source: `bobbin:${opened.name}@${opened.topHash}`,
      index: opened.indexPath,
      manifest: opened.manifestPath,
      registry: formatRegistry(opened.registry),
      package: opened.name,
      message: opened.index.message,
      note: request.note,
      caller: request.caller ?? 0,
    })
    return this.#serve(answer.mount, request, answer.openMode, answer.reason)
  }

  survivors(): readonly SurvivingMount[] {
    return this.left.map(({ mount, openMode, reason, note }) => ({
      note,
      attach: request => {
        const attached = this.#serve(mount, request, openMode, reason)
        this.link.send({ kind: 'logged', mount, count: this.#served.get(mount)?.accesses.count ?? 0 })
        return attached
      },
      abandon: () => {
        this.#early.delete(mount)
        void this.link.unmount(mount, true).catch(() => {})
      },
    }))
  }

  #takeMoved(): number[] {
    const moved: number[] = []
    for (const [request, fetching] of this.#fetching) {
      // Making an index again has deadlines of its own.
      if (fetching.hasMoved || this.#rebuilding.has(fetching.mount)) moved.push(request)
      fetching.hasMoved = false
    }
    return moved
  }

  #serve(id: number, attached: Attached, openMode: LinkOpenMode, reason: string): TransportMount {
    if (openMode === 'auto') throw new BobbinError('INTERNAL', 'bobbin-fuse chose no open mode')
    let onClosed = () => {}
    let onEnded = () => {}
    const closed = new Promise<void>(resolve => {
      onClosed = resolve
    })
    const ended = new Promise<void>(resolve => {
      onEnded = resolve
    })
    const { opened, mountpoint, mountedAt, run } = attached
    const accesses = new AccessLog(
      this.options.cacheDir,
      id,
      {
        version: 1,
        registry: formatRegistry(opened.registry),
        package: opened.name,
        topHash: opened.topHash,
        mountpoint,
        mountedAt,
        ...(run !== undefined && { run }),
      },
      this.#accessLogRoom,
    )
    this.#served.set(id, { id, attached, accesses, onClosed, onEnded })
    const early = this.#early.get(id) ?? []
    this.#early.delete(id)
    for (const again of early) again()
    return {
      openMode: openMode as OpenMode,
      openModeReason: reason === '' ? undefined : reason,
      closed,
      ended,
      unmount: options => this.#unmount(id, attached.mountpoint, options),
    }
  }

  async #unmount(id: number, mountpoint: string, { isForced }: { readonly isForced: boolean }): Promise<void> {
    if (!this.#served.has(id)) return
    const { outcome, message } = await this.link.unmount(id, isForced)
    if (outcome === 'busy') {
      throw new BobbinError(
        'ALREADY_MOUNTED',
        `${mountpoint} is in use: end the programs that read from it (lsof +f -- ${mountpoint}), or pass --force`,
      )
    }
    if (outcome === 'done') return
    const code = outcome === 'covered' ? 'ALREADY_MOUNTED' : 'LOCAL_IO'
    throw new BobbinError(code, `cannot unmount ${mountpoint}: ${message}`)
  }

  // What bobbin-fuse asks and tells.

  ensure(request: number, mount: number, ino: number): void {
    const served = this.#servedOr(mount, () => this.ensure(request, mount, ino))
    if (served === 'later' || this.#fetching.has(request)) return
    if (served === undefined) {
      this.link.send({ kind: 'failed', request, errno: errnoOf(undefined) })
      return
    }
    const controller = new AbortController()
    const fetching: Fetching = { mount, controller, hasMoved: false }
    this.#fetching.set(request, fetching)
    this.#provide(request, ino, served, fetching)
      .catch(error => {
        if (controller.signal.aborted) return
        this.link.send({ kind: 'failed', request, errno: errnoOf(error) })
      })
      .finally(() => this.#fetching.delete(request))
  }

  async #provide(request: number, ino: number, served: Served, fetching: Fetching): Promise<void> {
    const { opened, objects, log } = served.attached
    let key = `inode ${ino}`
    try {
      const entry = await this.#withIndex(served, ({ index }) => index.entry(ino))
      key = entry.key
      const onProgress = () => {
        fetching.hasMoved = true
      }
      const { signal } = fetching.controller
      const { indexPath } = opened
      const object = await atPresentPlace(opened, entry, present =>
        objects.open(present, { label: present.key, signal, onProgress }),
      ).finally(() => {
        if (opened.indexPath !== indexPath) this.#tellIndex(served)
      })
      try {
        const { ino: inode, size, mtimeNs, ctimeNs } = fstatSync(object.fd, { bigint: true })
        const verified = { id: objectId(entry), inode, size, mtimeNs, ctimeNs }
        this.link.send({ kind: 'ready', request, object: verified })
      } finally {
        await object.close()
      }
    } catch (error) {
      if (!hasCode(error, 'INTERRUPTED')) {
        const code = error instanceof BobbinError ? error.code : 'INTERNAL'
        log.error({ package: opened.name, key, code, error: String(error) }, 'a file could not be opened')
      }
      throw error
    }
  }

  cancel(request: number): void {
    this.#fetching.get(request)?.controller.abort()
    this.#fetching.delete(request)
  }

  access(mount: number, first: number, records: Buffer): void {
    const served = this.#servedOr(mount, () => this.access(mount, first, records))
    if (typeof served !== 'object') return
    served.accesses.append(first, records)
    this.link.send({ kind: 'logged', mount, count: served.accesses.count })
  }

  closed(mount: number): void {
    const served = this.#servedOr(mount, () => this.closed(mount))
    if (typeof served === 'object') served.onClosed()
  }

  ended(mount: number): void {
    const served = this.#servedOr(mount, () => this.ended(mount))
    if (typeof served !== 'object') return
    this.#served.delete(mount)
    for (const fetching of this.#fetching.values()) if (fetching.mount === mount) fetching.controller.abort()
    served.accesses.close()
    served.onClosed()
    served.onEnded()
  }

  indexDamaged(mount: number, reason: string): void {
    const served = this.#servedOr(mount, () => this.indexDamaged(mount, reason))
    if (typeof served !== 'object' || this.#rebuilding.has(mount)) return
    const { opened, log } = served.attached
    log.warn({ index: opened.indexPath, reason }, 'the package index is damaged, it is made again')
    this.#rebuild(served).catch(error =>
      // Its readers end with their deadline.
      log.error({ index: opened.indexPath, error: String(error) }, 'the package index cannot be made again'),
    )
  }

  async #withIndex<T>(served: Served, use: (opened: OpenedPackage) => T): Promise<T> {
    try {
      return use(served.attached.opened)
    } catch (error) {
      if (!hasCode(error, 'INDEX_DAMAGED')) throw error
    }
    await this.#rebuild(served)
    return use(served.attached.opened)
  }

  #rebuild(served: Served): Promise<void> {
    const { opened } = served.attached
    const rebuilding =
      this.#rebuilding.get(served.id) ??
      opened
        .rebuild()
        .then(() => this.#tellIndex(served))
        .finally(() => this.#rebuilding.delete(served.id))
    this.#rebuilding.set(served.id, rebuilding)
    return rebuilding
  }

  #tellIndex({ id, attached: { opened } }: Served): void {
    this.link.send({ kind: 'index', mount: id, index: opened.indexPath, manifest: opened.manifestPath })
  }

  #servedOr(mount: number, again: () => void): Served | 'later' | undefined {
    const served = this.#served.get(mount)
    if (served !== undefined) return served
    const early = this.#early.get(mount)
    if (early === undefined) return undefined
    early.push(again)
    return 'later'
  }
}

/** Names in it may be a stranger's bytes, which are no text: then the message stands alone. */
function parseFields(fields: string): object {
  try {
    return JSON.parse(`{${fields}}`) as object
  } catch {
    return {}
  }
}
