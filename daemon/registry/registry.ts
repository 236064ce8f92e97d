/**
 * Finds packages and revisions in a registry (layout version 1; `format.md` section 1).
 *
 *   .quilt/packages/<top hash>                 a manifest; one flat folder for all packages
 *   .quilt/named_packages/<ns>/<name>/<tag>    a pointer: the top hash as text. Digits are the unix
 *                                              time (s) of a revision, `latest` is the newest one
 *
 * Nothing is trusted but the shape: a manifest proves itself by its hash, a pointer by nothing. Three
 * plain writes publish a revision, so any of the three may be missing.
 */
import {
  BobbinError,
  hasCode,
  isPackageName,
  isTopHash,
  type LogicalKey,
  type ObjectPlace,
  type PackageName,
  type PhysicalKey,
  type Registry,
  type Source,
  type TopHash,
} from '../model/index.js'
import { readAhead } from './read-ahead.js'
import { formatRegistry, type PackageReference } from './reference.js'
import { similarNames } from './similar-names.js'

/** Pointers are read this many at a time: they are 64 bytes each, and the round trip is all they cost. */
const POINTERS_AT_ONCE = 16
/** A pointer is 64 bytes; more than this is something else. */
const POINTER_BYTES_MAX = 1024
/** `findTimestampMs` gives up after this many revisions: the time is for show. */
const TIMESTAMP_POINTERS_MAX = 256
/** A package with more pointers is refused: a revision each minute makes as many in two years, and a list has no other end. */
const POINTERS_MAX = 1_000_000
/** An ambiguous prefix lists this many. */
const CANDIDATES_MAX = 10
/** So many names are looked at to guess what a wrong one meant: one page of S3. */
const GUESSED_FROM_MAX = 1000

export interface Revision {
  /** The pointer's name: unix seconds, or a tag. */
  readonly pointer: string
  readonly topHash: TopHash
  /** When it was published, by the writer's clock; a tag does not say. Unix milliseconds. */
  readonly timestampMs: number | undefined
}

export interface RegistryOptions {
  readonly signal?: AbortSignal | undefined
  /** Only tests set it. */
  readonly pointersMax?: number
}

export function manifestKey(registry: Registry, topHash: TopHash): PhysicalKey {
  return keyIn(registry, `.quilt/packages/${topHash}`)
}

/** `pointer`: unix seconds, or a tag. */
export function pointerKey(registry: Registry, name: PackageName, pointer: string): PhysicalKey {
  return keyIn(registry, `${packageFolder(name)}${pointer}`)
}

export function workflowConfigKey(registry: Registry): PhysicalKey {
  return keyIn(registry, '.quilt/workflows/config.yml')
}

/** Where the objects of a new revision go: where quilt3 puts them, or else below a name that is their hash. */
export function objectPlace(registry: Registry, name: PackageName, key: LogicalKey): ObjectPlace {
  return {
    preferred: keyIn(registry, `${name}/${key}`),
    byHash: hex => keyIn(registry, `.quilt/objects/${hex}`),
  }
}

/** What the pointer `latest` says now, be it a top hash or not; `undefined` without one. */
export async function readLatest(
  source: Source,
  registry: Registry,
  name: PackageName,
  options: RegistryOptions = {},
): Promise<string | undefined> {
  try {
    return await readPointer(source, registry, name, 'latest', options)
  } catch (error) {
    if (hasCode(error, 'OBJECT_GONE')) return undefined
    throw error
  }
}

/**
 * The top hash that a reference means now. A full hash is taken as it is, without a request.
 *
 * Throws REGISTRY_NOT_FOUND, PACKAGE_NOT_FOUND, REVISION_NOT_FOUND, and REVISION_AMBIGUOUS with the
 * candidates: prefixes are of the whole registry, so they may be another package's.
 */
export async function resolveRevision(
  source: Source,
  reference: PackageReference,
  options: RegistryOptions = {},
): Promise<TopHash> {
  const { registry, name, revision } = reference
  switch (revision.kind) {
    case 'latest':
      return await resolvePointer(source, registry, name, 'latest', options)
    case 'tag':
      return await resolvePointer(source, registry, name, revision.tag, options)
    case 'hash':
      return await resolvePrefix(source, registry, revision.prefix, options)
    default:
      return revision satisfies never
  }
}

