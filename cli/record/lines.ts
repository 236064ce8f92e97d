/** Lines of files that may be larger than any string: one at a time, whatever is in them but a line feed. */
import { type FileHandle, lstat, open } from 'node:fs/promises'
import { BobbinError, localError } from '../../daemon/model/index.js'
import { notOpened, OPEN_FLAGS, refuseUnlessFile } from './record-file.js'

const LINE_FEED = 10
/** Memory that a reader takes, beside the longest line. Bytes. */
const PIECE_BYTES = 256 * 1024

export interface LineOptions {
  /** A longer line is INVALID_ARGUMENT: the file is not what it should be. */
  readonly lineBytesMax: number
  /** Sees every byte of the file, in order. What it is given is good until it returns. */
  onBytes?(piece: Buffer): void
}

/** Without their line feeds; the last line may lack its own. Throws LOCAL_IO, ACCESS_DENIED, INVALID_ARGUMENT, FOLDER_DIFFERS for what is no file. */
export async function* linesOf(path: string, { lineBytesMax, onBytes }: LineOptions): AsyncGenerator<string> {
  // Read into again and again, so that no garbage grows with the file.
  const piece = Buffer.alloc(PIECE_BYTES)
  /** Of a line whose end has not come yet. */
  let begun: Buffer[] = []
  let begunBytes = 0
  const file = await opened(path)
  try {
    for (let read = await readInto(piece, file, path); read > 0; read = await readInto(piece, file, path)) {
      onBytes?.(piece.subarray(0, read))
      let at = 0
      for (let end = piece.indexOf(LINE_FEED); end !== -1 && end < read; end = piece.indexOf(LINE_FEED, at)) {
        yield begun.length === 0 ? piece.toString('utf8', at, end) : textOf([...begun, piece.subarray(at, end)])
        begun = []
        begunBytes = 0
        at = end + 1
      }
      begunBytes += read - at
      if (begunBytes > lineBytesMax)
        throw new BobbinError('INVALID_ARGUMENT', `${path}: it has a line of more than ${lineBytesMax} bytes`)
      if (at < read) begun.push(Buffer.from(piece.subarray(at, read)))
    }
    if (begun.length > 0) yield textOf(begun)
  } finally {
    await file.close()
  }
}

async function opened(path: string): Promise<FileHandle> {
  let file: FileHandle | undefined
  try {
    refuseUnlessFile(path, await lstat(path))
    file = await open(path, OPEN_FLAGS)
    refuseUnlessFile(path, await file.stat())
    return file
  } catch (error) {
    await file?.close()
    throw notOpened(path, error)
  }
}

async function readInto(piece: Buffer, file: FileHandle, path: string): Promise<number> {
  try {
    return (await file.read(piece, 0, piece.length)).bytesRead
  } catch (error) {
    throw localError(`read ${path}`, error)
  }
}

function textOf(parts: readonly Buffer[]): string {
  return Buffer.concat(parts).toString('utf8')
}
