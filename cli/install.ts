import { resolve } from 'node:path'
import { installPackage } from '../daemon/fetch/install.js'
import { BobbinError, type Entry, formatBytes } from '../daemon/model/index.js'
import { compileGlobs, quoteGlob } from '../daemon/quilt/globs.js'
import type { PackageIndex } from '../daemon/quilt/package-index.js'
import { type PackageFlags, sourceConfigOf, withPackage } from './context.js'

export async function install(
  text: string,
  dir: string,
  flags: PackageFlags & { readonly path?: string[] },
): Promise<void> {
  await withPackage(text, flags, async (opened, { settings, output, progress, signal }, reference) => {
    const { index, name, topHash } = opened
    const patterns = flags.path ?? (reference.path === undefined ? [] : [reference.path])
    const bytes = selectedBytes(index, patterns)
    const installed = await installPackage(selected(index, patterns), resolve(dir), {
      sourceConfig: sourceConfigOf(settings),
      cacheDir: settings.cacheDir,
      signal,
      ...(opened.timestampMs > 0 && { timestampMs: opened.timestampMs }),
      onProgress: done => progress.update('install', done.bytes, bytes),
    })
    progress.stop()
    const { files, fetched, reused } = installed
    await output.row(
      { ...installed, topHash },
      `${name}@${topHash.slice(0, 12)} in ${dir}: ${files} files, ${formatBytes(installed.bytes)} (${fetched} fetched, ${reused} there already)`,
    )
  })
}

/** A pattern is a glob, or the key of an entry or of a directory, which then means all below it. */
function* selected(index: PackageIndex, patterns: readonly string[]): Generator<Entry> {
  if (patterns.length === 0) {
    yield* index.entries()
    return
  }
  const globs = patterns
    .map(pattern => pattern.replace(/\/+$/, ''))
    .map(pattern => (index.find(pattern) === undefined ? pattern : quoteGlob(pattern)))
  const isMatch = compileGlobs([...globs, ...globs.map(glob => `${glob}/**`)])
  for (const { node, key } of index.walk()) {
    if (node.kind === 'file' && isMatch(key)) yield index.entry(node.ino, key)
  }
}

/** For the progress bar; also the place to say that nothing fits. */
function selectedBytes(index: PackageIndex, patterns: readonly string[]): number {
  if (patterns.length === 0) return index.facts.bytes
  let bytes = 0
  let files = 0
  for (const { size } of selected(index, patterns)) {
    bytes += size
    files++
  }
  if (files === 0)
    throw new BobbinError('ENTRY_NOT_FOUND', `no entry fits ${patterns.join(', ')} (bobbin ls -R lists them all)`)
  return bytes
}
