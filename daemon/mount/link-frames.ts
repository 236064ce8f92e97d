/**
 * The frames of the link to bobbin-fuse: native/link/frames.md is the text, and vectors.txt beside it
 * is what both sides are tested with. Bytes in, values out; no I/O.
 */
import { BobbinError } from '../model/index.js'
import type { ObjectId } from '../store/index.js'
import { OBJECT_FOLDERS } from '../store/layout.js'

export const LINK_VERSION = 5
export const FRAME_HEADER_BYTES = 8
const PAYLOAD_BYTES_MAX = 4 * 2 ** 20
/** Of what is kept for the next daemon: a variable of an environment may have 128 KiB. */
export const KEPT_BYTES_MAX = 96 * 2 ** 10
export const OBJECT_BYTES = 33 + 32
/** As many as go into one frame without making anybody wait for long. */
export const OBJECTS_PER_FRAME = 4096
/** In a mount's umask: modes have write bits (MountOptions.showsWriteBits). */
export const SHOWS_WRITE_BITS = 0o1000

/** By their numbers on the link. */
export const LINK_OPEN_MODES = ['auto', 'cached', 'passthrough', 'none'] as const
export type LinkOpenMode = (typeof LINK_OPEN_MODES)[number]
export const EVICT_OUTCOMES = ['gone', 'open', 'used'] as const
export type EvictOutcome = (typeof EVICT_OUTCOMES)[number]
export const MOUNT_FAILURES = ['', 'unavailable', 'mountpoint', 'other'] as const
export type MountFailure = Exclude<(typeof MOUNT_FAILURES)[number], ''>
export const UNMOUNT_OUTCOMES = ['done', 'busy', 'failed', 'covered'] as const
export type UnmountOutcome = (typeof UNMOUNT_OUTCOMES)[number]

/** What an object's file looked like when its bytes were checked. Times in ns since 1970. */
export interface VerifiedObject {
  readonly id: ObjectId
  readonly inode: bigint
  readonly size: bigint
  readonly mtimeNs: bigint
  readonly ctimeNs: bigint
}

export interface LinkMount {
  readonly uid: number
  readonly gid: number
  /** Mode bits to take away, and SHOWS_WRITE_BITS. */
  readonly umask: number
  readonly allowOther: boolean
  readonly openMode: LinkOpenMode
  readonly listAttributes: boolean
  readonly timeNs: bigint
  readonly mountpoint: string
  /** What the mount table shows. */
  readonly source: string
  readonly index: string
  readonly manifest: string
  readonly registry: string
  readonly package: string
  readonly message: string | undefined
  /** For the next daemon. */
  readonly note: string
  /** The number of the caller whose mount it is (`asked`); 0: the owner's of the cache. */
  readonly caller: number
}

export type ToFuse =
  | { readonly kind: 'hello'; readonly version: number; readonly pid: number; readonly program: string }
  | { readonly kind: 'ready'; readonly request: number; readonly object: VerifiedObject }
  | { readonly kind: 'failed'; readonly request: number; readonly errno: number }
  | { readonly kind: 'working'; readonly requests: readonly number[] }
  | { readonly kind: 'known'; readonly objects: readonly VerifiedObject[] }
  | { readonly kind: 'evictAsk'; readonly request: number; readonly ids: readonly ObjectId[] }
  | ({ readonly kind: 'mount'; readonly request: number } & LinkMount)
  | { readonly kind: 'unmount'; readonly request: number; readonly mount: number; readonly isForced: boolean }
  | { readonly kind: 'index'; readonly mount: number; readonly index: string; readonly manifest: string }
  | { readonly kind: 'stop' }
  | { readonly kind: 'statsAsk'; readonly request: number }
  /** So many accesses are in the mount's log, lost ones included. */
  | { readonly kind: 'logged'; readonly mount: number; readonly count: number }
  | { readonly kind: 'answer'; readonly caller: number; readonly line: string }
  /** Callers are answered: it has started. */
  | { readonly kind: 'serving' }
  /** For the next daemon, KEPT_BYTES_MAX at most. */
  | { readonly kind: 'keep'; readonly text: string }

