/**
 * What a killed process would leave behind in buckets: multipart uploads, which cost money and are seen by nobody.
 *
 *   <cache>/uploads/<pid>-….json     one upload that is under way: bucket, key, id
 *
 * The next push or copy into that bucket, with this cache, ends those of dead processes before its own first upload in parts.
 * It knows them by these notes, not by listing the bucket's uploads: those of somebody else's push must not be ended.
 */
import { randomBytes } from 'node:crypto'
import { mkdir, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { formatPhysicalKey, localError, type S3Key, systemCode } from '../model/index.js'
import { loadSdk } from '../source/client.js'
import { s3Error } from '../source/errors.js'
import { httpStatus } from '../source/failure-class.js'
import { isAlive } from '../store/index.js'
import type { S3Sender } from './s3-sender.js'

export interface Upload {
  readonly bucket: string
  readonly key: string
  readonly uploadId: string
}

export class UnfinishedUploads {
  readonly #folder: string
  /** Buckets whose left-over uploads were ended, or are being. */
  readonly #cleared = new Map<string, Promise<void>>()

  constructor(
    cacheDir: string,
    private readonly sender: S3Sender,
  ) {
    this.#folder = join(cacheDir, 'uploads')
  }

  /** Ends what dead processes have left in the bucket; once per bucket, whoever asks. */
  clear(bucket: string): Promise<void> {
    let cleared = this.#cleared.get(bucket)
    if (cleared === undefined) {
      cleared = this.#endOf(bucket)
      this.#cleared.set(bucket, cleared)
    }
    return cleared
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

  /** A note whose upload could not be ended stays. */
  async #endOf(bucket: string): Promise<void> {
    const names = await readdir(this.#folder).catch(error => {
      if (systemCode(error) === 'ENOENT') return []
      throw localError(`list ${this.#folder}`, error)
    })
    for (const name of names) {
      const pid = Number(/^(\d+)-[0-9a-f]{12}\.json$/.exec(name)?.[1])
      if (!(pid > 0) || isAlive(pid)) continue
      const path = join(this.#folder, name)
      const upload = parse(await readFile(path, 'utf8').catch(() => ''))
      if (upload?.bucket === bucket) await this.#end(upload)
      if (upload === undefined || upload.bucket === bucket) await rm(path, { force: true })
    }
  }

  async #end({ bucket, key, uploadId }: Upload): Promise<void> {
    const object: S3Key = { kind: 's3', bucket, key }
    const { AbortMultipartUploadCommand } = await loadSdk()
    const input = { Bucket: bucket, Key: key, UploadId: uploadId }
    await this.sender
      .send('PutObject', object, undefined, (client, abortSignal) =>
        client.send(new AbortMultipartUploadCommand(input), { abortSignal }),
      )
      .catch(error => {
        if (httpStatus(error) !== 404) throw s3Error(error, formatPhysicalKey(object), false)
      })
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
