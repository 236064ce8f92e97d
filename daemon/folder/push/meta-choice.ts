/** The metadata that somebody gives to what is pushed, beside that of the package. */

import { type EntryMetaOptions, EntryMetas } from './entry-metas.js'
import type { RevisionOptions } from './push-revision.js'

export interface MetaChoice {
  readonly entryMetas?: EntryMetaOptions | undefined
  /** Canonical JSON text by the key of a folder. */
  readonly directories?: ReadonlyMap<string, string> | undefined
}

/** Opens the files with metadata of entries, if there are some, and closes what it made of them. */
export async function withMetas<T>(
  { entryMetas, cacheDir, signal }: MetaChoice & Pick<RevisionOptions, 'cacheDir' | 'signal'>,
  use: (metas: EntryMetas | undefined) => Promise<T>,
): Promise<T> {
  if (entryMetas === undefined || (entryMetas.files.length === 0 && !entryMetas.given?.size))
    return await use(undefined)
  const metas = await EntryMetas.open(entryMetas, cacheDir, signal)
  try {
    return await use(metas)
  } finally {
    metas.close()
  }
}
