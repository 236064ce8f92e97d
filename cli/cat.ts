import { randomBytes } from 'node:crypto'
import { createReadStream, mkdirSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { pipeline } from 'node:stream/promises'
import { materialize } from '../daemon/folder/materialize.js'
import { BobbinError, systemCode } from '../daemon/model/index.js'
import { atPresentPlace } from '../daemon/package/moved-objects.js'
import { Workers } from '../daemon/work/workers.js'
import { type PackageFlags, sourceConfigOf, withPackage } from './context.js'
import { noSuchKey } from './entry-rows.js'

/** The bytes go to a file in the cache first, so that none is written before all are checked. */
export async function cat(text: string, key: string | undefined, flags: PackageFlags): Promise<void> {
  await withPackage(text, flags, async (opened, { settings, progress, signal }, reference) => {
    const wanted = key ?? reference.path
    if (wanted === undefined) throw new BobbinError('INVALID_ARGUMENT', 'name the entry: bobbin cat PKG KEY')
    const node = opened.index.find(wanted)
    if (node === undefined) throw noSuchKey(opened, wanted)
    const entry = opened.index.entry(node.ino)
    const folder = join(settings.cacheDir, 'tmp')
    mkdirSync(folder, { recursive: true, mode: 0o750 })
    const path = join(folder, `${process.pid}-${randomBytes(6).toString('hex')}.cat`)
    // Also when this process ends in the middle, since the reader has gone.
    const remove = () => rmSync(path, { force: true })
    process.once('exit', remove)
    const workers = new Workers(sourceConfigOf(settings))
    try {
      await atPresentPlace(opened, entry, present =>
        materialize(workers, present, path, {
          cacheDir: settings.cacheDir,
          label: present.key,
          signal,
          onBytes: bytes => progress.update('fetch', bytes, present.size),
        }),
      )
      progress.stop()
      await pipeline(createReadStream(path), process.stdout, { end: false, signal })
    } catch (error) {
      // The reader has seen enough.
      if (systemCode(error) === 'EPIPE') return
      if (signal.aborted) throw new BobbinError('INTERRUPTED', 'interrupted')
      throw error
    } finally {
      await workers.close()
      remove()
      process.off('exit', remove)
    }
  })
}
