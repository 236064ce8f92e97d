/**
 * What a killed process would leave behind in buckets: multipart uploads, which cost money and are seen by nobody.
 *
 *   <cache>/uploads/<pid>-….json     one upload that is under way: bucket, key, id
 *
 * The next push to that bucket from this machine ends those of dead processes. It knows them by these notes, not by
 * listing the bucket's uploads: those of somebody else's push must not be ended.
 */
import { randomBytes } from 'node:crypto'
import { mkdir, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { localError, systemCode } from '../model/index.js'
import { isAlive } from '../store/index.js'

export interface Upload {
  readonly bucket: string
  readonly key: string
  readonly uploadId: string
}

export class UnfinishedUploads {
  readonly #folder: string

  constructor(cacheDir: string) {
    this.#folder = join(cacheDir, 'uploads')
  }

  /** Returns what takes the note away. */
  async note(upload: Upload): Promise<() => Promise<void>> {
    const path = join(this.#folder, `${process.pid}-${randomBytes(6).toString('hex')}.json`)
    try {
      await mkdir(this.#folder, { recursive: true, mode: 0o750 })
      await writeFile(path, JSON.stringify(upload), { mode: 0o640 })
    } catch (error) {
      throw localError(`write ${path}`, error)
    }
    return () => rm(path, { force: true })
  }

  /** Those of dead processes; `end` ends one. A note whose upload could not be ended stays. */
  async endOf(bucket: string, end: (upload: Upload) => Promise<void>): Promise<void> {
    const names = await readdir(this.#folder).catch(error => {
      if (systemCode(error) === 'ENOENT') return []
      throw localError(`list ${this.#folder}`, error)
    })
    for (const name of names) {
      const pid = Number(/^(\d+)-[0-9a-f]{12}\.json$/.exec(name)?.[1])
      if (!(pid > 0) || isAlive(pid)) continue
      const path = join(this.#folder, name)
      const upload = parse(await readFile(path, 'utf8').catch(() => ''))
      if (upload?.bucket === bucket) await end(upload)
      if (upload === undefined || upload.bucket === bucket) await rm(path, { force: true })
    }
  }
}

function parse(text: string): Upload | undefined {
  try {
    const { bucket, key, uploadId } = JSON.parse(text) as Upload
    return [bucket, key, uploadId].every(value => typeof value === 'string') ? { bucket, key, uploadId } : undefined
  } catch {
    // Cut while it was written, so there is no telling which upload it was.
    return undefined
  }
}
