/** How the entries of a package are shown, and what is said of one that it does not have. */
import type { IndexNode } from '../daemon/index/package-index.js'
import { BobbinError, formatBytes, formatPhysicalKey } from '../daemon/model/index.js'
import { formatManifestHash } from '../daemon/model/object-hash.js'
import type { OpenedPackage } from '../daemon/package/package-cache.js'
import { findObject } from '../daemon/store/index.js'
import type { Context, PackageFlags } from './context.js'
import { jsonWith } from './json.js'

export interface LsFlags extends PackageFlags {
  readonly recursive?: boolean
  readonly long?: boolean
}

export function noSuchKey(opened: OpenedPackage, key: string): BobbinError {
  return new BobbinError(
    'ENTRY_NOT_FOUND',
    `no entry or directory ${JSON.stringify(key)} in ${opened.name}@${opened.topHash.slice(0, 12)} (bobbin ls shows what is there)`,
  )
}

export async function printRow(
  opened: OpenedPackage,
  node: IndexNode,
  key: string,
  flags: Pick<LsFlags, 'json' | 'long'>,
  { output, settings }: Context,
): Promise<void> {
  const { index } = opened
  if (!flags.json && !flags.long) return output.line(node.kind === 'directory' ? `${key}/` : key)
  const meta = flags.json && node.hasMetadata ? index.metadata(node.ino) : undefined
  if (node.kind === 'directory') {
    const row = { key: `${key}/`, type: 'directory', size: null, hash: null, hashType: null, physicalKey: null }
    return output.row(jsonWith(row, { meta: meta ?? '{}' }), `${'-'.padStart(10)}  ${' '.repeat(25)}  ${key}/`)
  }
  const entry = index.entry(node.ino, key)
  const hash = formatManifestHash(entry.hash)
  const isCached = flags.long ? findObject(settings.cacheDir, entry) !== undefined : undefined
  const row = {
    key,
    type: 'file',
    size: entry.size,
    hash,
    hashType: entry.hash.type,
    physicalKey: formatPhysicalKey(entry.physicalKey),
    ...(isCached !== undefined && { cached: isCached }),
  }
  await output.row(
    jsonWith(row, { meta: meta ?? '{}' }),
    `${formatBytes(entry.size).padStart(10)}  ${hash.slice(0, 16)}…  ${isCached ? 'cached' : '      '}  ${key}`,
  )
}