/** Names in byte order of namespaces, then of names; lazily, one request a namespace (and page). */
export async function* listPackages(
  source: Source,
  registry: Registry,
  options: RegistryOptions = {},
): AsyncGenerator<PackageName> {
  let isEmpty = true
  for await (const namespace of source.list(keyIn(registry, '.quilt/named_packages/'), listOptions(options))) {
    if (!namespace.isFolder) continue
    for await (const { name, isFolder } of source.list(namespaceKey(registry, namespace.name), listOptions(options))) {
      const full = `${namespace.name}/${name}`
      if (!isFolder || !isPackageName(full)) continue
      isEmpty = false
      yield full
    }
  }
  if (!isEmpty) return
  await requireRegistry(source, registry, options)
  if (await hasEntries(source, keyIn(registry, '.quilt/v2/tags/'), options)) throw layout2(formatRegistry(registry))
}

/**
 * The pointers of a package: revisions, newest first, then tags in byte order. The names are read at
 * once (S3 lists the oldest first), the bodies as they are asked for. A pointer that is not a top
 * hash names no revision and is left out; `resolveRevision` says what is wrong with it.
 *
 * Throws REGISTRY_NOT_FOUND, PACKAGE_NOT_FOUND, PACKAGE_REFUSED (more pointers than a package can have).
 */
export async function* listRevisions(
  source: Source,
  registry: Registry,
  name: PackageName,
  options: RegistryOptions = {},
): AsyncGenerator<Revision> {
  const { revisions, tags } = await listPointers(source, registry, name, options)
  if (revisions.length + tags.length === 0) throw await packageNotFound(source, registry, name, options)
  yield* readPointers(source, registry, name, [...revisions, ...tags], options)
}

/**
 * When a revision was published, by the newest pointer that names it among the newest 256. Unix milliseconds; `undefined`:
 * not known, also where the registry lets us read and not list, or cannot list: nobody's reading depends on a date.
 */
export async function findTimestampMs(
  source: Source,
  registry: Registry,
  name: PackageName,
  topHash: TopHash,
  options: RegistryOptions = {},
): Promise<number | undefined> {
  const pointers = await listPointers(source, registry, name, options).catch((error: unknown) => {
    if (!hasCode(error, 'PACKAGE_REFUSED') && !isUnlisted(error)) throw error
  })
  if (pointers === undefined) return undefined
  const { revisions } = pointers
  const newest = revisions.slice(0, TIMESTAMP_POINTERS_MAX)
  for await (const revision of readPointers(source, registry, name, newest, options)) {
    if (revision.topHash === topHash) return revision.timestampMs
  }
  return undefined
}

async function resolvePointer(
  source: Source,
  registry: Registry,
  name: PackageName,
  pointer: string,
  options: RegistryOptions,
): Promise<TopHash> {
  let text: string
  try {
    text = await readPointer(source, registry, name, pointer, options)
  } catch (error) {
    if (!hasCode(error, 'OBJECT_GONE')) throw error
    throw await pointerNotFound(source, registry, name, pointer, options).catch((why: unknown) =>
      isUnlisted(why) ? notFoundUnlisted(registry, name, pointer, why) : Promise.reject(why),
    )
  }
  if (isTopHash(text)) return text
  const found = text === '' ? 'is empty' : `holds ${JSON.stringify(text.slice(0, 80))}`
  throw new BobbinError(
    'REVISION_NOT_FOUND',
    `the pointer ${JSON.stringify(pointer)} of ${name} in ${formatRegistry(registry)} ${found}, not a top hash; ` +
      `name the revision by its top hash or its number (bobbin log ${formatRegistry(registry)}/${name})`,
  )
}

