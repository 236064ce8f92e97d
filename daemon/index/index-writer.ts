/**
 * Writes a package index from entries that arrive in tree order, in bounded memory.
 *
 * Tree order is depth-first; the index is breadth-first. The nodes of one depth arrive in the order
 * in which breadth-first wants them, so each depth has a stream of its own (nodes and names) that
 * spills into one scratch file, and `finish` lays the streams one behind the other. Only there are
 * the positions known, so parents and children are counted within their depth before.
 */
import { closeSync, openSync } from 'node:fs'
import { crc32 } from 'node:zlib'
import { BobbinError, COMPONENTS_MAX, compareTreeOrder, KEY_BYTES_MAX, type TopHash } from '../model/index.js'
import { BlockWriter, writeAll } from './block-writer.js'
import {
  BLOCK_BYTES,
  HEADER,
  HEADER_BYTES,
  HEADER_SPANS,
  type HeaderSpanName,
  KIND_DIRECTORY,
  MAGIC,
  NODE,
  NODE_BYTES,
  NODE_WORDS,
  NODES_MAX,
  SECTIONS,
  type SectionName,
  VERSION,
} from './index-layout.js'
import { ScratchFile, SpillStream } from './spill-stream.js'

/** A stretch of the manifest, and the CRC-32 of its bytes. */
export interface CheckedSpan {
  readonly offset: number
  readonly bytes: number
  readonly crc: number
}

/** A file as scan-rows.ts left it: most of its node, and its texts. */
export interface ScannedFile {
  /** The half-made node stands at words[at]. */
  readonly words: Uint32Array
  readonly at: number
  /** The key at [keyFrom, keyTo), UTF-8; the physical key follows it. */
  readonly text: Buffer
  readonly keyFrom: number
  readonly keyTo: number
  readonly row: number
}

export interface DirectoryMeta {
  /** UTF-8, without the final slash. */
  readonly key: Buffer
  readonly meta: CheckedSpan
}

export interface Quarantined {
  readonly row: number
  readonly key: string
  readonly reason: string
}

export interface PackageTotals {
  readonly topHash: TopHash
  readonly manifestSha256: string
  readonly manifestBytes: number
  readonly spans: Readonly<Partial<Record<HeaderSpanName, CheckedSpan>>>
  readonly quarantined: readonly Quarantined[]
}

/** A package has at most these, and one more for each DIRECTORY_BYTES of its rows. */
const DIRECTORIES_FREE = 1000
/**
 * A directory's node takes 96 bytes of the index. An honest row pays for its directories: each stands in both of its
 * keys, and 20 directories that hold one file alone would have to be usual before a package met this. So an index is
 * at most nine times as large as its manifest, where keys like `a/a/a/…` made it 47 times as large.
 */
const DIRECTORY_BYTES = 16
/** What the shortest row has beside its keys. */
const ROW_BYTES_MIN = 100

interface OpenDirectory {
  /** Index of its `/` in the path. */
  readonly end: number
  /** Index of its name's first byte in the path. */
  readonly nameStart: number
  readonly firstChild: number
  readonly meta: CheckedSpan | undefined
}

export class IndexWriter {
  readonly #scratch: ScratchFile
  readonly #body: BlockWriter
  readonly #depths: { readonly nodes: SpillStream; readonly names: SpillStream; count: number }[] = []
  /** The open directories below the root; #path holds their names, each with its slash. */
  readonly #open: OpenDirectory[] = []
  readonly #path = Buffer.alloc(KEY_BYTES_MAX + 1)
  #nodes = 0
  #entries = 0
  #entryBytes = 0
  #keysBytes = 0
  readonly #fd: number
  #directoryMetas: Iterator<DirectoryMeta> = [][Symbol.iterator]()
  #nextMeta: DirectoryMeta | undefined
  #lastFileSize = 0
  #directories = 0
  #namesBytes = 0
  /** What the rows so far must have in the manifest: what they have beside their keys, and those. */
  #rowBytes = 0

  /** Both paths are created, and must not exist. The caller removes them after a failure; `scratchPath` always. */
  constructor(path: string, scratchPath: string) {
    this.#scratch = new ScratchFile(scratchPath)
    this.#fd = openSync(path, 'wx', 0o640)
    this.#body = new BlockWriter(this.#fd)
    this.#depth(0)
  }

  #depth(depth: number) {
    let streams = this.#depths[depth]
    if (streams === undefined) {
      streams = { nodes: new SpillStream(this.#scratch), names: new SpillStream(this.#scratch), count: 0 }
      this.#depths.push(streams)
    }
    return streams
  }

  /** Sorted by tree order, ending before the first `addFile`; of repeated keys the last one counts. */
  setDirectoryMetas(metas: Iterator<DirectoryMeta>): void {
    this.#directoryMetas = metas
    this.#nextMeta = this.#takeMeta()
  }

  #takeMeta(): DirectoryMeta | undefined {
    const next = this.#directoryMetas.next()
    return next.done ? undefined : next.value
  }

