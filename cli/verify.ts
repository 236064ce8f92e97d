import { resolve } from 'node:path'
import { verifyFolder } from '../daemon/folder/verify-folder.js'
import { BobbinError, formatBytes } from '../daemon/model/index.js'
import { type PackageFlags, withPackage } from './context.js'
import { patternsOf, selectPaths } from './path-globs.js'

/** How many names of each kind a person is shown; --json has them all. */
const SHOWN_MAX = 20

export async function verify(
  text: string,
  dir: string,
  flags: PackageFlags & { readonly path?: string[]; readonly extraFilesOk?: boolean },
): Promise<void> {
  await withPackage(text, flags, async ({ index, name, topHash }, { output, progress, signal }, reference) => {
    const selection = selectPaths(index, patternsOf(flags, reference))
    const found = await verifyFolder(selection.entries(), resolve(dir), {
      isKnown: key => index.find(key)?.kind === 'file',
      onProgress: done => progress.update('verify', done.bytes, selection.bytes),
      signal,
    })
    progress.stop()
    const { files, bytes, changed, missing } = found
    const extra = flags.extraFilesOk ? [] : found.extra.filter(selection.isSelected)
    const ok = changed.length + missing.length + extra.length === 0
    const which = `${name}@${topHash.slice(0, 12)}`
    const lines = [
      ok
        ? `${dir} is ${which}: ${files} files, ${formatBytes(bytes)}, every one as it should be`
        : `${dir} is not ${which}`,
      ...shown('changed', changed),
      ...shown('missing', missing),
      ...shown('extra', extra),
    ]
    await output.row({ ...found, ok, extra, topHash }, lines)
    await output.flush()
    if (!ok) {
      throw new BobbinError(
        'FOLDER_DIFFERS',
        `${dir} differs from ${which}: ${changed.length} changed, ${missing.length} missing, ${extra.length} extra`,
      )
    }
  })
}

function shown(what: string, keys: readonly string[]): string[] {
  const lines = keys.slice(0, SHOWN_MAX).map(key => `  ${what}  ${key}`)
  return keys.length > SHOWN_MAX ? [...lines, `  ${what}  and ${keys.length - SHOWN_MAX} more`] : lines
}