async function resolvePrefix(
  source: Source,
  registry: Registry,
  prefix: string,
  options: RegistryOptions,
): Promise<TopHash> {
  if (isTopHash(prefix)) return prefix
  const candidates: TopHash[] = []
  const listing = { ...listOptions(options), namePrefix: prefix }
  for await (const { name, isFolder } of source.list(keyIn(registry, '.quilt/packages/'), listing)) {
    // Old clients left Parquet manifests here, under other names.
    if (!isFolder && isTopHash(name)) candidates.push(name)
    if (candidates.length > CANDIDATES_MAX) break
  }
  const [only] = candidates
  if (only !== undefined && candidates.length === 1) return only
  if (only === undefined) {
    await requireRegistry(source, registry, options)
    throw new BobbinError('REVISION_NOT_FOUND', `no revision in ${formatRegistry(registry)} begins with ${prefix}`)
  }
  const isCut = candidates.length > CANDIDATES_MAX
  throw new BobbinError(
    'REVISION_AMBIGUOUS',
    `several revisions in ${formatRegistry(registry)} begin with ${prefix}, give more of the hash: ` +
      `${candidates.slice(0, CANDIDATES_MAX).join(', ')}${isCut ? ' and more' : ''}`,
  )
}

async function* readPointers(
  source: Source,
  registry: Registry,
  name: PackageName,
  pointers: readonly string[],
  options: RegistryOptions,
): AsyncGenerator<Revision> {
  const read = async (pointer: string, signal: AbortSignal | undefined) => {
    try {
      return { pointer, text: await readPointer(source, registry, name, pointer, { ...options, signal }) }
    } catch (error) {
      // Deleted since it was listed.
      if (hasCode(error, 'OBJECT_GONE')) return { pointer, text: '' }
      throw error
    }
  }
  for await (const { pointer, text } of readAhead(pointers, POINTERS_AT_ONCE, options.signal, read)) {
    if (!isTopHash(text)) continue
    yield { pointer, topHash: text, timestampMs: isRevisionNumber(pointer) ? Number(pointer) * 1000 : undefined }
  }
}

/** A pointer's text. quilt3 writes no newline, but other tools do. Throws OBJECT_GONE. */
async function readPointer(
  source: Source,
  registry: Registry,
  name: PackageName,
  pointer: string,
  options: RegistryOptions,
): Promise<string> {
  const range = { start: 0, length: POINTER_BYTES_MAX }
  const reading = await source.read(pointerKey(registry, name, pointer), { range, ...listOptions(options) })
  const chunks: Uint8Array[] = []
  for await (const chunk of reading.chunks) chunks.push(chunk)
  return Buffer.concat(chunks).toString('utf8').trim()
}

async function listPointers(source: Source, registry: Registry, name: PackageName, options: RegistryOptions) {
  const { pointersMax = POINTERS_MAX } = options
  const revisions: string[] = []
  const tags: string[] = []
  for await (const listed of source.list(keyIn(registry, packageFolder(name)), listOptions(options))) {
    if (!listed.isFolder) (isRevisionNumber(listed.name) ? revisions : tags).push(listed.name)
    if (revisions.length + tags.length > pointersMax) {
      throw new BobbinError(
        'PACKAGE_REFUSED',
        `${name} in ${formatRegistry(registry)} has over ${pointersMax} revisions and tags`,
      )
    }
  }
  return { revisions: revisions.sort((a, b) => Number(b) - Number(a)), tags }
}

function isRevisionNumber(pointer: string): boolean {
  return /^[0-9]+$/.test(pointer)
}

async function pointerNotFound(
  source: Source,
  registry: Registry,
  name: PackageName,
  pointer: string,
  options: RegistryOptions,
): Promise<BobbinError> {
  const { revisions, tags } = await listPointers(source, registry, name, options)
  if (revisions.length + tags.length === 0) return await packageNotFound(source, registry, name, options)
  const offered = [...tags, ...revisions].slice(0, 5).map(tag => `:${tag}`)
  return new BobbinError(
    'REVISION_NOT_FOUND',
    `${name} in ${formatRegistry(registry)} has no ${pointer === 'latest' ? 'pointer' : 'revision or tag'} ` +
      `${JSON.stringify(pointer)}; it has ${offered.join(' ')}${revisions.length + tags.length > 5 ? ' and more' : ''}`,
  )
}

