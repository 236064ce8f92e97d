/**
 * What was read through a mount: one file a mount, `<cache>/access/<top hash>-<time>.log`.
 *
 * A line of JSON says whose it is. Then come records of 24 bytes, as bobbin-fuse makes them:
 * {u64 ns since 1970, u32 inode number, u32 what, u64 bytes}, little-endian. An inode number is a place
 * in the package's index, so a log means the same wherever that revision is mounted.
 */
import { closeSync, fstatSync, ftruncateSync, mkdirSync, openSync, readFileSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import { localError, type TopHash } from '../model/index.js'
import { ACCESS_BYTES } from './link-frames.js'

/** 11 million records: what a mount has beyond that is counted as lost. Bytes. */
const LOG_BYTES_MAX = 256 * 2 ** 20

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

export class AccessLog {
  #bytes: number
  #records = 0
  #lost = 0

  private constructor(
    readonly path: string,
    private readonly fd: number,
  ) {
    this.#bytes = fstatSync(fd).size
  }

  /** Goes on with the log of an earlier daemon, if there is one. Throws LOCAL_IO. */
  static open(cacheDir: string, facts: AccessLogFacts): AccessLog {
    const folder = join(cacheDir, 'access')
    const path = join(folder, `${facts.topHash}-${facts.mountedAt}.log`)
    try {
      mkdirSync(folder, { recursive: true, mode: 0o750 })
      const log = new AccessLog(path, openSync(path, 'a', 0o640))
      if (log.#bytes === 0) log.#write(Buffer.from(`${JSON.stringify(facts)}\n`))
      return log
    } catch (error) {
      throw localError(`write the access log ${path}`, error)
    }
  }

  /** A full disk loses records and stops nobody. */
  append(records: Buffer, lost: number): void {
    this.#lose(lost)
    const count = records.length / ACCESS_BYTES
    if (this.#bytes + records.length > LOG_BYTES_MAX) {
      this.#lose(count)
      return
    }
    try {
      this.#write(records)
      this.#records += count
    } catch {
      this.#lost += count
    }
  }

  stats(): { readonly records: number; readonly lost: number } {
    return { records: this.#records, lost: this.#lost }
  }

  close(): void {
    closeSync(this.fd)
  }

  /** The log says itself where something is missing, while it has room. */
  #lose(count: number): void {
    if (count === 0) return
    this.#lost += count
    if (this.#bytes > LOG_BYTES_MAX) return
    const record = Buffer.alloc(ACCESS_BYTES)
    record.writeBigUInt64LE(BigInt(Date.now()) * 1_000_000n, 0)
    record.writeBigUInt64LE(BigInt(count), 16)
    try {
      this.#write(record)
    } catch {
      // The count is in the status.
    }
  }

  /** All or nothing: half a record would shift all that follow. */
  #write(bytes: Buffer): void {
    try {
      for (let done = 0; done < bytes.length; ) done += writeSync(this.fd, bytes, done)
    } catch (error) {
      ftruncateSync(this.fd, this.#bytes)
      throw error
    }
    this.#bytes += bytes.length
  }
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
