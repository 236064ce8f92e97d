/**
 * Metadata of entries by their keys, any number of them in bounded memory: texts go to a scratch file as they come, are
 * sorted by tree order, and are joined with entries that come in that order, as often as one likes.
 *
 * Who made a table closes it; its files lie in the cache's folder for what is under way.
 */
import { randomBytes } from 'node:crypto'
import { readSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { KeySorter } from '../../index/key-sorter.js'
import { BufferedFile, WRITE_BYTES } from '../../manifest/buffered-file.js'
import { BobbinError, compareTreeOrder } from '../../model/index.js'

export class MetaTable {
  readonly #unsorted: ScratchFile
  readonly #sorter: KeySorter
  readonly #paths: readonly string[]
  #sorted: ScratchFile | undefined
  #rows = 0

  /** `folder` exists. */
  constructor(folder: string) {
    const name = `${process.pid}-${randomBytes(6).toString('hex')}`
    this.#paths = ['texts', 'keys', 'sorted'].map(part => join(folder, `${name}.${part}`))
    this.#unsorted = new ScratchFile(this.#paths[0]!)
    this.#sorter = new KeySorter(this.#paths[1]!)
  }

  get size(): number {
    return this.#rows
  }

  /** `text`: canonical JSON text of an object. */
  add(key: string, text: string): void {
    const keyBytes = Buffer.from(key)
    const bytes = Buffer.from(text)
    this.#sorter.add(keyBytes, keyBytes.length, this.#rows++, this.#unsorted.length, bytes.length)
    this.#unsorted.write(bytes)
  }

  /** After the last `add`. Throws INVALID_ARGUMENT for a key that was added twice. */
  sort(): void {
    const sorted = new ScratchFile(this.#paths[2]!)
    this.#sorted = sorted
    this.#unsorted.flush()
    let last: Buffer | undefined
    for (const { key, offset, bytes } of this.#sorter.sorted()) {
      if (last?.equals(key)) {
        throw new BobbinError(
          'INVALID_ARGUMENT',
          `${JSON.stringify(key.toString())} has metadata twice: keep one of them`,
        )
      }
      last = Buffer.from(key)
      const lengths = Buffer.alloc(8)
      lengths.writeUInt32LE(key.length, 0)
      lengths.writeUInt32LE(bytes, 4)
      sorted.write(Buffer.concat([lengths, key, this.#unsorted.read(offset, bytes)]))
    }
    sorted.flush()
  }

  /** For one pass over the entries. */
  join(onUnmatched?: (key: string) => void): MetaJoin {
    if (this.#sorted === undefined) throw new BobbinError('INTERNAL', 'the table of metadata is not sorted yet')
    return new MetaJoin(this.#sorted, onUnmatched)
  }

  close(): void {
    this.#unsorted.close()
    this.#sorter.close()
    this.#sorted?.close()
    for (const path of this.#paths) rmSync(path, { force: true })
  }
}

/** Asked for keys in tree order. */
export class MetaJoin {
  #at = 0
  #head: { readonly key: Buffer; readonly text: Buffer } | undefined

  constructor(
    private readonly file: ScratchFile,
    private readonly onUnmatched: ((key: string) => void) | undefined,
  ) {
    this.#next()
  }

  take(key: string): string | undefined {
    const wanted = Buffer.from(key)
    while (this.#head !== undefined) {
      const order = compareTreeOrder(this.#head.key, wanted)
      if (order > 0) return undefined
      const { text } = this.#head
      if (order < 0) this.onUnmatched?.(this.#head.key.toString())
      this.#next()
      if (order === 0) return text.toString()
    }
    return undefined
  }

  /** What is left has no entry. */
  end(): void {
    for (; this.#head !== undefined; this.#next()) this.onUnmatched?.(this.#head.key.toString())
  }

  #next(): void {
    this.#head = undefined
    if (this.#at >= this.file.length) return
    const lengths = this.file.read(this.#at, 8)
    const [keyBytes, textBytes] = [lengths.readUInt32LE(0), lengths.readUInt32LE(4)]
    const both = this.file.read(this.#at + 8, keyBytes + textBytes)
    this.#at += 8 + both.length
    this.#head = { key: both.subarray(0, keyBytes), text: both.subarray(keyBytes) }
  }
}

/** Written to its end, then read anywhere; who reads on where the last reading ended gets a block ahead. */
class ScratchFile extends BufferedFile {
  #block = Buffer.alloc(0)
  #blockAt = 0
  #readTo = 0

  constructor(path: string) {
    super(path, 'wx+', 0o600)
  }

  read(at: number, length: number): Buffer {
    const from = at - this.#blockAt
    const isSequential = at === this.#readTo
    this.#readTo = at + length
    if (from >= 0 && from + length <= this.#block.length) return this.#block.subarray(from, from + length)
    const block = Buffer.allocUnsafe(Math.min(this.length - at, Math.max(length, isSequential ? WRITE_BYTES : 0)))
    for (let done = 0; done < block.length; ) {
      const read = readSync(this.fd, block, done, block.length - done, at + done)
      if (read === 0) throw new BobbinError('LOCAL_IO', `the scratch file ${this.path} was cut short`)
      done += read
    }
    this.#block = block
    this.#blockAt = at
    return block.subarray(0, length)
  }
}
