import { isTopHash, type TopHash } from '../daemon/model/index.js'
import { openPackage } from '../daemon/package/package-cache.js'
import type { PackageReference } from '../daemon/registry/reference.js'
import { listRevisions } from '../daemon/registry/registry.js'
import { type Context, type PackageFlags, withContext, withMeant } from './context.js'

interface LogRow {
  readonly topHash: TopHash
  readonly timestamp: string | null
  readonly message: string | null
  readonly tags: readonly string[]
}

interface History {
  readonly reference: PackageReference
  /** Newest first. */
  readonly pointers: readonly { readonly topHash: TopHash; readonly timestampMs: number; readonly pointer: string }[]
  readonly tags: ReadonlyMap<TopHash, readonly string[]>
}

async function history(reference: PackageReference, { source, signal }: Context): Promise<History> {
  const pointers = []
  const tags = new Map<TopHash, string[]>()
  for await (const { pointer, topHash, timestampMs } of listRevisions(source, reference.registry, reference.name, {
    signal,
  })) {
    if (!isTopHash(topHash)) continue
    if (timestampMs !== undefined) pointers.push({ topHash, timestampMs, pointer })
    else tags.set(topHash, [...(tags.get(topHash) ?? []), pointer])
  }
  return { reference, pointers, tags }
}

/** Revisions, newest first. The message of each lies in its manifest, which is fetched unless --no-messages. */
export async function log(
  text: string,
  flags: PackageFlags & { readonly limit?: string; readonly messages?: boolean },
): Promise<void> {
  await withContext(flags, async context => {
    const { reference, pointers, tags } = await withMeant(text, flags, context, reference =>
      history(reference, context),
    )
    const { registry, name } = reference
    const limit = flags.limit === undefined ? Number.POSITIVE_INFINITY : Number(flags.limit)
    // A pointer lost to another one of the same second: its revision is known by its tag alone.
    const lost = [...tags.keys()].filter(topHash => pointers.every(found => found.topHash !== topHash))
    const revisions = [
      ...lost.map(topHash => ({ topHash, timestampMs: undefined, pointer: '-'.padEnd(10) })),
      ...pointers,
    ]
    for (const { topHash, timestampMs, pointer } of revisions.slice(0, limit)) {
      const row: LogRow = {
        topHash,
        timestamp: timestampMs === undefined ? null : new Date(timestampMs).toISOString(),
        message: flags.messages === false ? null : await messageOf(topHash),
        tags: tags.get(topHash) ?? [],
      }
      const mark = row.tags.length > 0 ? `  (${row.tags.join(', ')})` : ''
      await context.output.row(
        row,
        `${row.topHash}  ${row.timestamp ?? '-'.padEnd(24)}  ${pointer}${mark}  ${row.message ?? ''}`.trimEnd(),
      )
    }

    async function messageOf(topHash: TopHash): Promise<string | null> {
      const opened = await openPackage(
        { registry, name, revision: { kind: 'hash', prefix: topHash } },
        {
          cacheDir: context.settings.cacheDir,
          source: context.source,
          offline: context.settings.offline,
          quarantine: true,
          signal: context.signal,
        },
      )
      try {
        return opened.index.message ?? null
      } finally {
        opened.close()
      }
    }
  })
}
