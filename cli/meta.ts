import { ROOT_INO } from '../daemon/index/package-index.js'
import { standardJson } from '../daemon/json/python-json.js'
import { type PackageFlags, withPackage } from './context.js'
import { noSuchKey } from './entry-rows.js'

/** The user's metadata of the package, of a directory or of an entry, as it was written; with `--json`, as JSON. */
export async function meta(text: string, key: string | undefined, flags: PackageFlags): Promise<void> {
  await withPackage(text, flags, async (opened, { output }, reference) => {
    const wanted = key ?? reference.path ?? ''
    const node = opened.index.find(wanted)
    if (node === undefined) throw noSuchKey(opened, wanted)
    if (node.kind === 'directory' && node.ino !== ROOT_INO && node.hasMetadata) {
      output.note('bobbin: metadata of a directory is not covered by the top hash')
    }
    const { index } = opened
    const text = node.ino === ROOT_INO ? index.packageMetadata() : (index.metadata(node.ino) ?? '{}')
    await output.row(standardJson(text), text)
  })
}
