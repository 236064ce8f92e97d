/**
 * How people name a package, a revision and a registry. No I/O; names that do not exist parse well.
 *
 *   s3://BUCKET/NS/NAME[@HASH|:TAG]          file:///DIR/NS/NAME[@HASH|:TAG]
 *   /DIR/NS/NAME[@HASH|:TAG], ./DIR/…        quilt+s3://BUCKET#package=NS/NAME[@HASH|:TAG][&path=PATH]
 *   NS/NAME[@HASH|:TAG] with a registry from elsewhere, and with the hash from elsewhere (--top-hash)
 *
 * Everything here throws INVALID_ARGUMENT.
 */
import { resolve } from 'node:path'
import {
  BobbinError,
  formatPhysicalKey,
  type PackageName,
  parsePackageName,
  parsePhysicalKey,
  type Registry,
} from '../model/index.js'

/** The ARN of an access point instead of a bucket's name, as boto3 takes it, of one region. */
const ACCESS_POINT =
  /^arn:aws[a-z-]*:(s3|s3-object-lambda|s3-outposts):[a-z0-9-]+:\d{12}:(outpost:[A-Za-z0-9-]{1,63}:)?accesspoint:[A-Za-z0-9.-]{1,63}$/

/** quilt3's rule: shorter prefixes are too easily those of another revision tomorrow. */
export const PREFIX_LENGTH_MIN = 6
const TOP_HASH_LENGTH = 64

export type RevisionReference =
  | { readonly kind: 'latest' }
  /** A top hash, or its first 6 to 63 characters. */
  | { readonly kind: 'hash'; readonly prefix: string }
  /** A pointer's name: the number of a revision, or a tag. */
  | { readonly kind: 'tag'; readonly tag: string }

export interface PackageReference {
  readonly registry: Registry
  readonly name: PackageName
  readonly revision: RevisionReference
  /** From a Quilt+ URI: what of the package is meant, a logical key or a folder's. */
  readonly path?: string
}

export interface ReferenceOptions {
  /** Said for this call (`--registry`); at odds with a registry in the text it is an error. */
  readonly registry?: string | undefined
  /** Said for this call (`--top-hash`); at odds with a revision in the text it is an error. */
  readonly topHash?: string | undefined
  /** Where names without a registry are looked up (`BOBBIN_REGISTRY`); a function is asked only when it is needed. */
  readonly defaultRegistry?: string | undefined | (() => string | undefined)
}

export function parseReference(text: string, options: ReferenceOptions = {}): PackageReference {
  const { registry: ownRegistry, spec, path } = splitReference(text)
  const { name, revision: ownRevision } = parseSpec(spec, text)
  return {
    registry: chooseRegistry(ownRegistry, text, options),
    name,
    revision: chooseRevision(ownRevision, text, options.topHash),
    ...(path === undefined ? {} : { path }),
  }
}

/** The spelling that `parseReference` reads, with the revision where it has one. */
export function formatReference(reference: Pick<PackageReference, 'registry' | 'name' | 'revision'>): string {
  const base = `${formatRegistry(reference.registry)}/${reference.name}`
  const { revision } = reference
  switch (revision.kind) {
    case 'latest':
      return base
    case 'hash':
      return `${base}@${revision.prefix}`
    case 'tag':
      return `${base}:${revision.tag}`
    default:
      return revision satisfies never
  }
}

