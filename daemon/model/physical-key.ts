/**
 * Where an entry's bytes are: an S3 object, perhaps of one version, or a local file.
 *
 * The spelling rules are quilt3's (`PhysicalKey` in its util module); vectors: `physical_key_*`.
 */
import { BobbinError } from './errors.js'

export interface S3Key {
  readonly kind: 's3'
  readonly bucket: string
  /** The object's key, decoded. */
  readonly key: string
  /** `undefined`: whatever is current. `'null'` is an address of its own: the version written before versioning. */
  readonly versionId?: string
}

export interface FileKey {
  readonly kind: 'file'
  /** Absolute path. */
  readonly path: string
}

export type PhysicalKey = S3Key | FileKey

/** Throws INVALID_ARGUMENT. */
export function parsePhysicalKey(text: string): PhysicalKey {
  if (text.startsWith('s3://')) return parseS3Key(text)
  if (text.startsWith('file://')) return parseFileKey(text)
  throw new BobbinError('INVALID_ARGUMENT', `not an s3:// or file:// address: ${JSON.stringify(text)}`)
}

function parseS3Key(text: string): S3Key {
  const afterScheme = text.slice('s3://'.length).replace(/#.*$/s, '')
  const queryAt = afterScheme.indexOf('?')
  const location = queryAt < 0 ? afterScheme : afterScheme.slice(0, queryAt)
  const query = queryAt < 0 ? '' : afterScheme.slice(queryAt + 1)
  const slashAt = location.indexOf('/')
  const bucket = slashAt < 0 ? location : location.slice(0, slashAt)
  if (bucket === '') throw new BobbinError('INVALID_ARGUMENT', `no bucket in ${JSON.stringify(text)}`)
  const key = slashAt < 0 ? '' : decodePercent(location.slice(slashAt + 1))
  let versionId: string | undefined
  for (const pair of query === '' ? [] : query.split('&')) {
    if (pair === '') continue
    const equalsAt = pair.indexOf('=')
    const name = decodeForm(equalsAt < 0 ? pair : pair.slice(0, equalsAt))
    if (name !== 'versionId') {
      // Python's parse_qs drops fields with an empty value before anyone looks at their names.
      if (equalsAt < 0 || equalsAt === pair.length - 1) continue
      throw new BobbinError(
        'INVALID_ARGUMENT',
        `unknown query field ${JSON.stringify(name)} in ${JSON.stringify(text)}`,
      )
    }
    const value = equalsAt < 0 ? '' : decodeForm(pair.slice(equalsAt + 1))
    if (value !== '' && versionId === undefined) versionId = value
  }
  if (key === '' && versionId !== undefined) {
    throw new BobbinError('INVALID_ARGUMENT', `a version without a key: ${JSON.stringify(text)}`)
  }
  return versionId === undefined ? { kind: 's3', bucket, key } : { kind: 's3', bucket, key, versionId }
}

function parseFileKey(text: string): FileKey {
  const rest = text.slice('file://'.length)
  const slashAt = rest.indexOf('/')
  const host = slashAt < 0 ? rest : rest.slice(0, slashAt)
  if (slashAt < 0 || (host !== '' && host !== 'localhost')) {
    throw new BobbinError('INVALID_ARGUMENT', `not an absolute local file:// address: ${JSON.stringify(text)}`)
  }
  const encoded = rest.slice(slashAt)
  if (/[?#]/.test(encoded)) {
    throw new BobbinError('INVALID_ARGUMENT', `a file:// address has no query or fragment: ${JSON.stringify(text)}`)
  }
  return { kind: 'file', path: decodePercent(encoded) }
}

/** The `s3://` or `file://` spelling, percent-encoded as quilt3 writes it. */
export function formatPhysicalKey(key: PhysicalKey): string {
  switch (key.kind) {
    case 's3': {
      const base = `s3://${key.bucket}/${encodePath(key.key)}`
      return key.versionId === undefined ? base : `${base}?versionId=${encodeForm(key.versionId)}`
    }
    case 'file':
      return `file://${encodePath(key.path)}`
    default:
      return key satisfies never
  }
}

/** Percent-encodes all but `A-Za-z0-9_.-~/`, as Python's `quote` does. */
function encodePath(text: string): string {
  return text.split('/').map(encodeUnreserved).join('/')
}

function encodeForm(text: string): string {
  return encodeUnreserved(text).replace(/%20/g, '+')
}

function encodeUnreserved(text: string): string {
  return encodeURIComponent(text).replace(/[!'()*]/g, c => `%${c.charCodeAt(0).toString(16).toUpperCase()}`)
}

function decodeForm(text: string): string {
  return decodePercent(text.replace(/\+/g, ' '))
}

/** Decodes `%XX` where it is one; a stray `%` stays, as with Python's `unquote`. */
function decodePercent(text: string): string {
  if (!text.includes('%')) return text
  try {
    return decodeURIComponent(text)
  } catch {
    return text.replace(/(?:%[0-9a-fA-F]{2})+/g, run => Buffer.from(run.replaceAll('%', ''), 'hex').toString('utf8'))
  }
}
