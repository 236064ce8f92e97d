/**
 * Reads a package index (index-layout.md) by offset: nothing of the package is loaded but the blocks
 * that are asked for, and each block's checksum is compared when it is read.
 *
 * Reads are synchronous: a block is 64 KiB of a local file, nearly always in the page cache.
 * Every method may throw INDEX_DAMAGED; the owner of the package then rebuilds the index.
 */
import { closeSync, fstatSync, openSync, readSync } from 'node:fs'
import { crc32 } from 'node:zlib'
import { LRUCache } from 'lru-cache'
import { findMember } from '../json/json-bytes.js'
import { parsePythonJson } from '../json/python-json.js'
import {
  BobbinError,
  type Entry,
  HASH_TYPES,
  type LogicalKey,
  localError,
  type ObjectHash,
  type ObjectSpec,
  type PhysicalKey,
  parsePhysicalKey,
  type TopHash,
} from '../model/index.js'
import {
  BLOCK_BYTES,
  HEADER,
  HEADER_BYTES,
  HEADER_SPANS,
  type HeaderSpanName,
  KIND_DIRECTORY,
  KIND_FILE,
  MAGIC,
  NODE,
  NODE_BYTES,
  SECTIONS,
  type SectionName,
  VERSION,
} from './index-layout.js'
import type { Quarantined } from './index-writer.js'

export interface PackageFacts {
  readonly topHash: TopHash
  /** Hex; the manifest that this index was made from. */
  readonly manifestSha256: string
  readonly manifestBytes: number
  readonly entries: number
  readonly directories: number
  /** Of all entries together. */
  readonly bytes: number
  readonly quarantined: number
}

export type IndexNode = DirectoryNode | FileNode

export interface DirectoryNode {
  readonly kind: 'directory'
  /** 1 is the root. */
  readonly ino: number
  readonly parent: number
  readonly name: string
  readonly childCount: number
  readonly hasMetadata: boolean
}

export interface FileNode {
  readonly kind: 'file'
  readonly ino: number
  readonly parent: number
  readonly name: string
  /** Bytes. */
  readonly size: number
  readonly hasMetadata: boolean
}

export const ROOT_INO = 1
/** 16 MiB an open package. */
const CACHED_BLOCKS = 256

export class PackageIndex {
  readonly facts: PackageFacts
  readonly #fd: number
  readonly #manifestFd: number
  readonly #bodyBytes: number
  readonly #checksums: Buffer
  readonly #nodeCount: number
  readonly #sections: Readonly<Record<SectionName, { offset: number; bytes: number }>>
  readonly #spans: Readonly<Record<HeaderSpanName, { offset: number; bytes: number; crc: number }>>
  readonly #blocks = new LRUCache<number, Buffer>({ max: CACHED_BLOCKS })

