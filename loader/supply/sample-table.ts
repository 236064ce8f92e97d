/**
 * Which inodes each sample of a plan has: a file that is made once a plan and read by offset, so that neither
 * its making nor an epoch holds the samples in memory.
 *
 *   header (128 bytes): magic "BOBBINST", u32 version, u32 0, plan id (32 bytes), u64 samples, u64 entries, u64 bytes,
 *                       u64 maxStepBytes, zeros, u32 CRC-32 of the 124 bytes before
 *   u64 × (samples + 1): where each sample's inodes begin, in numbers
 *   u32 × entries: inode numbers
 *   u32 × blocks: CRC-32 of each 64 KiB of the two lists
 *
 * All little-endian.
 */
import { closeSync, fstatSync, openSync, readSync, renameSync, rmSync, writeSync } from 'node:fs'
import { setImmediate as yieldToOthers } from 'node:timers/promises'
import { crc32 } from 'node:zlib'
import { LRUCache } from 'lru-cache'
import TinyQueue from 'tinyqueue'
import type { PackageIndex } from '../../daemon/index/package-index.js'
import { BobbinError, localError, throwIfAborted } from '../../daemon/model/index.js'
import { markUsed } from '../../daemon/store/compiled-files.js'
import { type PlanDocument, type PlanId, planIdOf } from '../plan/plan-document.js'
import { findSamples } from '../plan/samples.js'

export interface TableFacts {
  readonly samples: number
  readonly entries: number
  /** Of all entries. */
  readonly bytes: number
  /** No step of any epoch has more: the sum of the largest samples. */
  readonly maxStepBytes: number
}

const MAGIC = 'BOBBINST'
const VERSION = 1
const HEADER_BYTES = 128
const PLAN_AT = 16
const FACTS_AT = 48
const CRC_AT = HEADER_BYTES - 4
const BLOCK_BYTES = 65_536
/** 8 MiB a table: small ones are wholly in memory once they were read. */
const CACHED_BLOCKS = 128
const SAMPLES_A_TURN = 5000

/** What the table of a plan takes on the disk while it is made, at most: the inodes twice, and a sample an entry. */
export function tableBytesMax(entries: number): number {
  const bytes = 8 * (entries + 1) + 4 * entries
  return HEADER_BYTES + bytes + 4 * Math.ceil(bytes / BLOCK_BYTES) + 4 * entries
}

/** Appends numbers to a file, through a buffer. */
class NumberWriter {
  readonly #buffer = Buffer.alloc(BLOCK_BYTES)
  #filled = 0
  #at: number
  constructor(
    private readonly fd: number,
    at: number,
  ) {
    this.#at = at
  }

  u32(value: number): void {
    this.#buffer.writeUInt32LE(value, this.#filled)
    this.#advance(4)
  }

  u64(value: number): void {
    this.#buffer.writeBigUInt64LE(BigInt(value), this.#filled)
    this.#advance(8)
  }

