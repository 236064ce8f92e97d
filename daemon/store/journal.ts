/**
 * What the store knows about its objects, across restarts: an append-only text file.
 *
 *   bobbin-journal 1
 *   boot <boot id>                  a session begins
 *   + <object id> <size> <stamp>    checked, and looked like this
 *   ? <object id> <size>            there, not checked
 *   - <object id>                   gone
 *   clean                           the session ended well, and the disk has everything
 *
 * Later lines win; the order of the lines is the order of last use, as far as it is known. It is
 * only ever a reason to trust an object less: a line that is damaged or lost leaves its object
 * unchecked, and a stamp holds only for the very file that it was taken from. So no line needs a
 * checksum, none is synced, and none is fatal.
 *
 * Objects are not synced to the disk one by one. So stamps hold within the boot in which they were
 * taken; after another boot they hold only if the last session ended with `clean`.
 */
import { closeSync, openSync, readFileSync, renameSync, rmSync, writeSync } from 'node:fs'
import { open } from 'node:fs/promises'
import { type Log, localError, systemCode } from '../model/index.js'
import { isObjectId, type ObjectId } from './layout.js'
import { isStampOfSize, type Stamp } from './stamp.js'

const HEADER = 'bobbin-journal 1'
const LINES_A_WRITE = 2000

export interface JournalEntry {
  readonly size: number
  readonly stamp: Stamp | undefined
}

export interface LoadedJournal {
  /** Least recently used first. */
  readonly entries: Map<ObjectId, JournalEntry>
  /** Does it say all there is, and do its stamps hold? Otherwise the folders have to be walked. */
  readonly isComplete: boolean
}

/** Identifies this run of the kernel; a random one where the kernel does not tell, so that nothing is trusted. */
export function currentBootId(): string {
  try {
    return readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim()
  } catch {
    return crypto.randomUUID()
  }
}

/** Never fails on what is in the file; on a missing file it finds nothing. */
export async function loadJournal(path: string, bootId: string): Promise<LoadedJournal> {
  const entries = new Map<ObjectId, JournalEntry>()
  let lastBootId = ''
  let isClean = false
  let isOurs = false
  let isSound = true
  const onLine = (line: string, lineNumber: number) => {
    if (lineNumber === 0) {
      isOurs = line === HEADER
      return
    }
    isClean = line === 'clean'
    const [sign, id, size, stamp, rest] = line.split(' ')
    if (isClean) return
    if (sign === 'boot' && id !== undefined && size === undefined) {
      lastBootId = id
      return
    }
    if (id === undefined || !isObjectId(id)) {
      isSound = false
      return
    }
    entries.delete(id)
    const bytes = size !== undefined && /^\d{1,15}$/.test(size) ? Number(size) : undefined
    if (
      sign === '+' &&
      bytes !== undefined &&
      stamp !== undefined &&
      isStampOfSize(stamp, bytes) &&
      rest === undefined
    ) {
      entries.set(id, { size: bytes, stamp })
    } else if (sign === '?' && bytes !== undefined && stamp === undefined) {
      entries.set(id, { size: bytes, stamp: undefined })
    } else if (sign !== '-' || size !== undefined) {
      isSound = false
    }
  }
  const endsWithNewline = await readLines(path, onLine)
  const isTrusted = isOurs && (isClean || lastBootId === bootId)
  if (!isTrusted) for (const [id, { size }] of entries) entries.set(id, { size, stamp: undefined })
  return { entries, isComplete: isOurs && isSound && isClean && endsWithNewline }
}

/** Says whether the last line was a whole one. */
async function readLines(path: string, onLine: (line: string, lineNumber: number) => void): Promise<boolean> {
  const file = await open(path).catch((error: unknown) => {
    if (systemCode(error) === 'ENOENT') return undefined
    throw localError(`read ${path}`, error)
  })
  if (file === undefined) return false
  try {
    let lineNumber = 0
    let rest = ''
    for await (const text of file.createReadStream({ encoding: 'latin1', autoClose: false, highWaterMark: 1 << 20 })) {
      const lines = (rest + text).split('\n')
      rest = lines.pop()!
      for (const line of lines) onLine(line, lineNumber++)
    }
    if (rest !== '') onLine(rest, lineNumber)
    return rest === ''
  } finally {
    await file.close()
  }
}

export function addedLine(id: ObjectId, { size, stamp }: JournalEntry): string {
  return stamp === undefined ? `? ${id} ${size}\n` : `+ ${id} ${size} ${stamp}\n`
}

/** The owner's hand on the journal. A failure to write is logged once and costs checks at the next start. */
export class Journal {
  #fd: number | undefined
  #isBroken = false
  #lines = 0

  constructor(
    private readonly path: string,
    private readonly bootId: string,
    private readonly log: Log,
  ) {}

  /** Lines since the last rewrite. */
  get lines(): number {
    return this.#lines
  }

  added(id: ObjectId, entry: JournalEntry): void {
    this.#append(addedLine(id, entry))
  }

  removed(id: ObjectId): void {
    this.#append(`- ${id}\n`)
  }

  /** Ends the session, after everything else has reached the disk. */
  clean(): void {
    if (!this.#isBroken) this.#append('clean\n')
    this.#close()
  }

  close(): void {
    this.#close()
  }

  /** Begins a session on the journal as it is. */
  resume(): void {
    try {
      this.#fd = openSync(this.path, 'a')
      this.#append(`boot ${this.bootId}\n`)
    } catch (error) {
      this.#fail(error)
    }
  }

  /** Begins anew with these entries, least recently used first. */
  rewrite(entries: Iterable<readonly [ObjectId, JournalEntry]>): void {
    this.#close()
    const next = `${this.path}.new`
    try {
      const fd = openSync(next, 'w', 0o640)
      try {
        let text = `${HEADER}\nboot ${this.bootId}\n`
        let lines = 0
        for (const [id, entry] of entries) {
          text += addedLine(id, entry)
          if (++lines % LINES_A_WRITE === 0) {
            writeAll(fd, text)
            text = ''
          }
        }
        writeAll(fd, text)
      } finally {
        closeSync(fd)
      }
      renameSync(next, this.path)
      this.#fd = openSync(this.path, 'a')
      this.#isBroken = false
      this.#lines = 0
    } catch (error) {
      rmSync(next, { force: true })
      this.#fail(error)
    }
  }

  #append(line: string): void {
    this.#lines++
    if (this.#fd === undefined) return
    try {
      // After a failure half a line may be there: a new line keeps this one whole.
      writeAll(this.#fd, this.#isBroken ? `\n${line}` : line)
    } catch (error) {
      this.#fail(error)
    }
  }

  #fail(error: unknown): void {
    if (!this.#isBroken) {
      this.log.warn({ path: this.path, err: error }, 'cannot write the journal: objects will be checked again')
    }
    this.#isBroken = true
  }

  #close(): void {
    if (this.#fd !== undefined) closeSync(this.#fd)
    this.#fd = undefined
  }
}

function writeAll(fd: number, text: string): void {
  const bytes = Buffer.from(text, 'latin1')
  for (let at = 0; at < bytes.length; ) at += writeSync(fd, bytes, at)
}
