/**
 * Changes of a name's pointers that publish nothing: an earlier revision becomes the latest again, or a revision or the
 * name goes. As with quilt3, manifests and objects stay: other names, other revisions and mounts may use them.
 */
import {
  BobbinError,
  isTopHash,
  type PackageName,
  type Registry,
  type RegistryWriter,
  type Source,
  type TopHash,
} from '../model/index.js'
import { formatRegistry } from './reference.js'
import { listRevisions, pointerKey, type RegistryOptions, type Revision, readLatest } from './registry.js'

/** `latest` may be written by others at the same time; not for ever. */
const TRIES_MAX = 5

export interface PointersOf {
  readonly source: Source
  readonly writer: RegistryWriter
  readonly registry: Registry
  readonly name: PackageName
}

/**
 * Makes a revision of the name the latest one. False: it was. Throws REVISION_NOT_FOUND for what is no revision of the
 * name, unless `isForced`.
 */
export async function rollBack(
  of: PointersOf,
  topHash: TopHash,
  options: RegistryOptions & { readonly isForced?: boolean } = {},
): Promise<boolean> {
  const { source, registry, name } = of
  if (!options.isForced) {
    const isKnown = (await revisionsOf(of, options)).some(revision => revision.topHash === topHash)
    if (!isKnown) {
      throw new BobbinError(
        'REVISION_NOT_FOUND',
        `${topHash} is not a revision of ${name} in ${formatRegistry(registry)}: see bobbin log, or pass --force`,
      )
    }
  }
  if ((await readLatest(source, registry, name, options)) === topHash) return false
  await replaceLatest(of, topHash, () => true, options)
  return true
}

/** The pointers that name the revision; of all revisions without a hash. Throws PACKAGE_NOT_FOUND, REVISION_NOT_FOUND. */
export async function pointersTo(
  of: Omit<PointersOf, 'writer'>,
  topHash: TopHash | undefined,
  options: RegistryOptions = {},
): Promise<Revision[]> {
  const all = await revisionsOf(of, options)
  const found = topHash === undefined ? all : all.filter(revision => revision.topHash === topHash)
  if (found.length > 0) return found
  const place = `${of.name} in ${formatRegistry(of.registry)}`
  throw new BobbinError('REVISION_NOT_FOUND', `${topHash} is not a revision of ${place} (bobbin log lists them)`)
}

/**
 * Removes these pointers of `pointersTo`. When `latest` is one of them, and other revisions stay, the newest of those is the
 * latest, before anything is removed: a name whose removal was cut off still resolves.
 */
export async function removePointers(
  of: PointersOf,
  pointers: readonly Revision[],
  options: RegistryOptions = {},
): Promise<void> {
  const { writer, registry, name } = of
  const gone = new Set(pointers.map(({ pointer }) => pointer))
  const goneHashes = new Set<string>(pointers.map(({ topHash }) => topHash))
  const stays = (await revisionsOf(of, options)).filter(({ pointer }) => !gone.has(pointer))
  const newest = stays.find(({ timestampMs }) => timestampMs !== undefined)
  if (gone.has('latest') && newest !== undefined) {
    await replaceLatest(of, newest.topHash, latest => goneHashes.has(latest), options)
    gone.delete('latest')
  }
  // `latest` at the end: until then the name resolves.
  const ordered = [...gone].sort((a, b) => Number(a === 'latest') - Number(b === 'latest'))
  for (const pointer of ordered) await writer.remove(pointerKey(registry, name, pointer), options.signal)
}

async function replaceLatest(
  { source, writer, registry, name }: PointersOf,
  topHash: TopHash,
  isOurs: (latest: string) => boolean,
  options: RegistryOptions,
): Promise<void> {
  for (let tries = 1; tries <= TRIES_MAX; tries++) {
    const latest = await readLatest(source, registry, name, options)
    // Somebody has pushed meanwhile, and that is the latest one.
    if (latest !== undefined && !isOurs(latest)) return
    if (await writer.replace(pointerKey(registry, name, 'latest'), topHash, latest, options.signal)) return
  }
  throw new BobbinError('BUSY', `others keep writing the latest revision of ${name}: try again`)
}

async function revisionsOf(
  { source, registry, name }: Omit<PointersOf, 'writer'>,
  options: RegistryOptions,
): Promise<Revision[]> {
  const found: Revision[] = []
  for await (const revision of listRevisions(source, registry, name, options)) {
    if (isTopHash(revision.topHash)) found.push(revision)
  }
  return found
}
