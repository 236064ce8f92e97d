import { existsSync, readFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import type { MetaChoice } from '../daemon/folder/push/meta-choice.js'
import { pushBucket } from '../daemon/folder/push/push-bucket.js'
import { type Pushed, pushFolder } from '../daemon/folder/push/push-folder.js'
import type { Revision } from '../daemon/folder/push/push-revision.js'
import type { PushProgress } from '../daemon/folder/push/transfers.js'
import { parseUserMeta } from '../daemon/manifest/manifest-writer.js'
import { BobbinError, formatBytes, localError, parsePhysicalKey, type S3Key } from '../daemon/model/index.js'
import { formatRegistry, type PackageReference, parseReference } from '../daemon/registry/reference.js'
import { defaultRegistryOf, sourceConfigOf, withContext } from './context.js'
import { jsonWith } from './json.js'
import type { Output } from './output.js'
import type { CommonFlags, Settings } from './settings.js'

/** Flags of the verbs that make a revision. */
export interface RevisionFlags extends CommonFlags {
  readonly registry?: string
  /** Without it the revision has none, as with quilt3. */
  readonly message?: string
  readonly meta?: string
  readonly workflow?: string
  readonly parent?: string
  readonly force?: boolean
}

/** Flags that give metadata to entries and folders. */
export interface MetaFlags {
  readonly metaFrom?: readonly string[]
  readonly metaUnder?: string
  readonly dirMeta?: readonly string[]
  readonly allowUnmatched?: boolean
}

/** So many are named to a person. */
const SKIPPED_SHOWN_MAX = 10

/** `from`: a folder, or `s3://BUCKET/PREFIX/`. */
export async function push(
  from: string,
  text: string,
  flags: RevisionFlags & MetaFlags & { readonly copy?: boolean },
): Promise<void> {
  const objects = from.startsWith('s3://') ? objectsBelow(from) : undefined
  if (objects === undefined && flags.copy === false) {
    throw new BobbinError('INVALID_ARGUMENT', '--no-copy is for objects in S3: a folder has to be uploaded')
  }
  await withContext(flags, async ({ settings, output, progress, signal }) => {
    const reference = targetOf(text, flags, settings)
    const place = placeOf(reference)
    let skipped = 0
    const options = {
      ...reference,
      ...revisionOf(flags),
      ...metaChoiceOf(flags),
      sourceConfig: sourceConfigOf(settings),
      cacheDir: settings.cacheDir,
      onLack: (what: string) => output.note(`bobbin: ${what}`),
      signal,
      onProgress: ({ bytes, bytesTotal }: PushProgress) => progress.update('push', bytes, bytesTotal),
      onSkipped: (key: string, reason: string) => {
        if (++skipped <= SKIPPED_SHOWN_MAX) output.note(`bobbin: left out ${JSON.stringify(key)}: ${reason}`)
      },
    }
    const pushed =
      objects === undefined
        ? await pushFolder({ ...options, dir: resolve(from) })
        : await pushBucket({ ...options, from: objects, copiesObjects: flags.copy ?? true })
    progress.stop()
    if (skipped > SKIPPED_SHOWN_MAX) output.note(`bobbin: and ${skipped - SKIPPED_SHOWN_MAX} more`)
    output.note(`bobbin: ${summaryOf(pushed, place)}`)
    await printRevision(pushed, output)
  })
}

export function summaryOf({ entries, bytes, uploaded, reused, isNew }: Pushed, place: string): string {
  if (!isNew) return `this is the latest revision already, ${place}`
  return `${entries} entries, ${formatBytes(bytes)}: ${uploaded} written, ${reused} there already; written to ${place}`
}

/** As quilt3 takes it: the prefix is a folder, whether its final slash was typed or not. */
function objectsBelow(text: string): S3Key {
  const key = parsePhysicalKey(text)
  if (key.kind !== 's3' || key.versionId !== undefined) {
    throw new BobbinError('INVALID_ARGUMENT', `name the objects to push as s3://BUCKET/PREFIX/, not ${text}`)
  }
  return key.key === '' || key.key.endsWith('/') ? key : { ...key, key: `${key.key}/` }
}

export function metaChoiceOf({ metaFrom, metaUnder, dirMeta, allowUnmatched }: MetaFlags): MetaChoice {
  if (metaUnder !== undefined && metaFrom === undefined) {
    throw new BobbinError(
      'INVALID_ARGUMENT',
      '--meta-under says where the keys of --meta-from are: pass --meta-from, too',
    )
  }
  return {
    entryMetas: { files: metaFrom ?? [], under: metaUnder, allowsUnmatched: allowUnmatched },
    directories: new Map((dirMeta ?? []).map(text => keyedMeta(text, '--dir-meta FOLDER=JSON'))),
  }
}

/** `KEY=JSON` or `KEY=@FILE`, without a slash at the key's end. */
export function keyedMeta(text: string, form: string): readonly [key: string, metadata: string] {
  const [, key = '', value] = /^(.+?)=([@{].*)$/s.exec(text) ?? []
  if (value === undefined) {
    throw new BobbinError(
      'INVALID_ARGUMENT',
      `write it as ${form}, with a JSON object or @FILE: ${JSON.stringify(text)}`,
    )
  }
  return [key.replace(/\/+$/, ''), metaText(value)]
}

/** `JSON` or `@FILE`. */
function metaText(text: string): string {
  return parseUserMeta(text.startsWith('@') ? readMeta(text.slice(1)) : text)
}

/** The name that a revision is pushed to. Throws INVALID_ARGUMENT for a name that no new package may have. */
export function targetOf(text: string, flags: { readonly registry?: string }, settings: Settings): PackageReference {
  // Of all flags: --top-hash, where a verb has it, is of the package that is read.
  const { registry } = flags
  const reference = parseReference(text, { registry, defaultRegistry: () => defaultRegistryOf(settings, true) })
  if (reference.revision.kind !== 'latest') {
    throw new BobbinError('INVALID_ARGUMENT', `a push becomes the latest revision: leave @ and : out of ${text}`)
  }
  // Python's `$` lets it through, and nobody can type it again.
  if (reference.name.endsWith('\n')) throw new BobbinError('INVALID_ARGUMENT', 'the package name ends with a newline')
  return reference
}

/** In words. Asked before the push, which makes a registry of a folder that is none: a namespace may be forgotten. */
export function placeOf({ registry, name }: PackageReference): string {
  const isNew = registry.kind === 'file' && !existsSync(join(registry.path, '.quilt'))
  return `${name} in ${formatRegistry(registry)}${isNew ? ' (a new registry)' : ''}`
}

export function revisionOf({ message, meta, workflow, parent, force }: RevisionFlags) {
  return {
    message: message ?? null,
    userMeta: meta === undefined ? undefined : metaText(meta),
    workflow: workflowOf(workflow),
    parent,
    force,
  }
}

/** As with quilt3, nothing between the quotes is a wish for none. */
export function workflowOf(text: string | undefined): string | null | undefined {
  return text === '' ? null : text
}

function readMeta(path: string): string {
  try {
    return readFileSync(path, 'utf8')
  } catch (error) {
    throw localError(`read the metadata in ${path}`, error)
  }
}

/** As `resolve` prints it. */
export async function printRevision(
  { registry, name, topHash, entries, bytes, message, metadata }: Revision,
  output: Output,
): Promise<void> {
  const facts = { registry: formatRegistry(registry), package: name, topHash, entries, bytes, message }
  await output.row(jsonWith(facts, { metadata }), topHash)
}
