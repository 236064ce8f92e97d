/**
 * What was read through a mount: one file a mount, `<cache>/access/<top hash>-<time>-<number>.log`.
 *
 * A line of JSON says whose it is. Then come records of 24 bytes, as bobbin-fuse makes them:
 * {u64 ns since 1970 (by a clock that ticks every 4 ms or less), u32 inode number, u32 what, u64 bytes}, little-endian. An inode number is a place
 * in the package's index, so a log means the same wherever that revision is mounted.
 */
import {
  closeSync,
  existsSync,
  fstatSync,
  ftruncateSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeSync,
} from 'node:fs'
import { join } from 'node:path'
import type { TopHash } from '../model/index.js'
import { ACCESS_BYTES } from './link-frames.js'

/** 11 million records: what a mount has beyond that is counted as lost. Bytes. */
const LOG_BYTES_MAX = 256 * 2 ** 20
/** The oldest go, but not while their mounts last. */
const LOGS_MAX = 100
/** Of the mounts of this process, which are all that there are: a cache has one daemon. */
const livePaths = new Set<string>()

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
  ) {
    this.#folder = join(cacheDir, 'access')
    this.path = join(this.#folder, `${facts.topHash}-${facts.mountedAt}-${mount}.log`)
    livePaths.add(this.path)
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
      if (this.#bytes + rest.length > LOG_BYTES_MAX) {
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
    livePaths.delete(this.path)
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
    this.#forgetOld()
    this.#fd = openSync(this.path, 'a', 0o640)
    this.#bytes = this.#takeUp(fstatSync(this.#fd).size)
    if (this.#bytes === 0) this.#write(Buffer.from(`${JSON.stringify(this.facts)}\n`))
  }

  /** What is in the file already. Half a record, of a daemon that was killed, would shift all that follow. */
  #takeUp(size: number): number {
    if (size === 0) return 0
    const bytes = readFileSync(this.path)
    const start = bytes.indexOf(10) + 1
    const end = start === 0 ? 0 : size - ((size - start) % ACCESS_BYTES)
    const { count, lost } = countIn(bytes.subarray(start, end))
    this.#count += count
    this.#lost += lost
    if (end < size) ftruncateSync(this.#fd!, end)
    return end
  }

  #forgetOld(): void {
    const timeOf = (name: string) => Number(/-(\d+)-\d+\.log$/.exec(name)?.[1] ?? 0)
    const names = readdirSync(this.#folder).sort((a, b) => timeOf(b) - timeOf(a))
    for (const name of names.slice(LOGS_MAX)) {
      const path = join(this.#folder, name)
      if (!livePaths.has(path)) rmSync(path, { force: true })
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

/** A whole log. A record that was half written when the machine stopped is left out. */
export function readAccessLog(path: string): {
  readonly facts: AccessLogFacts
  readonly records: readonly AccessRecord[]
} {
  const bytes = readFileSync(path)
  const start = bytes.indexOf(10) + 1
  const records: AccessRecord[] = []
  for (let at = start; at + ACCESS_BYTES <= bytes.length; at += ACCESS_BYTES) {
    records.push({
      timeNs: bytes.readBigUInt64LE(at),
      ino: bytes.readUInt32LE(at + 8),
      kind: KINDS[bytes.readUInt32LE(at + 12)] ?? 'lost',
      bytes: Number(bytes.readBigUInt64LE(at + 16)),
    })
  }
  return { facts: JSON.parse(bytes.toString('utf8', 0, start)) as AccessLogFacts, records }
}
