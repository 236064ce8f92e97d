/**
 * The port to the kernel: what makes a package appear at a mountpoint.
 *
 * Contract:
 *  - `mount` returns when the mount answers; the mountpoint has been looked at before (mount-table.ts).
 *  - the transport answers names, attributes and directories from the package index alone, and asks
 *    the `ObjectProvider` for bytes: once an open, and for nothing else. It may live in another
 *    process, which then maps `opened.indexPath`.
 *  - nothing of ours ever touches our own mount, not even with `stat`: the kernel would wait for us.
 *  - every wait ends: the provider's errors become errnos (errno.ts), and it gives up by itself.
 *  - INDEX_DAMAGED is mended by `opened.rebuild()` and not shown, unless that fails.
 *
 * The suite that holds every adapter to this is test/suites/fuse-transport.ts.
 */
import type { Log, LoggedError, ObjectSpec } from '../model/index.js'
import type { OpenedPackage } from '../package/package-cache.js'

export const TRANSPORTS = ['native', 'fuse-native'] as const
export type TransportName = (typeof TRANSPORTS)[number]

/**
 * How opened files are served: `cached` through us and then from the kernel's page cache; `passthrough`
 * by the kernel from the object's file; `none` without opens, so that only first reads are seen.
 */
export const OPEN_MODES = ['cached', 'passthrough', 'none'] as const
export type OpenMode = (typeof OPEN_MODES)[number]
/** What may be asked for; `auto` is the fastest that is possible here. */
export const OPEN_MODE_WISHES = ['auto', ...OPEN_MODES] as const
export type OpenModeWish = (typeof OPEN_MODE_WISHES)[number]

export interface FuseTransport {
  readonly name: TransportName
  /** Throws FUSE_UNAVAILABLE (with what to do), MOUNTPOINT_UNUSABLE, LOCAL_IO. */
  mount(request: MountRequest): Promise<TransportMount>
  /** Mounts that outlived an earlier daemon. Absent: none ever does, and a daemon that ends takes them along. */
  survivors?(): readonly SurvivingMount[]
  /** What only the transport counts. Absent: nothing. */
  stats?(): Promise<TransportStats>
}

export interface SurvivingMount {
  /** The `note` of its request. */
  readonly note: string
  /** Goes on with it; options and mode are what they are. */
  attach(request: Omit<MountRequest, 'options' | 'openMode' | 'note'>): TransportMount
  /** Nobody can: it is unmounted. */
  abandon(): void
}

export interface TransportStats {
  /** Opens that needed nobody. */
  readonly hits: number
  /** Of open objects. */
  readonly pinnedBytes: number
  /** What the process that owns the mounts says of itself. */
  readonly fuse: FuseProcessFacts
}

export interface FuseProcessFacts {
  readonly version: string
  /** Why the daemon is not the one that lies at its paths. */
  readonly notReplaced: string | undefined
  readonly daemonsStarted: number
  /** Mounts that end with it, though a service manager keeps others. */
  readonly unkeptMounts: number
  /** Entries that readers wait for. */
  readonly waiting: number
  readonly openObjects: number
  readonly openBytes: number
  readonly knownObjects: number
  /** Its last warnings and errors, the latest last. */
  readonly lastErrors: readonly LoggedError[]
}

export interface MountOptions {
  /** Other users may enter, as containers need. */
  readonly allowOther: boolean
  readonly uid: number
  readonly gid: number
  /** Mode bits to take away. */
  readonly umask: number
  /** Modes have write bits, for an overlay that stands on the mount and asks them who may write; nobody writes to the mount itself. */
  readonly showsWriteBits?: boolean
  /** Extended attributes are listed; otherwise they are only answered by name. */
  readonly listAttributes: boolean
}

export interface MountRequest {
  /** Absolute; a folder, empty, and not a mountpoint. */
  readonly mountpoint: string
  readonly opened: OpenedPackage
  readonly objects: ObjectProvider
  readonly options: MountOptions
  readonly openMode: OpenModeWish
  /** Unix milliseconds. */
  readonly mountedAt: number
  /** The folder of the run that the mount is for (access-logs.ts). */
  readonly run?: string | undefined
  /** Given back with a surviving mount. */
  readonly note: string
  /** Whose mount it will be, where that is not the owner of the cache; bobbin-fuse knows them by this number. */
  readonly caller?: number | undefined
  /** A bobbin-fuse, for a transport that is none (unmount.ts). */
  readonly unmountProgram?: string | undefined
  readonly log: Log
}

/** Where a mount gets verified bytes from. */
export interface ObjectProvider {
  /** Waits until the whole object is here and checked. Throws as `Fetcher.open`. */
  open(
    spec: ObjectSpec,
    options: {
      readonly label: string
      readonly signal?: AbortSignal | undefined
      /** Folders that a file has to lie in; see `FetchOptions`. */
      readonly within?: readonly string[] | undefined
      /** It goes on; see `FetchOptions`. */
      readonly onProgress?: (() => void) | undefined
    },
  ): Promise<ProvidedObject>
  /** Without touching the disk. */
  stateOf(spec: ObjectSpec): 'absent' | 'unchecked' | 'checked'
  /** What the cache could take, where all its objects gave way. Bytes. Throws LOCAL_IO. */
  roomBytes(): number
}

export interface ProvidedObject {
  readonly fd: number
  readonly path: string
  close(): Promise<void>
}

export interface TransportMount {
  readonly openMode: OpenMode
  /** Why the mode is not the fastest there is; `undefined`: it is. */
  readonly openModeReason?: string | undefined
  /** Resolves when the mount has gone from the mountpoint, whoever unmounted it. */
  readonly closed: Promise<void>
  /** Resolves when nobody has a file open there any more, either: until then the package stays open. */
  readonly ended: Promise<void>
  /** Throws ALREADY_MOUNTED when files are open, unless `isForced`: then it vanishes now, and open files last until they are closed. */
  unmount(options: { readonly isForced: boolean }): Promise<void>
}
