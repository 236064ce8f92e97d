import { resolve } from 'node:path'
import { installPackage } from '../daemon/folder/install.js'
import { registerRevision } from '../daemon/folder/push/register.js'
import type { PackageIndex } from '../daemon/index/package-index.js'
import { BobbinError, type Entry, formatBytes } from '../daemon/model/index.js'
import { formatRegistry } from '../daemon/registry/reference.js'
import { type PackageFlags, sourceConfigOf, withPackage } from './context.js'
import { patternsOf, selectPaths } from './path-globs.js'
import { quiltRegistries } from './quilt-config.js'

export async function install(
  text: string,
  dir: string,
  flags: PackageFlags & { readonly path?: string[]; readonly stripPath?: boolean; readonly register?: boolean },
): Promise<void> {
  await withPackage(text, flags, async (opened, { settings, output, progress, signal }, reference) => {
    const { index, name, topHash } = opened
    const patterns = patternsOf(flags, reference)
    const prefixLength = flags.stripPath ? strippedLength(index, patterns) : 0
    const selection = selectPaths(index, patterns)
    const installed = await installPackage(stripped(selection.entries(), prefixLength), resolve(dir), {
      sourceConfig: sourceConfigOf(settings),
      // What has moved is found again by its key, and a key that was cut is another entry's.
      ...(prefixLength === 0 && { opened }),
      cacheDir: settings.cacheDir,
      signal,
      ...(opened.timestampMs > 0 && { timestampMs: opened.timestampMs }),
      onProgress: done => progress.update('install', done.bytes, selection.bytes),
    })
    progress.stop()
    if (flags.register) {
      const { local } = quiltRegistries()
      await registerRevision(opened, local, {
        sourceConfig: sourceConfigOf(settings),
        cacheDir: settings.cacheDir,
        signal,
      })
      output.note(`bobbin: registered ${name}@${topHash.slice(0, 12)} in ${formatRegistry(local)}`)
    }
    const { files, fetched, reused } = installed
    await output.row(
      { ...installed, topHash },
      `${name}@${topHash.slice(0, 12)} in ${dir}: ${files} files, ${formatBytes(installed.bytes)} (${fetched} fetched, ${reused} there already)`,
    )
  })
}

/** As quilt3's `path` has it: what lies in a folder lies directly in the destination, and so does a single entry. */
function strippedLength(index: PackageIndex, [pattern = '', ...others]: readonly string[]): number {
  const top = pattern.replace(/\/+$/, '')
  const node = index.find(top)
  if (node === undefined || top === '' || others.length > 0) {
    throw new BobbinError(
      'INVALID_ARGUMENT',
      '--strip-path needs exactly one --path, the key of a folder or of an entry',
    )
  }
  return node.kind === 'directory' ? top.length + 1 : top.lastIndexOf('/') + 1
}

function* stripped(entries: Iterable<Entry>, prefixLength: number): Generator<Entry> {
  for (const entry of entries) yield { ...entry, key: entry.key.slice(prefixLength) as Entry['key'] }
}