export interface LinkedMount {
  readonly mount: number
  readonly openMode: LinkOpenMode
  /** Why it is not the fastest; empty: it is. */
  readonly reason: string
  readonly note: string
}

export type FromFuse =
  | { readonly kind: 'hello'; readonly version: number; readonly pid: number; readonly program: string }
  | { readonly kind: 'mounts'; readonly mounts: readonly LinkedMount[] }
  | { readonly kind: 'ensure'; readonly request: number; readonly mount: number; readonly ino: number }
  | { readonly kind: 'cancel'; readonly request: number }
  | { readonly kind: 'evictDone'; readonly request: number; readonly outcomes: readonly EvictOutcome[] }
  /** `records` as they are: access-log.ts keeps them so. `first`: how many were before them. */
  | { readonly kind: 'access'; readonly mount: number; readonly first: number; readonly records: Buffer }
  | {
      readonly kind: 'mounted'
      readonly request: number
      readonly mount: number
      readonly openMode: LinkOpenMode
      readonly reason: string
    }
  | { readonly kind: 'mountFailed'; readonly request: number; readonly cause: MountFailure; readonly message: string }
  | {
      readonly kind: 'unmountDone'
      readonly request: number
      readonly outcome: UnmountOutcome
      readonly message: string
    }
  | { readonly kind: 'closed'; readonly mount: number }
  | { readonly kind: 'ended'; readonly mount: number }
  | { readonly kind: 'indexDamaged'; readonly mount: number; readonly reason: string }
  | ({ readonly kind: 'stats'; readonly request: number } & LinkStats)
  /** A user who is not the owner; bobbin-fuse knows who it is. */
  | {
      readonly kind: 'asked'
      readonly caller: number
      readonly uid: number
      readonly gid: number
      readonly line: string
    }

/** What bobbin-fuse counts. */
export interface LinkStats {
  /** Opens (without opens: first reads) that needed no daemon, since bobbin-fuse was started. */
  readonly hits: number
  /** Entries that readers wait for. */
  readonly waiting: number
  readonly openObjects: number
  readonly openBytes: number
  readonly backingIds: number
  readonly knownObjects: number
  /** Mounts that the service manager could not keep: they would end with bobbin-fuse. */
  readonly unkeptMounts: number
  readonly daemonsStarted: number
  /** Of bobbin-fuse. */
  readonly version: string
  /** Why the daemon is not the one that lies at its paths; empty: it is. */
  readonly notReplaced: string
  /** Its last warnings and errors, the latest last. */
  readonly said: readonly SaidLine[]
}

const SAID_LEVELS = ['warn', 'error'] as const

export interface SaidLine {
  /** Unix milliseconds. */
  readonly timeMs: number
  readonly level: (typeof SAID_LEVELS)[number]
  readonly message: string
  /** JSON without its braces. */
  readonly fields: string
}

/** Bytes of one access record: {u64 time, u32 ino, u32 what, u64 bytes}. */
export const ACCESS_BYTES = 24

const TO_FUSE = {
  hello: 1,
  ready: 32,
  failed: 33,
  working: 34,
  known: 35,
  evictAsk: 36,
  mount: 37,
  unmount: 38,
  index: 39,
  stop: 40,
  statsAsk: 41,
  logged: 42,
  answer: 43,
  serving: 44,
  keep: 45,
} as const satisfies Record<ToFuse['kind'], number>