  /** Opens the index and the manifest beside it. Throws INDEX_DAMAGED, also when one of the files is missing. */
  constructor(
    readonly path: string,
    manifestPath: string,
  ) {
    this.#fd = openFile(path)
    try {
      const header = Buffer.alloc(HEADER_BYTES)
      readExactly(this.#fd, header, 0, path)
      if (!header.subarray(0, MAGIC.length).equals(MAGIC)) damaged(path, 'it does not start as one')
      if (header.readUInt32LE(HEADER.version) !== VERSION) damaged(path, 'it is of another version')
      if (header.readUInt32LE(HEADER.crc) !== crc32(header.subarray(0, HEADER.crc)))
        damaged(path, 'its header is damaged')
      const u64 = (at: number) => Number(header.readBigUInt64LE(at))
      const fileBytes = u64(HEADER.fileBytes)
      if (fstatSync(this.#fd).size !== fileBytes) damaged(path, 'it is shorter or longer than it says')
      this.#bodyBytes = u64(HEADER.bodyBytes)
      this.#nodeCount = header.readUInt32LE(HEADER.nodeCount)
      this.#checksums = Buffer.alloc(4 * Math.ceil(this.#bodyBytes / BLOCK_BYTES))
      if (HEADER_BYTES + this.#bodyBytes + this.#checksums.length !== fileBytes)
        damaged(path, 'its lengths do not add up')
      readExactly(this.#fd, this.#checksums, HEADER_BYTES + this.#bodyBytes, path)
      if (crc32(this.#checksums) !== header.readUInt32LE(HEADER.checksumsCrc))
        damaged(path, 'its checksums are damaged')
      this.#sections = Object.fromEntries(
        SECTIONS.map((name, i) => [
          name,
          { offset: u64(HEADER.sections + 16 * i), bytes: u64(HEADER.sections + 16 * i + 8) },
        ]),
      ) as Record<SectionName, { offset: number; bytes: number }>
      if (this.#sections.nodes.bytes !== this.#nodeCount * NODE_BYTES) damaged(path, 'its lengths do not add up')
      this.#spans = Object.fromEntries(
        HEADER_SPANS.map((name, i) => {
          const at = HEADER.spans + 16 * i
          return [name, { offset: u64(at), bytes: header.readUInt32LE(at + 8), crc: header.readUInt32LE(at + 12) }]
        }),
      ) as Record<HeaderSpanName, { offset: number; bytes: number; crc: number }>
      const entries = header.readUInt32LE(HEADER.entryCount)
      this.facts = {
        topHash: header.toString('hex', HEADER.topHash, HEADER.topHash + 32) as TopHash,
        manifestSha256: header.toString('hex', HEADER.manifestSha256, HEADER.manifestSha256 + 32),
        manifestBytes: u64(HEADER.manifestBytes),
        entries,
        directories: this.#nodeCount - entries,
        bytes: u64(HEADER.entryBytes),
        quarantined: header.readUInt32LE(HEADER.quarantinedCount),
      }
      this.#manifestFd = openFile(manifestPath)
    } catch (error) {
      closeSync(this.#fd)
      throw error
    }
  }

  /** Throws ENTRY_NOT_FOUND for a number that is no inode of this package. */
  node(ino: number): IndexNode {
    const words = this.#words(ino)
    const kinds = words.getUint32(4 * NODE.kinds, true)
    const nameBytes = (kinds >>> 16) & 0xff
    const base = {
      ino,
      parent: words.getUint32(4 * NODE.parent, true) + 1,
      name: this.#bytes('names', getU64(words, NODE.nameOffset), nameBytes).toString('utf8'),
      hasMetadata: words.getUint32(4 * NODE.metaBytes, true) > 0,
    }
    switch (kinds & 0xff) {
      case KIND_DIRECTORY:
        return { kind: 'directory', ...base, childCount: words.getUint32(4 * NODE.childCount, true) }
      case KIND_FILE:
        return { kind: 'file', ...base, size: getU64(words, NODE.size) }
      default:
        return damaged(this.path, 'a node is neither a file nor a directory')
    }
  }

  /** The inode number of a directory's child, or `undefined`. */
  lookup(directory: number, name: string): number | undefined {
    const target = Buffer.from(name)
    let { low, high } = this.childRange(directory)
    while (low < high) {
      const middle = Math.floor((low + high) / 2)
      const order = this.#nameBytes(middle).compare(target)
      if (order === 0) return middle
      if (order < 0) low = middle + 1
      else high = middle
    }
    return undefined
  }

  /** By path from the root; '' is the root. A final slash is allowed for directories. */
  find(key: string): IndexNode | undefined {
    let ino = ROOT_INO
    for (const component of key.replace(/\/$/, '').split('/')) {
      if (component === '' && ino === ROOT_INO) continue
      const child = this.node(ino).kind === 'directory' ? this.lookup(ino, component) : undefined
      if (child === undefined) return undefined
      ino = child
    }
    const node = this.node(ino)
    return key.endsWith('/') && node.kind === 'file' ? undefined : node
  }

  /** Inode numbers of the children, in the byte order of their names: low ≤ ino < high; empty for a file. */
  childRange(directory: number): { low: number; high: number } {
    const words = this.#words(directory)
    if ((words.getUint32(4 * NODE.kinds, true) & 0xff) !== KIND_DIRECTORY) return { low: 0, high: 0 }
    const low = words.getUint32(4 * NODE.firstChild, true) + 1
    const high = low + words.getUint32(4 * NODE.childCount, true)
    if (high > this.#nodeCount + 1 || (high > low && low <= directory))
      damaged(this.path, 'a directory points outside the index')
    return { low, high }
  }

  /** In the byte order of their names. */
  *children(directory: number): Generator<IndexNode> {
    const { low, high } = this.childRange(directory)
    for (let ino = low; ino < high; ino++) yield this.node(ino)
  }

  /** Path from the root; the root's is ''. */
  key(ino: number): string {
    const names: string[] = []
    for (let node = this.node(ino); node.ino !== ROOT_INO; node = this.node(node.parent)) {
      names.push(node.name)
      if (names.length > this.#nodeCount) damaged(this.path, 'its parents go in a circle')
    }
    return names.reverse().join('/')
  }

  /** Throws IS_A_DIRECTORY. `key` spares the climb to the root where the caller knows it. */
  entry(ino: number, key: string = this.key(ino)): Entry {
    const { size, hash, physicalKey } = this.object(ino)
    return { key: key as LogicalKey, size, physicalKey, hash }
  }

  /** What an entry is, without its key. Most callers do not need to know where it comes from, so that is read late. */
  object(ino: number): ObjectSpec {
    const words = this.#words(ino)
    const kinds = words.getUint32(4 * NODE.kinds, true)
    if ((kinds & 0xff) !== KIND_FILE)
      throw new BobbinError('IS_A_DIRECTORY', `${JSON.stringify(this.key(ino))} is a directory`)
    return new IndexedObject(getU64(words, NODE.size), this.#hash(words, (kinds >>> 8) & 0xff), () => {
      const [offset, bytes] = [getU64(words, NODE.keyOffset), words.getUint32(4 * NODE.keyBytes, true)]
      return parsePhysicalKey(this.#bytes('keys', offset, bytes).toString('utf8'))
    })
  }

  #hash(words: DataView, typeNumber: number): ObjectHash {
    const type = HASH_TYPES[typeNumber] ?? damaged(this.path, 'a node has an unknown hash type')
    const at = words.byteOffset + 4 * NODE.digest
    return { type, hex: Buffer.from(words.buffer, at, type === 'CRC64NVME' ? 8 : 32).toString('hex') }
  }

  /** The row of the manifest that a file comes from; the header is row 1. */
  row(ino: number): number {
    return this.#words(ino).getUint32(4 * NODE.row, true)
  }

  /** The user's metadata of an entry or a directory (1: of the package), as JSON text of the manifest. */
  metadata(ino: number): string | undefined {
    if (ino === ROOT_INO) return this.#manifestText(this.#spans.userMeta)
    const words = this.#words(ino)
    return this.#manifestText({
      offset: getU64(words, NODE.metaOffset),
      bytes: words.getUint32(4 * NODE.metaBytes, true),
      crc: words.getUint32(4 * NODE.metaCrc, true),
    })
  }

  /** The package's own metadata as quilt3 gives it: `{}` without any, and `null` where the header says so. JSON text. */
  packageMetadata(): string {
    return this.metadata(ROOT_INO) ?? (this.#hasNullMetadata() ? 'null' : '{}')
  }

  /** The index has no place for this difference, so the manifest's first line is read. */
  #hasNullMetadata(): boolean {
    const pieces: Buffer[] = []
    for (let at = 0; at < this.facts.manifestBytes; ) {
      const piece = Buffer.alloc(Math.min(BLOCK_BYTES, this.facts.manifestBytes - at))
      readExactly(this.#manifestFd, piece, at, 'the cached manifest')
      const newline = piece.indexOf(0x0a)
      pieces.push(newline < 0 ? piece : piece.subarray(0, newline))
      if (newline >= 0) break
      at += piece.length
    }
    const header = Buffer.concat(pieces)
    return findMember(header, 0, header.length, 'user_meta') !== undefined
  }

  get message(): string | undefined {
    const text = this.#manifestText(this.#spans.message)
    if (text === undefined) return undefined
    const value: unknown = parsePythonJson(text)
    return typeof value === 'string' ? value : text
  }

  /** JSON text of the header's `workflow`. */
  get workflow(): string | undefined {
    return this.#manifestText(this.#spans.workflow)
  }

  /** Rows that `--quarantine` left out. */
  quarantined(): readonly Quarantined[] {
    const { bytes } = this.#sections.quarantined
    const text = this.#bytes('quarantined', 0, bytes).toString('utf8')
    return text
      .split('\n')
      .filter(line => line !== '')
      .map(line => JSON.parse(line) as Quarantined)
  }

  /** The subtree below a directory, in tree order, without it; keys are full paths. */
  *walk(directory: number = ROOT_INO): Generator<{ readonly node: IndexNode; readonly key: string }> {
    const top = this.key(directory)
    // An own stack: a package may be 2,000 directories deep.
    const stack = [{ prefix: top === '' ? '' : `${top}/`, nodes: this.children(directory) }]
    while (stack.length > 0) {
      const { prefix, nodes } = stack.at(-1)!
      const next = nodes.next()
      if (next.done) {
        stack.pop()
        continue
      }
      const node = next.value
      const key = prefix + node.name
      yield { node, key }
      if (node.kind === 'directory') stack.push({ prefix: `${key}/`, nodes: this.children(node.ino) })
    }
  }

  /** Every entry below a directory, in tree order. */
  *entries(directory: number = ROOT_INO): Generator<Entry> {
    for (const { node, key } of this.walk(directory)) if (node.kind === 'file') yield this.entry(node.ino, key)
  }

  close(): void {
    closeSync(this.#fd)
    closeSync(this.#manifestFd)
  }

  #words(ino: number): DataView {
    if (!Number.isInteger(ino) || ino < ROOT_INO || ino > this.#nodeCount) {
      throw new BobbinError('ENTRY_NOT_FOUND', `no inode ${ino} in this package`)
    }
    const bytes = this.#bytes('nodes', (ino - 1) * NODE_BYTES, NODE_BYTES)
    return new DataView(bytes.buffer, bytes.byteOffset, NODE_BYTES)
  }

  #nameBytes(ino: number): Buffer {
    const words = this.#words(ino)
    return this.#bytes('names', getU64(words, NODE.nameOffset), (words.getUint32(4 * NODE.kinds, true) >>> 16) & 0xff)
  }

  /** A stretch of a section, checked; from one cached block where it lies in one. */
  #bytes(name: SectionName, offset: number, length: number): Buffer {
    const section = this.#sections[name]
    if (offset + length > section.bytes) damaged(this.path, `an offset lies outside its ${name}`)
    const start = section.offset - HEADER_BYTES + offset
    const block = Math.floor(start / BLOCK_BYTES)
    const at = start - block * BLOCK_BYTES
    if (at + length <= BLOCK_BYTES) return length === 0 ? Buffer.alloc(0) : this.#block(block).subarray(at, at + length)
    const pieces: Buffer[] = [this.#block(block).subarray(at)]
    for (let next = block + 1, left = length - (BLOCK_BYTES - at); left > 0; next++) {
      const piece = this.#block(next).subarray(0, left)
      pieces.push(piece)
      left -= piece.length
    }
    return Buffer.concat(pieces)
  }

  #block(number: number): Buffer {
    const cached = this.#blocks.get(number)
    if (cached !== undefined) return cached
    const start = number * BLOCK_BYTES
    if (start >= this.#bodyBytes) damaged(this.path, 'an offset lies outside it')
    const block = Buffer.from(new ArrayBuffer(Math.min(BLOCK_BYTES, this.#bodyBytes - start)))
    readExactly(this.#fd, block, HEADER_BYTES + start, this.path)
    if (crc32(block) !== this.#checksums.readUInt32LE(4 * number)) damaged(this.path, `its block ${number} is damaged`)
    this.#blocks.set(number, block)
    return block
  }

  #manifestText(span: { offset: number; bytes: number; crc: number }): string | undefined {
    if (span.bytes === 0) return undefined
    if (span.offset + span.bytes > this.facts.manifestBytes) damaged(this.path, 'metadata lies outside the manifest')
    const text = Buffer.alloc(span.bytes)
    readExactly(this.#manifestFd, text, span.offset, 'the cached manifest')
    if (crc32(text) !== span.crc) damaged(this.path, 'the cached manifest is damaged')
    return text.toString('utf8')
  }
}

/**
 * A class, since V8 makes a hidden class of its own for each object literal that has a getter: they lie in the old generation, with
 * all that the getter sees, until the next large collection.
 */
class IndexedObject implements ObjectSpec {
  readonly #readKey: () => PhysicalKey

  constructor(
    readonly size: number,
    readonly hash: ObjectHash,
    readKey: () => PhysicalKey,
  ) {
    this.#readKey = readKey
  }

  get physicalKey(): PhysicalKey {
    return this.#readKey()
  }
}

function getU64(words: DataView, word: number): number {
  return words.getUint32(4 * word, true) + words.getUint32(4 * word + 4, true) * 2 ** 32
}

function openFile(path: string): number {
  try {
    return openSync(path, 'r')
  } catch (error) {
    throw new BobbinError('INDEX_DAMAGED', `cannot open ${path}`, { cause: error })
  }
}

function readExactly(fd: number, into: Buffer, position: number, what: string): void {
  for (let done = 0; done < into.length; ) {
    let read: number
    try {
      read = readSync(fd, into, done, into.length - done, position + done)
    } catch (error) {
      throw localError(`read ${what}`, error)
    }
    if (read === 0) damaged(what, 'it is cut short')
    done += read
  }
}

function damaged(what: string, why: string): never {
  throw new BobbinError('INDEX_DAMAGED', `the package index ${what} cannot be used: ${why}`)
}