export function parseRegistry(text: string): Registry {
  if (text.startsWith('quilt+')) {
    const hashAt = text.indexOf('#')
    return parseRegistry(text.slice('quilt+'.length, hashAt < 0 ? undefined : hashAt))
  }
  if (text.startsWith('s3://')) {
    const bucket = text.slice('s3://'.length).replace(/\/+$/, '')
    if (ACCESS_POINT.test(bucket)) return { kind: 's3', bucket }
    if (/^arn:.*:accesspoint(\/|$)/.test(bucket)) {
      throw invalid(
        `an access point's name follows a colon, as for quilt3: s3://arn:…:accesspoint:NAME, not ${quote(text)}`,
      )
    }
    if (bucket.includes('/')) {
      throw invalid(
        `a registry is a whole bucket, not a folder in one: ${quote(text)} (write s3://${bucket.split('/')[0]})`,
      )
    }
    if (!/^[A-Za-z0-9][A-Za-z0-9._-]*$/.test(bucket)) throw invalid(`not a bucket's name in ${quote(text)}`)
    return { kind: 's3', bucket }
  }
  if (text.startsWith('file:')) return fileRegistry(parseFilePath(text))
  if (isLocalPath(text)) return fileRegistry(text)
  if (text === '') throw invalid('the registry is empty; write it like s3://BUCKET or file:///FOLDER')
  throw invalid(`not a registry: ${quote(text)} (write it like s3://BUCKET, file:///FOLDER or ./FOLDER)`)
}

export function formatRegistry(registry: Registry): string {
  switch (registry.kind) {
    case 's3':
      return `s3://${registry.bucket}`
    case 'file':
      return formatPhysicalKey({ kind: 'file', path: registry.path })
    default:
      return registry satisfies never
  }
}

interface SplitReference {
  readonly registry: Registry | undefined
  /** `NS/NAME[@HASH|:TAG]` */
  readonly spec: string
  readonly path?: string
}

function splitReference(text: string): SplitReference {
  if (text.startsWith('quilt+')) return splitQuiltUri(text)
  if (text.startsWith('s3://')) {
    const afterScheme = text.slice('s3://'.length)
    const slashAt = afterScheme.indexOf('/')
    if (slashAt < 0) throw invalid(`no package in ${quote(text)}; write it like s3://BUCKET/NAMESPACE/NAME`)
    return {
      registry: parseRegistry(`s3://${afterScheme.slice(0, slashAt)}`),
      spec: decodePercent(afterScheme.slice(slashAt + 1), text),
    }
  }
  if (text.startsWith('file:')) return splitPath(parseFilePath(text), text)
  if (isLocalPath(text)) return splitPath(text, text)
  return { registry: undefined, spec: text }
}

/** The last two components are the package; what comes before them is the registry's folder. */
function splitPath(path: string, text: string): SplitReference {
  const match = /^(.*?)\/+([^/]+\/[^/]+)$/s.exec(path)
  if (!match) throw invalid(`no package in ${quote(text)}; write it like /FOLDER/NAMESPACE/NAME`)
  return { registry: fileRegistry(match[1] === '' ? '/' : match[1]!), spec: match[2]! }
}

function splitQuiltUri(text: string): SplitReference {
  const hashAt = text.indexOf('#')
  const form = 'quilt+s3://BUCKET#package=NAMESPACE/NAME'
  if (hashAt < 0) throw invalid(`no "#package=" in ${quote(text)}; a Quilt+ URI looks like ${form}`)
  const registry = parseRegistry(text.slice(0, hashAt))
  // As the catalog does, unknown fields (catalog, workflow, …) are left alone.
  const fields = new URLSearchParams(text.slice(hashAt + 1))
  for (const name of ['package', 'path']) {
    if (fields.getAll(name).length > 1) throw invalid(`several "${name}=" in ${quote(text)}`)
  }
  const spec = fields.get('package')
  if (!spec) throw invalid(`no "package=" in ${quote(text)}; a Quilt+ URI looks like ${form}`)
  const path = fields.get('path')
  return { registry, spec, ...(path ? { path } : {}) }
}

/** Names have neither `@` nor `:`, so the first one ends the name. */
function parseSpec(spec: string, text: string): { name: PackageName; revision: RevisionReference | undefined } {
  const markAt = spec.search(/[@:]/)
  const name = packageName(markAt < 0 ? spec : spec.slice(0, markAt), text)
  if (markAt < 0) return { name, revision: undefined }
  const value = spec.slice(markAt + 1)
  if (spec[markAt] === '@') return { name, revision: parseHash(value, text) }
  if (value === 'latest') return { name, revision: { kind: 'latest' } }
  // A pointer's name becomes a file's name or the end of an S3 key.
  if (value === '' || /[@:/\0]/.test(value) || value === '.' || value === '..') {
    throw invalid(`not a tag: ${quote(value)} in ${quote(text)} (write :latest or the number of a revision)`)
  }
  return { name, revision: { kind: 'tag', tag: value } }
}

