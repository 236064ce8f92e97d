import { readFileSync } from 'node:fs'
import { resolve } from 'node:path'
import { pushFolder } from '../daemon/fetch/push/push-folder.js'
import { BobbinError, formatBytes, localError, type TopHash } from '../daemon/model/index.js'
import { parseUserMeta } from '../daemon/quilt/manifest-writer.js'
import { openPackage } from '../daemon/quilt/package-cache.js'
import { ROOT_INO } from '../daemon/quilt/package-index.js'
import type { PackageReference } from '../daemon/quilt/reference.js'
import { type Context, referenceOf, sourceConfigOf, withContext } from './context.js'
import { jsonWith } from './json.js'
import { packageSummary } from './resolve.js'
import type { CommonFlags, Settings } from './settings.js'

/** Flags of the verbs that make a revision. */
export interface RevisionFlags extends CommonFlags {
  readonly registry?: string
  readonly message: string
  readonly meta?: string
  readonly workflow?: string
  readonly parent?: string
  readonly force?: boolean
}

/** So many are named to a person. */
const SKIPPED_SHOWN_MAX = 10

export async function push(dir: string, text: string, flags: RevisionFlags): Promise<void> {
  await withContext(flags, async context => {
    const { settings, output, progress, signal } = context
    const reference = targetOf(text, flags, settings)
    let skipped = 0
    const pushed = await pushFolder({
      ...reference,
      ...revisionOf(flags),
      dir: resolve(dir),
      sourceConfig: sourceConfigOf(settings),
      cacheDir: settings.cacheDir,
      signal,
      onProgress: ({ bytes, bytesTotal }) => progress.update('push', bytes, bytesTotal),
      onSkipped: (key, reason) => {
        if (++skipped <= SKIPPED_SHOWN_MAX) output.note(`bobbin: left out ${JSON.stringify(key)}: ${reason}`)
      },
    })
    progress.stop()
    if (skipped > SKIPPED_SHOWN_MAX) output.note(`bobbin: and ${skipped - SKIPPED_SHOWN_MAX} more`)
    const { entries, bytes, uploaded, reused, isNew } = pushed
    output.note(
      isNew
        ? `bobbin: ${entries} entries, ${formatBytes(bytes)}: ${uploaded} written, ${reused} there already`
        : 'bobbin: this is the latest revision already',
    )
    await printRevision(context, reference, pushed.topHash)
  })
}

/** The name that a revision is pushed to. Throws INVALID_ARGUMENT for a name that no new package may have. */
export function targetOf(text: string, flags: { readonly registry?: string }, settings: Settings): PackageReference {
  // Of all flags: --top-hash, where a verb has it, is of the package that is read.
  const { registry } = flags
  const reference = referenceOf(text, { ...(registry !== undefined && { registry }) }, settings)
  if (reference.revision.kind !== 'latest') {
    throw new BobbinError(
      'INVALID_ARGUMENT',
      `what is pushed becomes the latest revision: leave @ and : out of ${text}`,
    )
  }
  // Python's `$` lets it through, and nobody can type it again.
  if (reference.name.endsWith('\n')) throw new BobbinError('INVALID_ARGUMENT', 'the package name ends with a newline')
  return reference
}

export function revisionOf({ message, meta, workflow, parent, force }: RevisionFlags) {
  return {
    message,
    userMeta: meta === undefined ? undefined : parseUserMeta(meta.startsWith('@') ? readMeta(meta.slice(1)) : meta),
    // As with quilt3, nothing between the quotes is a wish for none.
    workflow: workflow === '' ? null : workflow,
    parent,
    force,
  }
}

function readMeta(path: string): string {
  try {
    return readFileSync(path, 'utf8')
  } catch (error) {
    throw localError(`read the metadata in ${path}`, error)
  }
}

/** What `resolve` prints, of the manifest as the registry has it now: it is read and hashed once more. */
export async function printRevision(
  { settings, source, signal, output }: Context,
  { registry, name }: PackageReference,
  topHash: TopHash,
): Promise<void> {
  const opened = await openPackage(
    { registry, name, revision: { kind: 'hash', prefix: topHash } },
    { cacheDir: settings.cacheDir, source, signal },
  )
  try {
    const metadata = opened.index.metadata(ROOT_INO) ?? 'null'
    await output.row(jsonWith(packageSummary(opened), { metadata }), topHash)
  } finally {
    opened.close()
  }
}