/** A whole frame, with its header. */
export function encodeFrame(frame: ToFuse): Buffer {
  const out = new Writer()
  switch (frame.kind) {
    case 'hello':
      out.u32(frame.version).u32(frame.pid).text(frame.program)
      break
    case 'ready':
      out.u64(frame.request).object(frame.object)
      break
    case 'failed':
      out.u64(frame.request).u32(frame.errno)
      break
    case 'working':
      out.u32(frame.requests.length)
      for (const request of frame.requests) out.u64(request)
      break
    case 'known':
      out.u32(frame.objects.length)
      for (const object of frame.objects) out.object(object)
      break
    case 'evictAsk':
      out.u64(frame.request).u32(frame.ids.length)
      for (const id of frame.ids) out.name(id)
      break
    case 'mount':
      out.u64(frame.request).u32(frame.uid).u32(frame.gid).u32(frame.umask)
      out.u8(frame.allowOther ? 1 : 0).u8(LINK_OPEN_MODES.indexOf(frame.openMode))
      out.u8(frame.listAttributes ? 1 : 0)
      out.i64(frame.timeNs)
      for (const text of [frame.mountpoint, frame.source, frame.index, frame.manifest, frame.registry, frame.package])
        out.text(text)
      out
        .u8(frame.message === undefined ? 0 : 1)
        .text(frame.message ?? '')
        .text(frame.note)
        .u64(frame.caller)
      break
    case 'unmount':
      out
        .u64(frame.request)
        .u32(frame.mount)
        .u8(frame.isForced ? 1 : 0)
      break
    case 'index':
      out.u32(frame.mount).text(frame.index).text(frame.manifest)
      break
    case 'stop':
      break
    case 'statsAsk':
      out.u64(frame.request)
      break
    case 'logged':
      out.u32(frame.mount).u64(frame.count)
      break
    case 'answer':
      out.u64(frame.caller).text(frame.line)
      break
    case 'serving':
      break
    case 'keep':
      out.text(frame.text)
      break
    default:
      frame satisfies never
  }
  return out.finish(TO_FUSE[frame.kind])
}

/** Throws INTERNAL for what is no frame: the two sides are of different versions. */
export function decodeFrame(kind: number, payload: Buffer): FromFuse {
  const from = new Reader(payload)
  const frame = readFrame(kind, from)
  if (frame === undefined || !from.isDone) throw new BobbinError('INTERNAL', `bobbin-fuse sent a wrong frame ${kind}`)
  return frame
}

function readFrame(kind: number, from: Reader): FromFuse | undefined {
  switch (kind) {
    case 1:
      return { kind: 'hello', version: from.u32(), pid: from.u32(), program: from.text() }
    case 2:
      return {
        kind: 'mounts',
        mounts: from.list(() => ({
          mount: from.u32(),
          openMode: from.oneOf(LINK_OPEN_MODES),
          reason: from.text(),
          note: from.text(),
        })),
      }
    case 3:
      return { kind: 'ensure', request: from.u64(), mount: from.u32(), ino: from.u32() }
    case 4:
      return { kind: 'cancel', request: from.u64() }
    case 5:
      return { kind: 'evictDone', request: from.u64(), outcomes: from.list(() => from.oneOf(EVICT_OUTCOMES)) }
    case 6: {
      const [mount, first, count] = [from.u32(), from.u64(), from.u32()]
      return { kind: 'access', mount, first, records: from.bytes(count * ACCESS_BYTES) }
    }
    case 7:
      return {
        kind: 'mounted',
        request: from.u64(),
        mount: from.u32(),
        openMode: from.oneOf(LINK_OPEN_MODES),
        reason: from.text(),
      }
    case 8: {
      const [request, cause, message] = [from.u64(), from.oneOf(MOUNT_FAILURES), from.text()]
      return cause === '' ? undefined : { kind: 'mountFailed', request, cause, message }
    }
    case 9:
      return { kind: 'unmountDone', request: from.u64(), outcome: from.oneOf(UNMOUNT_OUTCOMES), message: from.text() }
    case 10:
      return { kind: 'closed', mount: from.u32() }
    case 11:
      return { kind: 'ended', mount: from.u32() }
    case 12:
      return { kind: 'indexDamaged', mount: from.u32(), reason: from.text() }
    case 13:
      return {
        kind: 'stats',
        request: from.u64(),
        hits: from.u64(),
        waiting: from.u64(),
        openObjects: from.u64(),
        openBytes: from.u64(),
        backingIds: from.u64(),
        knownObjects: from.u64(),
        unkeptMounts: from.u64(),
        daemonsStarted: from.u64(),
        version: from.text(),
        notReplaced: from.text(),
        said: from.list(() => ({
          timeMs: from.u64(),
          level: from.oneOf(SAID_LEVELS),
          message: from.text(),
          fields: from.text(),
        })),
      }
    case 14:
      return { kind: 'asked', caller: from.u64(), uid: from.u32(), gid: from.u32(), line: from.text() }
    default:
      return undefined
  }
}