async function packageNotFound(
  source: Source,
  registry: Registry,
  name: PackageName,
  options: RegistryOptions,
): Promise<BobbinError> {
  const [namespace = '', wanted = ''] = name.split('/')
  const names: string[] = []
  for await (const listed of source.list(namespaceKey(registry, namespace), listOptions(options))) {
    if (listed.isFolder) names.push(listed.name)
    if (names.length === GUESSED_FROM_MAX) break
  }
  if (names.length === 0) await requireRegistry(source, registry, options)
  const place = `${name} in ${formatRegistry(registry)}`
  if (await hasEntries(source, keyIn(registry, `.quilt/v2/tags/${name.replace('/', '@')}/`), options))
    return layout2(place)
  const similar = similarNames(wanted, names).map(found => `${namespace}/${found}`)
  const help = similar.length === 0 ? `bobbin packages ${formatRegistry(registry)}` : similar.join(', ')
  return new BobbinError(
    'PACKAGE_NOT_FOUND',
    `no package ${name} in ${formatRegistry(registry)}; ${similar.length === 0 ? 'see' : 'did you mean'} ${help}`,
  )
}

/** The registry does not let us list, or its server cannot. */
function isUnlisted(error: unknown): error is BobbinError {
  return hasCode(error, 'ACCESS_DENIED', 'NOT_SUPPORTED')
}

/** A pointer that is not there, in a registry that does not tell what there is. */
function notFoundUnlisted(registry: Registry, name: PackageName, pointer: string, why: BobbinError): BobbinError {
  const what = pointer === 'latest' ? `package ${name}` : `revision or tag ${JSON.stringify(pointer)} of ${name}`
  const reason = hasCode(why, 'NOT_SUPPORTED') ? 'the server cannot list' : 'listing is refused'
  return new BobbinError(
    pointer === 'latest' ? 'PACKAGE_NOT_FOUND' : 'REVISION_NOT_FOUND',
    `no ${what} in ${formatRegistry(registry)}, or no access to it: ${reason}, so what there is cannot be said; ` +
      `check the name, or give the whole top hash${hasCode(why, 'NOT_SUPPORTED') ? '' : ' (to list takes s3:ListBucket)'}`,
    { cause: why },
  )
}

async function hasEntries(source: Source, folder: PhysicalKey, options: RegistryOptions): Promise<boolean> {
  for await (const _ of source.list(folder, listOptions(options))) return true
  return false
}

/** quilt3 reads and writes that layout where its configuration says so; no other client of Quilt does. */
function layout2(what: string): BobbinError {
  return new BobbinError(
    'PACKAGE_NOT_FOUND',
    `${what} is kept in layout 2 of a registry (.quilt/v2), which Bobbin does not read: open it with quilt3, whose config.yml ` +
      'says default_registry_version: 2, and push it to a registry of layout 1, the default',
  )
}

/** Listing a missing bucket fails by itself; of a folder we have to see that it is there. */
async function requireRegistry(source: Source, registry: Registry, options: RegistryOptions): Promise<void> {
  if (registry.kind === 's3' || registry.path === '/') return
  const slashAt = registry.path.lastIndexOf('/')
  const parent = { kind: 'file' as const, path: registry.path.slice(0, slashAt) || '/' }
  const own = registry.path.slice(slashAt + 1)
  for await (const { name, isFolder } of source.list(parent, { ...listOptions(options), namePrefix: own })) {
    if (name === own && isFolder) return
  }
  throw new BobbinError('REGISTRY_NOT_FOUND', `no such folder: ${registry.path}`)
}

function packageFolder(name: PackageName): string {
  return `.quilt/named_packages/${name}/`
}

function namespaceKey(registry: Registry, namespace: string): PhysicalKey {
  return keyIn(registry, `.quilt/named_packages/${namespace}/`)
}

function keyIn(registry: Registry, key: string): PhysicalKey {
  switch (registry.kind) {
    case 's3':
      return { kind: 's3', bucket: registry.bucket, key }
    case 'file':
      return { kind: 'file', path: `${registry.path === '/' ? '' : registry.path}/${key}` }
    default:
      return registry satisfies never
  }
}

function listOptions(options: RegistryOptions): { signal?: AbortSignal } {
  return options.signal === undefined ? {} : { signal: options.signal }
}
