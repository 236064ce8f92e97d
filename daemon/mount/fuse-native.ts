/**
 * The transport over the npm package fuse-native (libfuse 2), inside the daemon's process. It knows
 * the binding; what a path means is filesystem.ts's business.
 *
 * libfuse serves each kernel request on a thread of its own that waits for our answer, and makes
 * threads as they are needed, so that a read that waits for S3 holds up nobody else: with 800 opens
 * waiting, a cached file was read in 2 ms, and the 815 threads took 20 MB. What ends it is the limit
 * on threads (ulimit -u, threads-max). libfuse 2 cannot tell us of an INTERRUPT: a reader that waits
 * can be killed only when its wait ends.
 */
import { accessSync, existsSync, constants as fsConstants, readdirSync, readlinkSync } from 'node:fs'
import { createRequire } from 'node:module'
import { constants } from 'node:os'
import { dirname, join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import pLimit from 'p-limit'
import { BobbinError, type Log } from '../model/index.js'
import type { OpenedPackage } from '../package/package-cache.js'
import { errnoOf } from './errno.js'
import { type Attributes, PackageFilesystem } from './filesystem.js'
import { mountAt, readMountTable } from './mount-table.js'
import type { FuseTransport, MountRequest, TransportMount } from './transport.js'
import { unmountPath } from './unmount.js'

/** The binding copies the mountpoint's path into 1,024 bytes, with its final NUL. */
const MOUNTPOINT_BYTES_MAX = 1023
/** What is under a top hash never changes, so the kernel may keep names and attributes. Seconds. */
const CACHED_FOR_EVER = 365 * 24 * 3600
const SOURCE_NAME_BYTES_MAX = 400
const POLL_MS = 1000
/** O_ACCMODE, which Node.js does not name. */
const ACCESS_MODE = 3
const INIT_TIMEOUT_MS = 10_000

export const fuseNative: FuseTransport = {
  name: 'fuse-native',
  async mount(request) {
    const { mountpoint } = request
    const under = mountAt(mountpoint)
    if (under !== undefined) {
      throw new BobbinError(
        'ALREADY_MOUNTED',
        `${mountpoint} is a mountpoint already (${under.source}, ${under.type}), which only bobbin-fuse mounts on: choose another folder`,
      )
    }
    if (Buffer.byteLength(request.mountpoint) > MOUNTPOINT_BYTES_MAX) {
      throw new BobbinError(
        'MOUNTPOINT_UNUSABLE',
        `the mountpoint's path is over ${MOUNTPOINT_BYTES_MAX} bytes: ${request.mountpoint}`,
      )
    }
    requireFuseDevice()
    requireFusermount()
    const binding = loadBinding()
    const filesystem = new PackageFilesystem(request)
    const session = new binding.Session(request.mountpoint, operations(filesystem, request.log), request)
    const descriptor = await inTurn(async () => {
      const before = fuseDescriptors()
      await started(session, request.mountpoint)
      return [...fuseDescriptors()].find(fd => !before.has(fd))
    })
    if (descriptor !== undefined) descriptorOwners.set(descriptor, session)
    return watch(session, filesystem, request, descriptor)
  },
}

/** One mount at a time, so that it is known which descriptor of /dev/fuse is whose. */
const inTurn = pLimit(1)

/**
 * By descriptor of /dev/fuse, who had it last. libfuse does not tell when a session ends, but closes
 * its descriptor then: after the last file of a detached mount was closed, and every thread has ended.
 */
const descriptorOwners = new Map<number, FuseSession>()

function fuseDescriptors(): Set<number> {
  const found = new Set<number>()
  for (const name of readdirSync('/proc/self/fd')) {
    try {
      if (readlinkSync(`/proc/self/fd/${name}`) === '/dev/fuse') found.add(Number(name))
    } catch {
      // Closed in between.
    }
  }
  return found
}

/** Session objects own memory that libfuse's threads and the event loop go on using: none is ever collected. */
const sessions = new Set<unknown>()

async function started(session: FuseSession, mountpoint: string): Promise<void> {
  sessions.add(session)
  const init = new Promise<void>((resolve, reject) => {
    session.mount(error => (error ? reject(error) : resolve()))
  })
  const timeout = sleep(INIT_TIMEOUT_MS, 'timeout' as const, { ref: false })
  let outcome: unknown
  try {
    outcome = await Promise.race([init, timeout])
  } catch (error) {
    throw new BobbinError(
      'FUSE_UNAVAILABLE',
      `cannot mount on ${mountpoint}: ${mountAdvice()} (libfuse: ${error instanceof Error ? error.message : error})`,
      { cause: error },
    )
  }
  if (outcome !== 'timeout') return
  throw new BobbinError(
    'FUSE_UNAVAILABLE',
    `the kernel did not answer the mount on ${mountpoint} within ${INIT_TIMEOUT_MS / 1000} s`,
  )
}

/** libfuse writes its reason to stderr and tells us nothing, so this is what it mostly is. */
function mountAdvice(): string {
  return process.getuid?.() === 0
    ? 'mount(2) was refused; in a container, docker run --device /dev/fuse --cap-add SYS_ADMIN --security-opt apparmor=unconfined'
    : 'fusermount refused; --allow-other needs the line user_allow_other in /etc/fuse.conf, and the mountpoint has to be yours'
}

function watch(
  session: FuseSession,
  filesystem: PackageFilesystem,
  { mountpoint, log, unmountProgram }: MountRequest,
  descriptor: number | undefined,
): TransportMount {
  const id = mountAt(mountpoint)?.id
  // By number: somebody may have mounted something else on top.
  const isMounted = () => readMountTable().some(mounted => mounted.id === id)
  const isServed = () =>
    descriptor !== undefined && descriptorOwners.get(descriptor) === session && fuseDescriptors().has(descriptor)
  let isClosed = false
  let onClosed = () => {}
  const closed = new Promise<void>(resolve => {
    onClosed = resolve
  })
  const close = () => {
    if (isClosed) return
    isClosed = true
    session.unmount(() => {})
    onClosed()
  }
  let onEnded = () => {}
  const ended = new Promise<void>(resolve => {
    onEnded = resolve
  })
  // libfuse tells nobody when somebody else unmounts, nor when a session has ended, so we look.
  const poll = setInterval(() => {
    if (!isClosed && !isMounted()) close()
    if (!isClosed || isServed()) return
    clearInterval(poll)
    filesystem
      .close()
      .catch(error => log.error({ mountpoint, error: String(error) }, 'open files could not be closed'))
      .finally(onEnded)
  }, POLL_MS)
  poll.unref()
  return {
    openMode: 'cached',
    closed,
    ended,
    async unmount({ isForced }) {
      if (isClosed) return
      const top = mountAt(mountpoint)
      if (top !== undefined && top.id !== id) {
        throw new BobbinError(
          'ALREADY_MOUNTED',
          `${top.source} (${top.type}) is mounted on top of ${mountpoint}: umount that first`,
        )
      }
      await unmountPath(mountpoint, { isForced, program: unmountProgram })
      close()
    },
  }
}

function requireFuseDevice(): void {
  if (!existsSync('/dev/fuse')) {
    throw new BobbinError(
      'FUSE_UNAVAILABLE',
      'there is no /dev/fuse here: run modprobe fuse as root; in a container, docker run --device /dev/fuse --cap-add SYS_ADMIN',
    )
  }
  try {
    accessSync('/dev/fuse', fsConstants.R_OK | fsConstants.W_OK)
  } catch {
    throw new BobbinError(
      'FUSE_UNAVAILABLE',
      '/dev/fuse is not open to this user: run as root, or have root chmod 666 /dev/fuse',
    )
  }
}

/** What the mount table shows. The binding has 1,024 bytes for all options and cuts what is over. */
function sourceName({ name, topHash }: OpenedPackage): string {
  const shortened = Buffer.byteLength(name) > SOURCE_NAME_BYTES_MAX ? '...' : name
  // libfuse splits at commas; a backslash keeps one.
  return `bobbin:${shortened}@${topHash}`.replace(/[\\,]/g, '\\$&')
}

/** Only root mounts by itself; libfuse 2 looks for a program of exactly this name. */
function requireFusermount(): void {
  if (process.getuid?.() === 0) return
  const folders = (process.env.PATH ?? '').split(':').filter(folder => folder !== '')
  if (folders.some(folder => existsSync(join(folder, 'fusermount')))) return
  throw new BobbinError(
    'FUSE_UNAVAILABLE',
    'users other than root mount through the program fusermount, which is missing: apt-get install fuse3',
  )
}

type Signal = (result: number, ...values: unknown[]) => void
type Done = (result: number, ...values: unknown[]) => void

/** What of the package's class we use, with the inner methods that a subclass may replace. */
interface FuseSession {
  mount(done: (error?: Error | null) => void): void
  unmount(done: (error?: Error | null) => void): void
}

interface FuseClass {
  new (
    mountpoint: string,
    operations: object,
    options: object,
  ): FuseSession & { mnt: string; ops: Operations; _thread: Buffer }
}

interface LoadedBinding {
  readonly Session: new (mountpoint: string, operations: Operations, request: MountRequest) => FuseSession
}

let loaded: LoadedBinding | undefined

/** Loaded with the first mount: everything else works without libfuse. */
function loadBinding(): LoadedBinding {
  if (loaded !== undefined) return loaded
  const require = createRequire(import.meta.url)
  let Fuse: FuseClass
  let native: { fuse_native_unmount(mountpoint: string, thread: Buffer): void }
  try {
    Fuse = require('fuse-native') as FuseClass
    native = require('node-gyp-build')(dirname(require.resolve('fuse-native/package.json'))) as typeof native
  } catch (error) {
    throw bindingError(error)
  }

  class Session extends Fuse {
    constructor(
      mountpoint: string,
      operations: Operations,
      private readonly request: MountRequest,
    ) {
      // Its own default answers ETIMEDOUT after 15 s, whatever a fetch may need.
      super(mountpoint, operations, { timeout: false })
    }

    _fuseOptions(): string {
      const { options, opened } = this.request
      return `-o${[
        'ro',
        'nosuid',
        'nodev',
        'subtype=bobbin',
        'default_permissions',
        'use_ino',
        'kernel_cache',
        `entry_timeout=${CACHED_FOR_EVER}`,
        `attr_timeout=${CACHED_FOR_EVER}`,
        `negative_timeout=${CACHED_FOR_EVER}`,
        ...(options.allowOther ? ['allow_other'] : []),
        `fsname=${sourceName(opened)}`,
      ].join(',')}`
    }

    /** Ours: theirs runs `fusermount` through a shell. The mount has gone already when this is called. */
    _close(done: (error: Error | null) => void): void {
      try {
        native.fuse_native_unmount(this.mnt, this._thread)
        done(null)
      } catch (error) {
        done(error as Error)
      }
    }

    /** Theirs ignores the size of the caller's buffer. */
    _op_getxattr(signal: Signal, path: string, name: string, buffer: Buffer): void {
      this.ops.getxattr(path, name, 0, (result, value) => {
        if (result !== 0) return signal(result, buffer.buffer)
        const bytes = value as Buffer
        // No buffer: the caller asks for the size.
        if (buffer.length > 0 && bytes.length > buffer.length) return signal(-constants.errno.ERANGE, buffer.buffer)
        bytes.copy(buffer)
        signal(bytes.length, buffer.buffer)
      })
    }

    _op_listxattr(signal: Signal, path: string, buffer: Buffer): void {
      this.ops.listxattr(path, (result, names) => {
        if (result !== 0) return signal(result, buffer.buffer)
        const list = Buffer.from((names as string[]).map(name => `${name}\0`).join(''))
        if (buffer.length > 0 && list.length > buffer.length) return signal(-constants.errno.ERANGE, buffer.buffer)
        list.copy(buffer)
        signal(list.length, buffer.buffer)
      })
    }
  }
  loaded = { Session }
  return loaded
}

function bindingError(error: unknown): BobbinError {
  const reason = error instanceof Error ? error.message.split('\n')[0]! : String(error)
  if (/libfuse\.so\.2/.test(reason)) {
    return new BobbinError(
      'FUSE_UNAVAILABLE',
      'the library libfuse.so.2 is missing: apt-get install libfuse2 (on Ubuntu 24.04 and Debian 13: libfuse2t64)',
      { cause: error },
    )
  }
  return new BobbinError(
    'FUSE_UNAVAILABLE',
    `the package fuse-native does not work here (${process.platform} ${process.arch}): ${reason}`,
    { cause: error },
  )
}

type Operations = ReturnType<typeof operations>

/**
 * The kernel refuses these on a mount that is read-only, but root can remount it for writing; libfuse
 * would say ENOSYS then.
 */
const WRITING = [
  ...['write', 'create', 'mkdir', 'rmdir', 'unlink', 'rename', 'link', 'symlink', 'mknod'],
  ...['chmod', 'chown', 'utimens', 'truncate', 'ftruncate', 'setxattr', 'removexattr'],
]

/** The callback is the last argument, whatever the operation. */
function refuseWriting(...args: unknown[]): void {
  const done = args.at(-1) as Done
  done(-constants.errno.EROFS)
}

/** The binding's callbacks: 0 or a count on success, a negative errno otherwise. */
function operations(filesystem: PackageFilesystem, log: Log) {
  const answer = (work: Promise<unknown[]>, done: Done) => {
    work.then(
      values => done(0, ...values),
      error => {
        if (!(error instanceof BobbinError))
          log.error({ error: String(error instanceof Error ? error.stack : error) }, 'a bug in the filesystem')
        done(-errnoOf(error))
      },
    )
  }
  return {
    ...Object.fromEntries(WRITING.map(name => [name, refuseWriting])),
    getattr(path: string, done: Done) {
      answer(
        filesystem.getattr(path).then(attributes => [statOf(attributes)]),
        done,
      )
    },
    readdir(path: string, done: Done) {
      answer(
        filesystem.readdir(path).then(children => [
          ['.', '..', ...children.map(({ name }) => name)],
          // libfuse uses the type and the inode number of these; of the first two it makes its own.
          [undefined, undefined, ...children.map(({ attributes }) => statOf(attributes))],
        ]),
        done,
      )
    },
    open(path: string, flags: number, done: Done) {
      const isRead = (flags & ACCESS_MODE) === fsConstants.O_RDONLY
      if (!isRead) return done(-constants.errno.EROFS)
      answer(
        filesystem.open(path).then(handle => [handle]),
        done,
      )
    },
    read(_path: string, handle: number, buffer: Buffer, length: number, position: number, done: Done) {
      const into = buffer.length === length ? buffer : buffer.subarray(0, length)
      filesystem.read(handle, into, position).then(
        bytes => done(bytes),
        error => done(-errnoOf(error)),
      )
    },
    release(_path: string, handle: number, done: Done) {
      answer(
        filesystem.release(handle).then(() => []),
        done,
      )
    },
    getxattr(path: string, name: string, _position: number, done: Done) {
      answer(
        filesystem.getxattr(path, name).then(value => [value]),
        done,
      )
    },
    listxattr(path: string, done: Done) {
      answer(
        filesystem.listxattr(path).then(names => [names]),
        done,
      )
    },
    statfs(_path: string, done: Done) {
      const { entries, bytes, freeBytes } = filesystem.statfs()
      // Counts pass through 32 bits, so large packages, and large caches, are counted in larger blocks.
      let blockBytes = 4096
      while ((bytes + freeBytes) / blockBytes >= 2 ** 32 - 1) blockBytes *= 2
      const free = Math.floor(freeBytes / blockBytes)
      done(0, {
        bsize: blockBytes,
        frsize: blockBytes,
        blocks: Math.ceil(bytes / blockBytes) + free,
        bfree: free,
        bavail: free,
        files: entries,
        ffree: 0,
        favail: 0,
        fsid: 0,
        flag: 1,
        namemax: 255,
      })
    },
  }
}

function statOf({ ino, mode, uid, gid, size, timeMs, blocks }: Attributes) {
  return { ino, mode, uid, gid, size, nlink: 1, blocks, blksize: 131_072, atime: timeMs, mtime: timeMs, ctime: timeMs }
}
