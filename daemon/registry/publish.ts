/**
 * Makes a manifest the latest revision of a name: manifest, then the pointer of its second, then `latest`, so that
 * no pointer ever names a manifest that is not there.
 *
 * quilt3's conflict rule: a name may be given a new revision by who has read its latest one. It is looked at before
 * work begins and again before the pointers are written, and `latest` is compared and written in one step.
 */
import {
  BobbinError,
  type FileToStore,
  isTopHash,
  type PackageName,
  type PhysicalKey,
  type Registry,
  type RegistryWriter,
  type Source,
  type TopHash,
} from '../model/index.js'
import { formatRegistry, PREFIX_LENGTH_MIN } from './reference.js'
import { manifestKey, pointerKey, type RegistryOptions, readLatest } from './registry.js'

/** What a new revision is a revision of. */
export interface RevisionTarget {
  readonly registry: Registry
  readonly name: PackageName
  /** The revision that the new one was made from: a top hash, or its first characters. */
  readonly parent?: string | undefined
  /** Whatever is latest. */
  readonly isForced?: boolean | undefined
}

export interface Published {
  readonly topHash: TopHash
  /** False: it was the latest revision already, and nothing was written. */
  readonly isNew: boolean
}

/** Pointers of seconds that are taken already, by revisions pushed at the same time. */
const POINTER_TRIES_MAX = 60

/**
 * What `latest` says now, if a new revision may follow it. Throws REVISION_CONFLICT, and INVALID_ARGUMENT for a parent
 * that is no hash.
 */
export async function requireParent(
  source: Source,
  target: RevisionTarget,
  options: RegistryOptions = {},
): Promise<string | undefined> {
  const { registry, name, parent, isForced } = target
  if (parent !== undefined && (!/^[0-9a-f]{6,64}$/.test(parent) || parent.length < PREFIX_LENGTH_MIN)) {
    throw new BobbinError('INVALID_ARGUMENT', `the parent is not a top hash, or the start of one: ${parent}`)
  }
  const latest = await readLatest(source, registry, name, options)
  if (latest === undefined || isForced) return latest
  if (parent !== undefined && isTopHash(latest) && latest.startsWith(parent)) return latest
  throw conflict(target, latest)
}

/** Throws REVISION_CONFLICT when somebody was faster. */
export async function publishRevision(
  source: Source,
  writer: RegistryWriter,
  target: RevisionTarget,
  manifest: { readonly topHash: TopHash; readonly file: FileToStore },
  options: RegistryOptions = {},
): Promise<Published> {
  const { registry, name, isForced } = target
  const { topHash, file } = manifest
  const { signal } = options
  if ((await readLatest(source, registry, name, options)) === topHash) return { topHash, isNew: false }
  await writer.put(manifestKey(registry, topHash), file, { signal })
  let latest = await requireParent(source, target, options)
  await writeSecond(writer, target, topHash, signal)
  while (!(await writer.replace(pointerKey(registry, name, 'latest'), topHash, latest, signal))) {
    latest = await readLatest(source, registry, name, options)
    if (!isForced) throw conflict(target, latest, topHash)
  }
  return { topHash, isNew: true }
}

/** Two revisions of one second would hide one of them, so the later one takes the next second. */
async function writeSecond(
  writer: RegistryWriter,
  { registry, name }: RevisionTarget,
  topHash: TopHash,
  signal: AbortSignal | undefined,
): Promise<void> {
  const now = Math.floor(Date.now() / 1000)
  let pointer: PhysicalKey
  for (let second = now; second < now + POINTER_TRIES_MAX; second++) {
    pointer = pointerKey(registry, name, String(second))
    if (await writer.replace(pointer, topHash, undefined, signal)) return
  }
  throw new BobbinError('BUSY', `${name} gets more than one revision per second: try again`)
}

function conflict({ registry, name, parent }: RevisionTarget, latest: string | undefined, left?: TopHash): BobbinError {
  const place = `${formatRegistry(registry)}/${name}`
  const made = parent === undefined ? 'no parent was named' : `this was made from ${parent}`
  const kept = left === undefined ? '' : `; what was pushed is in the history as ${left}, and not the latest`
  return new BobbinError(
    'REVISION_CONFLICT',
    `the latest revision of ${place} is ${latest ?? 'gone'}, and ${made}${kept}: ` +
      'look at what is new there, then pass that revision as --parent, or override it with --force',
  )
}
