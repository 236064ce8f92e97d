/**
 * The metadata that a push gives to entries, from files and from the command line, joined with the entries by their keys.
 *
 * A key without an entry is an error that names it, unless the caller wants such keys left out. Which entry an image of
 * a COCO file is can be told only when all keys were seen, so there is a pass over the keys before the first join.
 */
import { mkdir } from 'node:fs/promises'
import { join } from 'node:path'
import { BobbinError, localError } from '../../model/index.js'
import { CocoFile } from './coco.js'
import { metaFormat, readMetaLines, readMetaTable } from './meta-files.js'
import { type MetaJoin, MetaTable } from './meta-table.js'

export interface EntryMetaOptions {
  readonly files: readonly string[]
  /** Canonical JSON text by key, as somebody has typed it. */
  readonly given?: ReadonlyMap<string, string> | undefined
  /** Keys and file names in the files are below this folder of the package. */
  readonly under?: string | undefined
  /** Leave out what has no entry. */
  readonly allowsUnmatched?: boolean | undefined
}

/** So many keys without an entry are named. */
const UNMATCHED_SHOWN_MAX = 10

export class EntryMetas {
  readonly #coco: CocoFile[] = []
  #isSorted = false

  private constructor(
    private readonly table: MetaTable,
    private readonly under: string,
    private readonly allowsUnmatched: boolean,
  ) {}

  /** Throws INVALID_ARGUMENT for a file that cannot be read as its ending says. Whoever opened it closes it. */
  static async open(options: EntryMetaOptions, cacheDir: string, signal?: AbortSignal): Promise<EntryMetas> {
    const folder = join(cacheDir, 'tmp')
    await mkdir(folder, { recursive: true, mode: 0o750 }).catch(error =>
      Promise.reject(localError(`make the folder ${folder}`, error)),
    )
    const under = (options.under ?? '').replace(/^\/+|\/+$/g, '')
    const metas = new EntryMetas(new MetaTable(folder), under, options.allowsUnmatched ?? false)
    try {
      for (const path of options.files) await metas.#read(path, signal)
      for (const [key, text] of options.given ?? []) metas.table.add(key, text)
    } catch (error) {
      metas.close()
      throw error
    }
    return metas
  }

  async #read(path: string, signal: AbortSignal | undefined): Promise<void> {
    const format = await metaFormat(path)
    const prefix = this.under === '' ? '' : `${this.under}/`
    switch (format) {
      case 'coco':
        this.#coco.push(await CocoFile.open(path))
        return
      case 'lines':
        for await (const { key, text } of readMetaLines(path, signal)) this.table.add(prefix + key, text)
        return
      case 'csv':
      case 'tsv': {
        const delimiter = format === 'csv' ? ',' : '\t'
        for await (const { key, text } of readMetaTable(path, delimiter, signal)) this.table.add(prefix + key, text)
        return
      }
      default:
        return format satisfies never
    }
  }

  /** Looks at all keys, in tree order. Throws INVALID_ARGUMENT: keys that have no entry, or metadata twice. */
  async match(keys: () => AsyncIterable<string>): Promise<void> {
    if (this.#isSorted) return
    if (this.#coco.length > 0) {
      for await (const key of keys()) this.#matchImage(key)
    }
    this.table.sort()
    this.#isSorted = true
    const unmatched = new Unmatched()
    for (const file of this.#coco) for (const name of file.unmatched()) unmatched.add(name)
    const joined = this.table.join(key => unmatched.add(key))
    for await (const key of keys()) joined.take(key)
    joined.end()
    if (!this.allowsUnmatched) unmatched.refuse()
  }

  #matchImage(key: string): void {
    for (const file of this.#coco) {
      const text = file.metaOf(key, this.under)
      if (text !== undefined) this.table.add(key, text)
    }
  }

  /** For one pass over the entries, after `match`. */
  join(): MetaJoin {
    return this.table.join()
  }

  close(): void {
    this.table.close()
  }
}

class Unmatched {
  readonly #shown: string[] = []
  #count = 0

  add(key: string): void {
    if (this.#count++ < UNMATCHED_SHOWN_MAX) this.#shown.push(JSON.stringify(key))
  }

  refuse(): void {
    if (this.#count === 0) return
    const more = this.#count - this.#shown.length
    const names = `${this.#shown.join(', ')}${more > 0 ? ` and ${more} more` : ''}`
    throw new BobbinError(
      'INVALID_ARGUMENT',
      `metadata for keys that are not in the package: ${names} (--allow-unmatched leaves them out)`,
    )
  }
}
