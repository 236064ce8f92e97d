/**
 * A file of the folder that is pushed: open, and guarded. Whatever is read of it is the file that was opened, and
 * one that changes while it is read is an error, not a wrong hash.
 */
import { constants } from 'node:fs'
import { type FileHandle, open } from 'node:fs/promises'
import { BobbinError, type FileToStore, localError, systemCode } from '../../model/index.js'
import { hashObject } from '../../work/hash-object.js'
import type { Workers } from '../../work/workers.js'

const READ_BYTES = 1 << 20

export class LocalFile implements FileToStore {
  #hash: Promise<string> | undefined

  private constructor(
    private readonly handle: FileHandle,
    private readonly path: string,
    private readonly workers: Workers,
    private readonly stamp: string,
    readonly size: number,
  ) {}

  /** Follows links. */
  static async open(path: string, workers: Workers): Promise<LocalFile> {
    let handle: FileHandle
    try {
      // A fifo must not make us wait, a terminal must not become ours.
      handle = await open(path, constants.O_RDONLY | constants.O_NONBLOCK | constants.O_NOCTTY)
    } catch (error) {
      if (systemCode(error) === 'ENOENT') throw changed(path, 'it is gone')
      throw localError(`read ${path}`, error)
    }
    try {
      const stats = await handle.stat({ bigint: true })
      if (!stats.isFile()) throw changed(path, 'it is no longer a file')
      return new LocalFile(handle, path, workers, stampOf(stats), Number(stats.size))
    } catch (error) {
      await handle.close()
      throw localError(`read ${path}`, error)
    }
  }

  async *read(): AsyncGenerator<Uint8Array> {
    for (let at = 0; at < this.size; ) {
      // A buffer of its own each time: the consumer may keep the chunk.
      const buffer = Buffer.allocUnsafeSlow(Math.min(READ_BYTES, this.size - at))
      const bytesRead = await this.#readAt(buffer, at)
      if (bytesRead === 0) throw changed(this.path, `it was cut to ${at} bytes`)
      at += bytesRead
      // Before the last chunk is anybody's, since some consumers do not ask for what comes behind it.
      if (at >= this.size) await this.#requireUnchanged()
      yield buffer.subarray(0, bytesRead)
    }
    await this.#requireUnchanged()
  }

  async #readAt(buffer: Buffer, at: number): Promise<number> {
    try {
      return (await this.handle.read(buffer, 0, buffer.length, at)).bytesRead
    } catch (error) {
      throw localError(`read ${this.path}`, error)
    }
  }

  hash(signal?: AbortSignal): Promise<string> {
    this.#hash ??= this.#calculateHash(signal)
    return this.#hash
  }

  async #calculateHash(signal: AbortSignal | undefined): Promise<string> {
    const hex = await hashObject(this.workers, this.handle.fd, 'sha2-256-chunked', this.size, { signal })
    await this.#requireUnchanged()
    return hex
  }

  async #requireUnchanged(): Promise<void> {
    if (stampOf(await this.handle.stat({ bigint: true })) !== this.stamp) {
      throw changed(this.path, 'its size or its times are not what they were')
    }
  }

  async close(): Promise<void> {
    await this.handle.close()
  }
}

/** Whoever writes to a file, by whatever means, moves its ctime. */
function stampOf({ size, mtimeNs, ctimeNs }: { size: bigint; mtimeNs: bigint; ctimeNs: bigint }): string {
  return `${size}:${mtimeNs}:${ctimeNs}`
}

function changed(path: string, how: string): BobbinError {
  return new BobbinError(
    'LOCAL_IO',
    `${path} changed while it was pushed, ${how}: push again when no program writes to it`,
  )
}
