import { resolve } from 'node:path'
import { installPackage } from '../daemon/fetch/install.js'
import { formatBytes } from '../daemon/model/index.js'
import { type PackageFlags, sourceConfigOf, withPackage } from './context.js'
import { patternsOf, selectPaths } from './path-globs.js'

export async function install(
  text: string,
  dir: string,
  flags: PackageFlags & { readonly path?: string[] },
): Promise<void> {
  await withPackage(text, flags, async (opened, { settings, output, progress, signal }, reference) => {
    const { index, name, topHash } = opened
    const selection = selectPaths(index, patternsOf(flags, reference))
    const installed = await installPackage(selection.entries(), resolve(dir), {
      sourceConfig: sourceConfigOf(settings),
      opened,
      cacheDir: settings.cacheDir,
      signal,
      ...(opened.timestampMs > 0 && { timestampMs: opened.timestampMs }),
      onProgress: done => progress.update('install', done.bytes, selection.bytes),
    })
    progress.stop()
    const { files, fetched, reused } = installed
    await output.row(
      { ...installed, topHash },
      `${name}@${topHash.slice(0, 12)} in ${dir}: ${files} files, ${formatBytes(installed.bytes)} (${fetched} fetched, ${reused} there already)`,
    )
  })
}
