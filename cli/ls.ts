import type { IndexNode } from '../daemon/index/package-index.js'
import { BobbinError, formatBytes, formatPhysicalKey } from '../daemon/model/index.js'
import { formatManifestHash } from '../daemon/model/object-hash.js'
import type { OpenedPackage } from '../daemon/package/package-cache.js'
import { findObject } from '../daemon/store/index.js'
import { type Context, type PackageFlags, withPackage } from './context.js'
import { jsonWith } from './json.js'

interface LsFlags extends PackageFlags {
  readonly recursive?: boolean
  readonly long?: boolean
}

export async function ls(text: string, path: string | undefined, flags: LsFlags): Promise<void> {
  await withPackage(text, flags, async (opened, context, reference) => {
    const { index } = opened
    const wanted = path ?? reference.path ?? ''
    const node = index.find(wanted)
    if (node === undefined) throw noSuchKey(opened, wanted)
    const top = index.key(node.ino)
    if (node.kind === 'file') return printRow(opened, node, top, flags, context)
    if (flags.recursive) {
      for (const found of index.walk(node.ino)) {
        if (found.node.kind === 'file' || flags.json) await printRow(opened, found.node, found.key, flags, context)
      }
      return
    }
    const prefix = top === '' ? '' : `${top}/`
    for (const child of index.children(node.ino)) await printRow(opened, child, prefix + child.name, flags, context)
  })
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
