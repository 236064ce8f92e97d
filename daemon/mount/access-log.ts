/**
 * What was read through a mount: one file a mount, `<cache>/access/<top hash>-<time>-<number>.log`.
 *
 * A line of JSON says whose it is. Then come records of 24 bytes, as bobbin-fuse makes them:
 * {u64 ns since 1970 (by a clock that ticks every 4 ms or less), u32 inode number, u32 what, u64 bytes}, little-endian. An inode number is a place
 * in the package's index, so a log means the same wherever that revision is mounted.
 */
import { closeSync, existsSync, fstatSync, ftruncateSync, mkdirSync, openSync, readSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import type { TopHash } from '../model/index.js'
import { type AccessLogRoom, accessFolder } from './access-logs.js'
import { ACCESS_BYTES } from './link-frames.js'

/** 22 million records, which 10,000,000 files make that are each opened and read. What a mount has beyond that is counted as lost. Bytes. */
const LOG_BYTES_MAX = 512 * 2 ** 20
/** The first line of a log has three paths and a name. Bytes. */
const FIRST_LINE_BYTES_MAX = 64 * 2 ** 10
/** What is read of a log at once: a whole number of records. Bytes. */
const PIECE_BYTES = 10_000 * ACCESS_BYTES
/** By their numbers in a record. `lost`: `bytes` is how many records are missing here. */
const KINDS = ['lost', 'open', 'read'] as const

export interface AccessLogFacts {
  readonly version: 1
  readonly registry: string
  readonly package: string
  readonly topHash: TopHash
  readonly mountpoint: string
  /** Unix milliseconds. */
  readonly mountedAt: number
  /** The folder of the run whose mount it is: its record is made from this log (access-logs.ts). */
  readonly run?: string
}

export interface AccessRecord {
  readonly timeNs: bigint
  readonly ino: number
  /** `read` is the first read after an open; with open mode `none`, the first in this mount. */
  readonly kind: (typeof KINDS)[number]
  /** The size of what was opened, or the length of the read. */
  readonly bytes: number
}

/** Made with its first record, so that mounts that nobody reads leave none. */
export class AccessLog {
  readonly path: string
  readonly #folder: string
  #fd: number | undefined
  #bytes = 0
  /** Of the file, and of what could not be written to it. */
  #count = 0
  #lost = 0
  /** Lost ones that the file does not tell of yet. */
  #owed = 0

  constructor(
    cacheDir: string,
    /** bobbin-fuse's number of the mount: of two at the same time, each has its own. */
    mount: number,
    private readonly facts: AccessLogFacts,
    private readonly room: AccessLogRoom,
  ) {
    this.#folder = accessFolder(cacheDir)
    this.path = join(this.#folder, `${facts.topHash}-${facts.mountedAt}-${mount}.log`)
    room.begin(this.path)
    try {
      // Of an earlier daemon: it is gone on with.
      if (existsSync(this.path)) this.#open()
    } catch {
      // The mount matters more.
    }
  }

  /** Accesses of this mount so far, lost ones included. */
  get count(): number {
    return this.#count
  }

  /**
   * `first` accesses were before these; what is here already is left out, and what is missing is noted. A full disk loses
   * records and stops nobody.
   */
  append(first: number, records: Buffer): void {
    if (first > this.#count) this.#lose(first - this.#count)
    const rest = records.subarray(placeOf(records, this.#count - first))
    const { count, lost } = countIn(rest)
    if (count === 0) return
    try {
      this.#open()
      // One record more, for what is owed.
      if (this.#bytes + rest.length > LOG_BYTES_MAX || !this.room.take(rest.length + ACCESS_BYTES)) {
        this.#lose(count)
        return
      }
      this.#payOwed()
      this.#write(rest)
      this.#count += count
      this.#lost += lost
    } catch {
      this.#lose(count)
    }
  }

  stats(): { readonly records: number; readonly lost: number } {
    return { records: this.#count - this.#lost, lost: this.#lost }
  }

  /** The mount is over. */
  close(): void {
    this.room.end(this.path)
    if (this.#fd === undefined) return
    try {
      this.#payOwed()
    } catch {
      // The disk is still full; who reads the log finds fewer than it was said to have.
    }
    closeSync(this.#fd)
    this.#fd = undefined
  }

  #open(): void {
    if (this.#fd !== undefined) return
    mkdirSync(this.#folder, { recursive: true, mode: 0o750 })
    this.room.prune()
    this.#fd = openSync(this.path, 'a', 0o640)
    this.#bytes = this.#takeUp(fstatSync(this.#fd).size)
    if (this.#bytes === 0) this.#write(Buffer.from(`${JSON.stringify(this.facts)}\n`))
  }

  /** What is in the file already. Half a record, of a daemon that was killed, would shift all that follow. */
  #takeUp(size: number): number {
    const fd = openSync(this.path, 'r')
    try {
      const start = firstLineOf(fd)?.length ?? 0
      let end = start
      for (const records of start === 0 ? [] : piecesOf(fd, start)) {
        const { count, lost } = countIn(records)
        this.#count += count
        this.#lost += lost
        end += records.length
      }
      if (end < size) ftruncateSync(this.#fd!, end)
      return end
    } finally {
      closeSync(fd)
    }
  }

  #lose(count: number): void {
    this.#count += count
    this.#lost += count
    this.#owed += count
  }

  /** The log says itself where something is missing, as soon as it has room. */
  #payOwed(): void {
    if (this.#owed === 0) return
    const record = Buffer.alloc(ACCESS_BYTES)
    record.writeBigUInt64LE(BigInt(Date.now()) * 1_000_000n, 0)
    record.writeBigUInt64LE(BigInt(this.#owed), 16)
    this.#write(record)
    this.#owed = 0
  }

  /** All or nothing: half a record would shift all that follow. */
  #write(bytes: Buffer): void {
    const fd = this.#fd!
    try {
      for (let done = 0; done < bytes.length; ) done += writeSync(fd, bytes, done)
    } catch (error) {
      ftruncateSync(fd, this.#bytes)
      throw error
    }
    this.#bytes += bytes.length
  }
}

/** How many accesses records stand for, and how many of those are lost. */
function countIn(records: Buffer): { readonly count: number; readonly lost: number } {
  let [count, lost] = [0, 0]
  for (let at = 0; at < records.length; at += ACCESS_BYTES) {
    const missing = missingAt(records, at)
    count += missing || 1
    lost += missing
  }
  return { count, lost }
}

/** Where the records stand that are behind so many accesses. */
function placeOf(records: Buffer, count: number): number {
  let at = 0
  for (let left = count; left > 0 && at < records.length; at += ACCESS_BYTES) left -= missingAt(records, at) || 1
  return at
}

function missingAt(records: Buffer, at: number): number {
  return records.readUInt32LE(at + 12) === 0 ? Number(records.readBigUInt64LE(at + 16)) : 0
}

/**
 * A log, whose records are read as they are asked for, once. A record that was half written when the machine stopped is left out.
 * Undefined: not even its first line is whole.
 */
export function readAccessLog(
  path: string,
): { readonly facts: AccessLogFacts; readonly records: Iterable<AccessRecord> } | undefined {
  const fd = openSync(path, 'r')
  try {
    const line = firstLineOf(fd)
    if (line === undefined) return undefined
    const facts = JSON.parse(line.toString('utf8')) as AccessLogFacts
    return { facts, records: recordsIn(path, line.length) }
  } finally {
    closeSync(fd)
  }
}

function* recordsIn(path: string, start: number): Generator<AccessRecord> {
  const fd = openSync(path, 'r')
  try {
    for (const piece of piecesOf(fd, start)) {
      for (let at = 0; at < piece.length; at += ACCESS_BYTES) {
        yield {
          timeNs: piece.readBigUInt64LE(at),
          ino: piece.readUInt32LE(at + 8),
          kind: KINDS[piece.readUInt32LE(at + 12)] ?? 'lost',
          bytes: Number(piece.readBigUInt64LE(at + 16)),
        }
      }
    }
  } finally {
    closeSync(fd)
  }
}

/** With its line feed. */
function firstLineOf(fd: number): Buffer | undefined {
  const piece = Buffer.alloc(FIRST_LINE_BYTES_MAX)
  const start = piece.subarray(0, readSync(fd, piece, 0, piece.length, 0))
  const end = start.indexOf(10) + 1
  return end === 0 ? undefined : start.subarray(0, end)
}

/** Whole records, good until the next piece is taken. */
function* piecesOf(fd: number, start: number): Generator<Buffer> {
  const piece = Buffer.alloc(PIECE_BYTES)
  for (let at = start; ; ) {
    const read = readSync(fd, piece, 0, piece.length, at)
    const whole = read - (read % ACCESS_BYTES)
    if (whole === 0) return
    yield piece.subarray(0, whole)
    at += whole
  }
}
