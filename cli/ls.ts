import { withPackage } from './context.js'
import { type LsFlags, noSuchKey, printRow } from './entry-rows.js'

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