function packageName(name: string, text: string): PackageName {
  const parts = name.split('/')
  if (parts.length > 2 && parts.every(part => part !== '')) {
    throw invalid(`a package's name has two parts, NAMESPACE/NAME: ${quote(text)}`)
  }
  try {
    return parsePackageName(name)
  } catch {
    throw invalid(`not a package name: ${quote(name)} in ${quote(text)} (NAMESPACE/NAME, of letters, digits, _ and -)`)
  }
}

function parseHash(hash: string, text: string): RevisionReference {
  if (!/^[0-9a-f]*$/.test(hash)) {
    const help = /^[0-9a-fA-F]+$/.test(hash) ? `: they are lower-case, try ${hash.toLowerCase()}` : ''
    throw invalid(`not a top hash or the start of one: ${quote(hash)} in ${quote(text)}${help}`)
  }
  if (hash.length < PREFIX_LENGTH_MIN) {
    throw invalid(
      `the hash ${quote(hash)} in ${quote(text)} is too short: give at least ${PREFIX_LENGTH_MIN} characters`,
    )
  }
  if (hash.length > TOP_HASH_LENGTH) {
    throw invalid(`the hash in ${quote(text)} is too long: ${hash.length} characters, not ${TOP_HASH_LENGTH}`)
  }
  return { kind: 'hash', prefix: hash }
}

function chooseRegistry(own: Registry | undefined, text: string, options: ReferenceOptions): Registry {
  if (own === undefined) {
    const { registry: said, defaultRegistry } = options
    const registry = said ?? (typeof defaultRegistry === 'function' ? defaultRegistry() : defaultRegistry)
    if (!registry) {
      throw invalid(
        `no registry for ${quote(text)}: give --registry s3://BUCKET, set BOBBIN_REGISTRY, or write s3://BUCKET/${text}`,
      )
    }
    return parseRegistry(registry)
  }
  if (options.registry !== undefined) {
    const said = formatRegistry(parseRegistry(options.registry))
    if (said !== formatRegistry(own)) {
      throw invalid(`two registries: ${formatRegistry(own)} in ${quote(text)} and --registry ${said}; leave one out`)
    }
  }
  return own
}

function chooseRevision(
  own: RevisionReference | undefined,
  text: string,
  topHash: string | undefined,
): RevisionReference {
  if (topHash === undefined) return own ?? { kind: 'latest' }
  const said = parseHash(topHash, `--top-hash ${topHash}`)
  const isSame = own?.kind === 'hash' && said.kind === 'hash' && own.prefix === said.prefix
  if (own !== undefined && !isSame) {
    throw invalid(`two revisions: one in ${quote(text)} and --top-hash ${topHash}; leave one out`)
  }
  return said
}

function isLocalPath(text: string): boolean {
  return text.startsWith('/') || /^\.\.?(\/|$)/.test(text)
}

function parseFilePath(text: string): string {
  const key = parsePhysicalKey(text)
  if (key.kind !== 'file') throw invalid(`not a file:// address: ${quote(text)}`)
  return key.path
}

function fileRegistry(path: string): Registry {
  return { kind: 'file', path: resolve(path) }
}

function decodePercent(encoded: string, text: string): string {
  try {
    return decodeURIComponent(encoded)
  } catch {
    throw invalid(`a % that encodes nothing in ${quote(text)}`)
  }
}

function quote(text: string): string {
  return JSON.stringify(text)
}

function invalid(message: string): BobbinError {
  return new BobbinError('INVALID_ARGUMENT', message)
}