  flush(): number {
    for (let done = 0; done < this.#filled; )
      done += writeSync(this.fd, this.#buffer, done, this.#filled - done, this.#at + done)
    this.#at += this.#filled
    this.#filled = 0
    return this.#at
  }

  #advance(bytes: number): void {
    this.#filled += bytes
    if (this.#filled === BLOCK_BYTES) this.flush()
  }
}

/**
 * Walks the package and writes the table; nothing lies at `path` unless it is whole. Throws INVALID_ARGUMENT as
 * `findSamples` does, and when the batches leave no step.
 */
export async function buildSampleTable(
  index: PackageIndex,
  document: PlanDocument,
  path: string,
  options: { readonly signal?: AbortSignal; readonly onProgress?: (samples: number) => void } = {},
): Promise<TableFacts> {
  const temporary = `${path}.${process.pid}.new`
  const inosPath = `${temporary}.inos`
  let [fd, inosFd]: (number | undefined)[] = []
  try {
    fd = openSync(temporary, 'w+', 0o640)
    inosFd = openSync(inosPath, 'w+', 0o640)
    const offsets = new NumberWriter(fd, HEADER_BYTES)
    const inos = new NumberWriter(inosFd, 0)
    let [samples, entries, bytes, maxStepBytes] = [0, 0, 0, 0]
    const largest = new TinyQueue<number>()
    for (const sample of findSamples(index, document)) {
      offsets.u64(entries)
      for (const ino of sample.inos) inos.u32(ino)
      samples++
      entries += sample.inos.length
      bytes += sample.bytes
      maxStepBytes += sample.bytes
      largest.push(sample.bytes)
      if (largest.length > document.batch.global) maxStepBytes -= largest.pop()!
      if (samples % SAMPLES_A_TURN !== 0) continue
      await yieldToOthers()
      throwIfAborted(options.signal)
      options.onProgress?.(samples)
    }
    offsets.u64(entries)
    if (document.batch.tail === 'drop' && samples < document.batch.global)
      throw new BobbinError(
        'INVALID_ARGUMENT',
        `${samples} samples are fewer than one global batch of ${document.batch.global}, and the tail is dropped: nothing is left`,
      )
    let at = offsets.flush()
    at = copy(inosFd, inos.flush(), fd, at)
    const facts = { samples, entries, bytes, maxStepBytes }
    writeChecksums(fd, at)
    writeHeader(fd, planIdOf(document), facts)
    renameSync(temporary, path)
    return facts
  } catch (error) {
    rmSync(temporary, { force: true })
    throw localError(`write ${path}`, error)
  } finally {
    if (fd !== undefined) closeSync(fd)
    if (inosFd !== undefined) closeSync(inosFd)
    rmSync(inosPath, { force: true })
  }
}

function copy(from: number, bytes: number, to: number, at: number): number {
  const buffer = Buffer.alloc(BLOCK_BYTES)
  for (let done = 0; done < bytes; ) {
    const n = readSync(from, buffer, 0, BLOCK_BYTES, done)
    for (let written = 0; written < n; ) written += writeSync(to, buffer, written, n - written, at + done + written)
    done += n
  }
  return at + bytes
}

function writeChecksums(fd: number, end: number): void {
  const writer = new NumberWriter(fd, end)
  const block = Buffer.alloc(BLOCK_BYTES)
  for (let at = HEADER_BYTES; at < end; at += BLOCK_BYTES) {
    const length = Math.min(BLOCK_BYTES, end - at)
    readSync(fd, block, 0, length, at)
    writer.u32(crc32(block.subarray(0, length)))
  }
  writer.flush()
}

function writeHeader(fd: number, id: PlanId, { samples, entries, bytes, maxStepBytes }: TableFacts): void {
  const header = Buffer.alloc(HEADER_BYTES)
  header.write(MAGIC, 'latin1')
  header.writeUInt32LE(VERSION, MAGIC.length)
  header.write(id, PLAN_AT, 'hex')
  for (const [i, value] of [samples, entries, bytes, maxStepBytes].entries())
    header.writeBigUInt64LE(BigInt(value), FACTS_AT + 8 * i)
  header.writeUInt32LE(crc32(header.subarray(0, CRC_AT)), CRC_AT)
  writeSync(fd, header, 0, HEADER_BYTES, 0)
}

export class SampleTable {
  readonly facts: TableFacts
  /** Found out by whoever has read it last. */
  isDamaged = false
  readonly #fd: number
  readonly #bodyBytes: number
  readonly #checksums: Buffer
  readonly #blocks = new LRUCache<number, Buffer>({ max: CACHED_BLOCKS })
  readonly #stopMarking: () => void

  /** Throws INDEX_DAMAGED: not a table, damaged, or of another plan. */
  constructor(
    readonly path: string,
    id: PlanId,
  ) {
    try {
      this.#fd = openSync(path, 'r')
    } catch (error) {
      throw new BobbinError('INDEX_DAMAGED', `cannot open ${path}`, { cause: error })
    }
    try {
      const header = this.#read(0, HEADER_BYTES)
      if (header.toString('latin1', 0, MAGIC.length) !== MAGIC) this.#damaged('it does not start as one')
      if (header.readUInt32LE(MAGIC.length) !== VERSION) this.#damaged('it is of another version')
      if (crc32(header.subarray(0, CRC_AT)) !== header.readUInt32LE(CRC_AT)) this.#damaged('its header is damaged')
      if (header.toString('hex', PLAN_AT, FACTS_AT) !== id) this.#damaged('it is of another plan')
      const fact = (i: number) => Number(header.readBigUInt64LE(FACTS_AT + 8 * i))
      this.facts = { samples: fact(0), entries: fact(1), bytes: fact(2), maxStepBytes: fact(3) }
      this.#bodyBytes = 8 * (this.facts.samples + 1) + 4 * this.facts.entries
      const checksumBytes = 4 * Math.ceil(this.#bodyBytes / BLOCK_BYTES)
      if (fstatSync(this.#fd).size !== HEADER_BYTES + this.#bodyBytes + checksumBytes)
        this.#damaged('it is shorter or longer than it says')
      this.#checksums = this.#read(HEADER_BYTES + this.#bodyBytes, checksumBytes)
      this.#stopMarking = markUsed(() => path)
    } catch (error) {
      closeSync(this.#fd)
      throw error
    }
  }

  /** Inode numbers, in the order of their suffixes. Throws INDEX_DAMAGED. */
  members(sample: number): number[] {
    const { samples, entries } = this.facts
    if (!Number.isInteger(sample) || sample < 0 || sample >= samples)
      throw new BobbinError('INTERNAL', `no sample ${sample} among ${samples}`)
    const [first, end] = [this.#u64(sample), this.#u64(sample + 1)]
    if (first >= end || end > entries) this.#damaged('a sample points outside it')
    const base = 8 * (samples + 1)
    return Array.from({ length: end - first }, (_, i) => this.#word(base + 4 * (first + i)))
  }

  close(): void {
    this.#stopMarking()
    closeSync(this.#fd)
  }

  #u64(i: number): number {
    return this.#word(8 * i) + this.#word(8 * i + 4) * 2 ** 32
  }

  /** At an offset that is a multiple of four, so never over the end of a block. */
  #word(offset: number): number {
    const number = Math.floor(offset / BLOCK_BYTES)
    let block = this.#blocks.get(number)
    if (block === undefined) {
      const start = number * BLOCK_BYTES
      block = this.#read(HEADER_BYTES + start, Math.min(BLOCK_BYTES, this.#bodyBytes - start))
      if (crc32(block) !== this.#checksums.readUInt32LE(4 * number)) this.#damaged(`its block ${number} is damaged`)
      this.#blocks.set(number, block)
    }
    return block.readUInt32LE(offset - number * BLOCK_BYTES)
  }

  #read(position: number, length: number): Buffer {
    const bytes = Buffer.alloc(length)
    for (let done = 0; done < length; ) {
      const n = readSync(this.#fd, bytes, done, length - done, position + done)
      if (n === 0) this.#damaged('it is cut short')
      done += n
    }
    return bytes
  }

  #damaged(why: string): never {
    this.isDamaged = true
    throw new BobbinError('INDEX_DAMAGED', `the sample table ${this.path} cannot be used: ${why}`)
  }
}
