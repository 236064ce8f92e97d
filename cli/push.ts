import { resolve } from 'node:path'
import { pushBucket } from '../daemon/folder/push/push-bucket.js'
import { pushFolder } from '../daemon/folder/push/push-folder.js'
import type { PushProgress } from '../daemon/folder/push/transfers.js'
import { BobbinError, parsePhysicalKey, type S3Key } from '../daemon/model/index.js'
import { sourceConfigOf, withContext } from './context.js'
import {
  type MetaFlags,
  metaChoiceOf,
  placeOf,
  printRevision,
  type RevisionFlags,
  revisionOf,
  summaryOf,
  targetOf,
} from './revisions.js'

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

/** As quilt3 takes it: the prefix is a folder, whether its final slash was typed or not. */
function objectsBelow(text: string): S3Key {
  const key = parsePhysicalKey(text)
  if (key.kind !== 's3' || key.versionId !== undefined) {
    throw new BobbinError('INVALID_ARGUMENT', `name the objects to push as s3://BUCKET/PREFIX/, not ${text}`)
  }
  return key.key === '' || key.key.endsWith('/') ? key : { ...key, key: `${key.key}/` }
}