  #metaOf(directoryEnd: number): CheckedSpan | undefined {
    let found: CheckedSpan | undefined
    while (this.#nextMeta !== undefined) {
      const order = compareTreeOrder(this.#nextMeta.key, this.#path.subarray(0, directoryEnd))
      if (order > 0) break
      if (order === 0) found = this.#nextMeta.meta
      this.#nextMeta = this.#takeMeta()
    }
    return found
  }

  /** Would the file at [from, to) make more directories than the manifest's bytes allow? */
  hasTooManyDirectories(key: Buffer, from: number, to: number): boolean {
    const rowBytes = this.#rowBytes + ROW_BYTES_MIN + to - from
    if (this.#directories + COMPONENTS_MAX <= DIRECTORIES_FREE + rowBytes / DIRECTORY_BYTES) return false
    let added = 0
    for (let i = from + this.#sharedBytes(key, from, to); i < to; i++) if (key[i] === 0x2f) added++
    return this.#directories + added > DIRECTORIES_FREE + rowBytes / DIRECTORY_BYTES
  }

  /** Bytes that the key at [from, to) has in common with the open directories; their last slash may be among them. */
  #sharedBytes(key: Buffer, from: number, to: number): number {
    const end = this.#open.at(-1)?.end ?? -1
    let same = 0
    while (same <= end && same < to - from && this.#path[same] === key[from + same]) same++
    return same
  }

  /** Adds a file: sound, after all before it in tree order, and no duplicate. */
  addFile(file: ScannedFile): void {
    const { words, at, text, keyFrom, keyTo } = file
    const nameStart = this.#enterDirectoryOf(text, keyFrom, keyTo)
    const physicalBytes = words[at + NODE.keyBytes]!
    this.#body.append(text, keyTo, keyTo + physicalBytes)
    const node = this.#beginNode(this.#open.length + 1, text, nameStart, keyTo)
    const view = node.view
    for (let i = NODE.metaOffset; i < NODE_WORDS; i++) view[node.at + i] = words[at + i]!
    view[node.at + NODE.kinds]! |= words[at + NODE.kinds]!
    view[node.at + NODE.row] = file.row
    putU64(view, node.at + NODE.keyOffset, this.#keysBytes)
    this.#keysBytes += physicalBytes
    this.#rowBytes += ROW_BYTES_MIN + keyTo - keyFrom + physicalBytes
    this.#entries++
    this.#lastFileSize = getU64(words, at + NODE.size)
    this.#entryBytes += this.#lastFileSize
  }

  /** Takes back the file that was added last. */
  removeLastFile(): void {
    const depth = this.#depth(this.#open.length + 1)
    depth.nodes.dropLast(NODE_BYTES)
    depth.count--
    this.#nodes--
    this.#entries--
    this.#entryBytes -= this.#lastFileSize
  }

  /** Closes and opens directories for the key at [from, to); returns where its last component starts. */
  #enterDirectoryOf(key: Buffer, from: number, to: number): number {
    const path = this.#path
    const keyBytes = to - from
    const same = this.#sharedBytes(key, from, to)
    while (this.#open.length > 0 && this.#open.at(-1)!.end >= same) this.#closeDirectory()
    let nameStart = (this.#open.at(-1)?.end ?? -1) + 1
    for (let i = nameStart; i < keyBytes; i++) {
      path[i] = key[from + i]!
      if (path[i] !== 0x2f) continue
      const firstChild = this.#depth(this.#open.length + 2).count
      this.#directories++
      this.#open.push({ end: i, nameStart, firstChild, meta: this.#nextMeta && this.#metaOf(i) })
      nameStart = i + 1
    }
    return from + nameStart
  }

  #closeDirectory(): void {
    const directory = this.#open.pop()!
    const depth = this.#open.length + 1
    const { view, at } = this.#beginNode(depth, this.#path, directory.nameStart, directory.end)
    if (directory.meta !== undefined) {
      putU64(view, at + NODE.metaOffset, directory.meta.offset)
      view[at + NODE.metaBytes] = directory.meta.bytes
      view[at + NODE.metaCrc] = directory.meta.crc
    }
    this.#endDirectoryNode(view, at, directory.firstChild, this.#depth(depth + 1).count)
  }

  #endDirectoryNode(view: Uint32Array, at: number, firstChild: number, childrenEnd: number): void {
    view[at + NODE.kinds]! |= KIND_DIRECTORY
    view[at + NODE.firstChild] = firstChild
    view[at + NODE.childCount] = childrenEnd - firstChild
  }

  /** The fields that files and directories share. Its directory is written later, at the present count of the depth above. */
  #beginNode(depth: number, key: Buffer, nameStart: number, nameEnd: number) {
    if (this.#nodes >= NODES_MAX) throw new BobbinError('PACKAGE_REFUSED', 'the package has over 4 billion entries')
    const streams = this.#depth(depth)
    const at = streams.nodes.reserve(NODE_BYTES) / 4
    const view = streams.nodes.words
    view.fill(0, at, at + NODE_WORDS)
    view[at + NODE.parent] = depth === 0 ? 0 : this.#depth(depth - 1).count
    view[at + NODE.kinds] = (nameEnd - nameStart) << 16
    putU64(view, at + NODE.nameOffset, streams.names.bytes)
    streams.names.append(key, nameStart, nameEnd)
    this.#namesBytes += nameEnd - nameStart
    streams.count++
    this.#nodes++
    return { view, at }
  }

  /** What the index would take now, with its scratch file beside it. */
  get diskBytes(): number {
    const body = this.#body.bytes + this.#nodes * NODE_BYTES + this.#namesBytes
    return HEADER_BYTES + body + Math.ceil(body / BLOCK_BYTES) * 4 + this.#scratch.bytes
  }

  /** Writes what was collected. The index is complete, but not yet under its final name. */
  finish(totals: PackageTotals): void {
    while (this.#open.length > 0) this.#closeDirectory()
    const root = this.#beginNode(0, this.#path, 0, 0)
    this.#endDirectoryNode(root.view, root.at, 0, this.#depth(1).count)

    const sections: Record<SectionName, { offset: number; bytes: number }> = {
      keys: { offset: HEADER_BYTES, bytes: this.#keysBytes },
      nodes: this.#writeNodes(),
      names: this.#section(() => {
        for (const { names } of this.#depths) names.drain(piece => this.#body.append(piece))
      }),
      quarantined: this.#section(() => {
        for (const line of totals.quarantined) this.#body.append(Buffer.from(`${JSON.stringify(line)}\n`))
      }),
    }
    const body = this.#body.end()
    this.#writeHeader(totals, sections, body)
  }

  #section(write: () => void): { offset: number; bytes: number } {
    const before = this.#body.bytes
    write()
    return { offset: HEADER_BYTES + before, bytes: this.#body.bytes - before }
  }

  #writeNodes(): { offset: number; bytes: number } {
    return this.#section(() => {
      let base = 0
      let parentBase = 0
      let namesBase = 0
      for (const { nodes, names, count } of this.#depths) {
        const childrenBase = base + count
        nodes.drain(piece => {
          const view = new Uint32Array(piece.buffer, piece.byteOffset, piece.length / 4)
          for (let at = 0; at < view.length; at += NODE_WORDS) {
            view[at + NODE.parent]! += parentBase
            putU64(view, at + NODE.nameOffset, getU64(view, at + NODE.nameOffset) + namesBase)
            if ((view[at + NODE.kinds]! & 0xff) === KIND_DIRECTORY) view[at + NODE.firstChild]! += childrenBase
          }
          this.#body.append(piece)
        })
        parentBase = base
        base = childrenBase
        namesBase += names.bytes
      }
    })
  }

  #writeHeader(
    totals: PackageTotals,
    sections: Readonly<Record<SectionName, { offset: number; bytes: number }>>,
    body: { bytes: number; checksums: Buffer },
  ): void {
    const header = Buffer.alloc(HEADER_BYTES)
    const u64 = (value: number, at: number) => header.writeBigUInt64LE(BigInt(value), at)
    MAGIC.copy(header, HEADER.magic)
    header.writeUInt32LE(VERSION, HEADER.version)
    header.writeUInt32LE(BLOCK_BYTES, HEADER.blockBytes)
    u64(HEADER_BYTES + body.bytes + body.checksums.length, HEADER.fileBytes)
    u64(body.bytes, HEADER.bodyBytes)
    header.writeUInt32LE(this.#nodes, HEADER.nodeCount)
    header.writeUInt32LE(this.#entries, HEADER.entryCount)
    u64(this.#entryBytes, HEADER.entryBytes)
    u64(totals.manifestBytes, HEADER.manifestBytes)
    header.writeUInt32LE(totals.quarantined.length, HEADER.quarantinedCount)
    header.writeUInt32LE(crc32(body.checksums), HEADER.checksumsCrc)
    header.write(totals.topHash, HEADER.topHash, 'hex')
    header.write(totals.manifestSha256, HEADER.manifestSha256, 'hex')
    SECTIONS.forEach((name, i) => {
      u64(sections[name].offset, HEADER.sections + 16 * i)
      u64(sections[name].bytes, HEADER.sections + 16 * i + 8)
    })
    HEADER_SPANS.forEach((name, i) => {
      const span = totals.spans[name]
      if (span === undefined) return
      u64(span.offset, HEADER.spans + 16 * i)
      header.writeUInt32LE(span.bytes, HEADER.spans + 16 * i + 8)
      header.writeUInt32LE(span.crc, HEADER.spans + 16 * i + 12)
    })
    header.writeUInt32LE(crc32(header.subarray(0, HEADER.crc)), HEADER.crc)
    writeAll(this.#fd, header, 0)
  }

  close(): void {
    closeSync(this.#fd)
    this.#scratch.close()
  }
}

function putU64(view: Uint32Array, at: number, value: number): void {
  view[at] = value % 2 ** 32
  view[at + 1] = value / 2 ** 32
}

function getU64(view: Uint32Array, at: number): number {
  return view[at]! + view[at + 1]! * 2 ** 32
}