/** Cuts a stream into frames. Throws INTERNAL for what cannot be a frame. */
export class FrameReader {
  #pending: Buffer[] = []
  #bytes = 0;

  *push(chunk: Buffer): Generator<FromFuse> {
    this.#pending.push(chunk)
    this.#bytes += chunk.length
    while (this.#bytes >= FRAME_HEADER_BYTES) {
      const all = this.#pending.length === 1 ? this.#pending[0]! : Buffer.concat(this.#pending)
      this.#pending = [all]
      const payloadBytes = all.readUInt32LE(0)
      if (payloadBytes > PAYLOAD_BYTES_MAX) throw new BobbinError('INTERNAL', 'bobbin-fuse sent no frame')
      const end = FRAME_HEADER_BYTES + payloadBytes
      if (all.length < end) return
      this.#pending = [all.subarray(end)]
      this.#bytes = all.length - end
      yield decodeFrame(all.readUInt16LE(4), all.subarray(FRAME_HEADER_BYTES, end))
    }
  }
}

class Writer {
  readonly #parts: Buffer[] = []

  #number(bytes: number, write: (buffer: Buffer) => void): this {
    const buffer = Buffer.allocUnsafe(bytes)
    write(buffer)
    this.#parts.push(buffer)
    return this
  }

  u8(value: number): this {
    return this.#number(1, buffer => buffer.writeUInt8(value))
  }

  u32(value: number): this {
    return this.#number(4, buffer => buffer.writeUInt32LE(value))
  }

  u64(value: number): this {
    return this.#number(8, buffer => buffer.writeBigUInt64LE(BigInt(value)))
  }

  i64(value: bigint): this {
    return this.#number(8, buffer => buffer.writeBigInt64LE(value))
  }

  text(value: string): this {
    const bytes = Buffer.from(value)
    this.u32(bytes.length)
    this.#parts.push(bytes)
    return this
  }

  name(id: ObjectId): this {
    const slashAt = id.indexOf('/')
    this.u8(OBJECT_FOLDERS.indexOf(id.slice(0, slashAt) as (typeof OBJECT_FOLDERS)[number]))
    this.#parts.push(Buffer.from(id.slice(slashAt + 1), 'hex'))
    return this
  }

  object({ id, inode, size, mtimeNs, ctimeNs }: VerifiedObject): this {
    this.name(id)
    return this.#number(32, buffer => {
      buffer.writeBigUInt64LE(inode, 0)
      buffer.writeBigUInt64LE(size, 8)
      buffer.writeBigInt64LE(mtimeNs, 16)
      buffer.writeBigInt64LE(ctimeNs, 24)
    })
  }

  finish(kind: number): Buffer {
    const payload = Buffer.concat(this.#parts)
    const header = Buffer.alloc(FRAME_HEADER_BYTES)
    header.writeUInt32LE(payload.length, 0)
    header.writeUInt16LE(kind, 4)
    return Buffer.concat([header, payload])
  }
}

class Reader {
  #at = 0

  constructor(private readonly from: Buffer) {}

  get isDone(): boolean {
    return this.#at === this.from.length
  }

  bytes(count: number): Buffer {
    const taken = this.from.subarray(this.#at, this.#at + count)
    if (taken.length !== count) throw new BobbinError('INTERNAL', 'bobbin-fuse sent a frame that is too short')
    this.#at += count
    return taken
  }

  u32(): number {
    return this.bytes(4).readUInt32LE()
  }

  u64(): number {
    return Number(this.bytes(8).readBigUInt64LE())
  }

  text(): string {
    return this.bytes(this.u32()).toString('utf8')
  }

  list<T>(item: () => T): T[] {
    return Array.from({ length: Math.min(this.u32(), this.from.length) }, item)
  }

  oneOf<T>(values: readonly T[]): T {
    const value = values[this.bytes(1).readUInt8()]
    if (value === undefined) throw new BobbinError('INTERNAL', 'bobbin-fuse sent a number that is not known')
    return value
  }
}
