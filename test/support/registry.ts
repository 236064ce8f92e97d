/**
 * Writes a registry in a folder, by the plainest means and without a line of the code under test:
 * its hashes and its top hash are the independent check of ours.
 *
 *   <dir>/.quilt/packages/<top hash>, .quilt/named_packages/<name>/{<seconds>,latest}, <name>/<key>
 *
 * Right for metadata whose numbers are integers, or print alike in Python and JavaScript.
 */
import { createHash } from 'node:crypto'
import { mkdir, writeFile } from 'node:fs/promises'
import { dirname, join } from 'node:path'

export type HashTypeName = 'SHA256' | 'sha2-256-chunked'

export interface FileContent {
  readonly bytes: Uint8Array | string
  /** The user's metadata. */
  readonly meta?: unknown
  readonly hashType?: HashTypeName
  /** Where the manifest says the bytes are. Default: the file that is written. */
  readonly physicalKey?: string
}

export interface RegistryOptions {
  readonly message?: string | null
  readonly userMeta?: unknown
  /** Unix time of the revision, seconds. */
  readonly timestamp?: number
  /** Metadata of directories, by their keys without the final slash. */
  readonly directoryMeta?: Readonly<Record<string, unknown>>
}

export interface WrittenPackage {
  readonly name: string
  readonly topHash: string
  /** `file:///…/<ns>/<name>@<top hash>`, as the command line takes it. */
  readonly reference: string
  readonly registry: string
  readonly manifestPath: string
  /** Where the bytes of each key lie. */
  readonly paths: ReadonlyMap<string, string>
  readonly timestampMs: number
  /** As they stand in the manifest. */
  readonly rows: readonly WrittenRow[]
}

export interface WrittenRow {
  readonly logical_key: string
  readonly physical_keys: readonly string[]
  readonly size: number
  readonly hash: { readonly type: HashTypeName; readonly value: string }
  readonly meta: object
}

export const TIMESTAMP_DEFAULT = 1_700_000_000

/** `dir` is absolute and may hold other packages and revisions; unchanged files of one name are written again. */
export async function writeRegistry(
  dir: string,
  name: string,
  files: Readonly<Record<string, FileContent | Uint8Array | string>>,
  options: RegistryOptions = {},
): Promise<WrittenPackage> {
  const header: Record<string, unknown> = { version: 'v0' }
  if (options.userMeta !== undefined) header.user_meta = options.userMeta
  header.message = options.message ?? null
  const rows: WrittenRow[] = []
  const paths = new Map<string, string>()
  for (const [key, file] of Object.entries(files).sort(([a], [b]) => compareKeys(a, b))) {
    const content: FileContent = isContent(file) ? file : { bytes: file }
    const { meta, hashType = 'sha2-256-chunked' } = content
    const bytes = Buffer.from(content.bytes as Uint8Array)
    const path = join(dir, name, key)
    await mkdir(dirname(path), { recursive: true })
    await writeFile(path, bytes)
    paths.set(key, path)
    rows.push({
      logical_key: key,
      physical_keys: [content.physicalKey ?? fileUrl(path)],
      size: bytes.length,
      hash: { type: hashType, value: hashOf(hashType, bytes) },
      meta: meta === undefined ? {} : { user_meta: meta },
    })
  }
  const directoryRows = Object.entries(options.directoryMeta ?? {})
    .sort(([a], [b]) => compareKeys(a, b))
    .map(([key, meta]) => ({ logical_key: `${key}/`, meta }))
  const topHash = topHashOf(header, rows)
  const manifestPath = join(dir, '.quilt', 'packages', topHash)
  await mkdir(dirname(manifestPath), { recursive: true })
  await writeFile(manifestPath, [header, ...directoryRows, ...rows].map(row => `${JSON.stringify(row)}\n`).join(''))
  const timestamp = options.timestamp ?? TIMESTAMP_DEFAULT
  const pointers = join(dir, '.quilt', 'named_packages', name)
  await mkdir(pointers, { recursive: true })
  await writeFile(join(pointers, String(timestamp)), topHash)
  await writeFile(join(pointers, 'latest'), topHash)
  return {
    name,
    topHash,
    reference: `${fileUrl(dir)}/${name}@${topHash}`,
    registry: fileUrl(dir),
    manifestPath,
    paths,
    timestampMs: timestamp * 1000,
    rows,
  }
}

function isContent(file: FileContent | Uint8Array | string): file is FileContent {
  return typeof file === 'object' && 'bytes' in file && !(file instanceof Uint8Array)
}

function hashOf(type: HashTypeName, bytes: Uint8Array): string {
  if (type === 'SHA256') return sha256(bytes).toString('hex')
  // No object of a test is large enough for the chunks to grow.
  const chunkBytes = 8 * 2 ** 20
  const digests = []
  for (let at = 0; at < bytes.length; at += chunkBytes) digests.push(sha256(bytes.subarray(at, at + chunkBytes)))
  return sha256(Buffer.concat(digests)).toString('base64')
}

function sha256(bytes: Uint8Array): Buffer {
  return createHash('sha256').update(bytes).digest()
}

function topHashOf(header: object, rows: readonly WrittenRow[]): string {
  const entries = rows.map(({ hash, logical_key, meta, size }) => canonical({ hash, logical_key, meta, size }))
  return sha256(Buffer.from(canonical(header) + entries.join(''))).toString('hex')
}

/** Python's `json.dumps(value, sort_keys=True, separators=(',', ':'))`. */
function canonical(value: unknown): string {
  if (Array.isArray(value)) return `[${value.map(canonical).join(',')}]`
  if (typeof value === 'object' && value !== null) {
    const members = Object.entries(value).sort(([a], [b]) => Buffer.compare(Buffer.from(a), Buffer.from(b)))
    return `{${members.map(([key, member]) => `${canonical(key)}:${canonical(member)}`).join(',')}}`
  }
  return JSON.stringify(value).replace(/[^\x20-\x7e]/g, c => `\\u${c.charCodeAt(0).toString(16).padStart(4, '0')}`)
}

function compareKeys(a: string, b: string): number {
  const [left, right] = [a.split('/'), b.split('/')]
  for (let i = 0; i < Math.min(left.length, right.length); i++) {
    const order = Buffer.compare(Buffer.from(left[i]!), Buffer.from(right[i]!))
    if (order !== 0) return order
  }
  return left.length - right.length
}

function fileUrl(path: string): string {
  const encoded = [...Buffer.from(path)].map(byte => {
    const c = String.fromCharCode(byte)
    return /[A-Za-z0-9_.~/-]/.test(c) ? c : `%${byte.toString(16).toUpperCase().padStart(2, '0')}`
  })
  return `file://${encoded.join('')}`
}
