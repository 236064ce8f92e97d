/**
 * Writes a manifest as quilt3 and quilt-rs read it, row by row, and works out its top hash on the way.
 *
 * Rows come in tree order, which the caller sees to and this checks: the top hash is over the rows in that order.
 * Metadata is JSON text all the way, so that its numbers stay what they are.
 */
import { createHash } from 'node:crypto'
import { canonicalJson, quote } from '../json/canonical-json.js'
import { withMembers } from '../json/json-members.js'
import { BobbinError, compareTreeOrder, type Entry, formatPhysicalKey, type TopHash } from '../model/index.js'
import { formatManifestHash } from '../model/object-hash.js'
import { BufferedFile } from './buffered-file.js'

/** What quilt3 and the services of a Quilt stack take as a row, in bytes. */
const ROW_BYTES_MAX = 1_000_000

export interface ManifestHeader {
  readonly message: string | null
  /** JSON text of an object, or `null`. Without it there is none, which is another top hash than `null`. */
  readonly userMeta?: string | undefined
  /** JSON text of an object. */
  readonly workflow?: string | undefined
  /** The header of the revision that this one is made from: members that are not named above come along, as with quilt3. */
  readonly base?: Buffer | undefined
}

export interface WrittenManifest {
  readonly topHash: TopHash
  readonly entries: number
  /** Of all entries together. */
  readonly bytes: number
}

export class ManifestWriter {
  readonly #file: BufferedFile
  readonly #topHash = createHash('sha256')
  #entries = 0
  #bytes = 0
  #lastKey: Buffer | undefined

  /** Makes the file, which must not exist yet; who made the writer closes it, and removes the file. */
  constructor(
    readonly path: string,
    header: ManifestHeader | Buffer,
  ) {
    const text = Buffer.isBuffer(header) ? header : headerText(header)
    requireShort(text.length, 'the header (message and metadata of the package)')
    this.#file = new BufferedFile(path, 'wx', 0o640)
    // quilt3 drops this member when it reads a header.
    this.#topHash.update(canonicalJson(text, 0, text.length, { without: 'top_hash' }))
    this.#write(text)
  }

  /** A file; `userMeta` is its metadata, canonical JSON text of an object. */
  addEntry({ key, size, hash, physicalKey }: Entry, userMeta?: string): void {
    const { type } = hash
    const value = formatManifestHash(hash)
    const meta = userMeta === undefined ? '{}' : `{"user_meta":${userMeta}}`
    // By hand: there are as many of these as files, and nothing in them but keys needs escapes.
    const row =
      `{"logical_key":${JSON.stringify(key)},"physical_keys":[${JSON.stringify(formatPhysicalKey(physicalKey))}],` +
      `"size":${size},"hash":{"type":"${type}","value":"${value}"},"meta":${meta}}`
    const canonical = `{"hash":{"type":"${type}","value":"${value}"},"logical_key":${quote(key)},"meta":${meta},"size":${size}}`
    this.addFileRow(Buffer.from(row), Buffer.from(key), canonical, size)
  }

  /** A row as another manifest has it, without its newline; `canonical` is what the top hash covers. Both are taken before this returns. */
  addFileRow(row: Buffer, key: Buffer, canonical: string | Uint8Array, size: number): void {
    if (this.#lastKey !== undefined && compareTreeOrder(this.#lastKey, key) >= 0) {
      throw new BobbinError('INTERNAL', `not in tree order: ${JSON.stringify(key.toString())}`)
    }
    this.#lastKey = key
    this.#topHash.update(canonical)
    this.#entries++
    this.#bytes += size
    requireShort(row.length, `the row of ${JSON.stringify(key.toString())}`)
    this.#write(row)
  }

  /** Metadata of a directory, which is not hashed; all of these come before the files. */
  addDirectory(key: string, metadata: string): void {
    const row = Buffer.from(`{"logical_key":${JSON.stringify(`${key}/`)},"meta":${metadata}}`)
    requireShort(row.length, `the metadata of ${JSON.stringify(key)}`)
    this.#write(row)
  }

  #write(row: Buffer): void {
    this.#file.write(row, NEWLINE)
  }

  /** May be called once, after the last row: the file is whole then. */
  finish(): WrittenManifest {
    this.#file.flush()
    return { topHash: this.#topHash.digest('hex') as TopHash, entries: this.#entries, bytes: this.#bytes }
  }

  close(): void {
    this.#file.close()
  }
}

const NEWLINE = Buffer.from('\n')

function headerText({ message, userMeta, workflow, base = NEW_HEADER }: ManifestHeader): Buffer {
  return withMembers(base, { user_meta: userMeta, workflow, message: JSON.stringify(message), top_hash: undefined })
}

const NEW_HEADER = Buffer.from('{"version":"v0"}')

function requireShort(bytes: number, what: string): void {
  if (bytes <= ROW_BYTES_MAX) return
  throw new BobbinError('TOO_LARGE', `${what} takes ${bytes} bytes in the manifest: Quilt's limit is ${ROW_BYTES_MAX}`)
}

/**
 * Metadata as somebody has typed it, as JSON text on one line that means the same to Python, big numbers included.
 * Throws INVALID_ARGUMENT for what is not a JSON object, and for what quilt3 cannot write: NaN, infinite numbers, and text
 * with half of a surrogate pair.
 */
export function parseUserMeta(text: string): string {
  try {
    const bytes = Buffer.from(text.trim())
    const canonical = canonicalJson(bytes, 0, bytes.length)
    const value: unknown = JSON.parse(canonical, refuseLoneSurrogate)
    if (typeof value === 'object' && value !== null && !Array.isArray(value)) return canonical
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error)
    throw new BobbinError('INVALID_ARGUMENT', `the metadata is not JSON: ${reason}`, { cause: error })
  }
  throw new BobbinError('INVALID_ARGUMENT', 'the metadata is not a JSON object')
}

function refuseLoneSurrogate(name: string, value: unknown): unknown {
  const lone = [name, value].find(text => typeof text === 'string' && !text.isWellFormed())
  if (lone === undefined) return value
  throw new Error(`${JSON.stringify(lone)} has half of a surrogate pair, which is not a character: leave it out`)
}
