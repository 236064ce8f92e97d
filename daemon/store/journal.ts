/**
 * What the store knows about its objects, across restarts: an append-only text file.
 *
 *   bobbin-journal 2
 *   boot <boot id>                  a session begins
 *   + <object id> <size> <stamp>    checked, and looked like this
 *   = <object id> <size> <stamp>    the same, and the disk has its bytes
 *   ? <object id> <size>            there, not checked
 *   - <object id>                   gone
 *   mark <name>                     the disk is asked for everything above
 *   synced <name>                   it has everything above that mark
 *   clean                           the session ended well, and the disk has everything
 *
 * Later lines win; the order of the lines is the order of last use, as far as it is known. It is
 * only ever a reason to trust an object less: a line that is damaged or lost leaves its object
 * unchecked, and a stamp holds only for the very file that it was taken from. So no line needs a
 * checksum, none is fatal, and none is synced but that which begins a session after `clean`.
 *
 * Within the boot in which it was taken a stamp holds, because the page cache has what the disk may
 * lack. After another boot it holds only if a sync that followed it had no error (write-back.ts): then
 * the disk had the file's bytes, and nobody has written to a file since whose times are the same. That
 * needs a file system on which no deleted file comes back with the bytes of another one (write-order.ts);
 * on others it holds only if the session ended with `clean`, and nothing was deleted since.
 */
import { randomBytes } from 'node:crypto'
import { closeSync, fsyncSync, openSync, readFileSync, renameSync, rmSync, writeSync } from 'node:fs'
import { open } from 'node:fs/promises'
import { type Log, localError, systemCode } from '../model/index.js'
import { isObjectId, type ObjectId } from './layout.js'
import { isStampOfSize, type Stamp } from './stamp.js'

const HEADER = 'bobbin-journal 2'
/** The first version had no `=`, `mark` and `synced`; what it has means the same. */
const HEADERS = ['bobbin-journal 1', HEADER]
const LINES_A_WRITE = 2000

export interface JournalEntry {
  readonly size: number
  readonly stamp: Stamp | undefined
  /** Has a sync told that the disk has the bytes of the stamp? */
  readonly isSynced: boolean
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
export async function loadJournal(
  path: string,
  { bootId, keepsOrder }: { readonly bootId: string; readonly keepsOrder: boolean },
): Promise<LoadedJournal> {
  const reading = new Reading()
  const endsWithNewline = await readLines(path, (line, lineNumber) => reading.take(line, lineNumber))
  const isSameBoot = reading.bootId === bootId
  const entries = new Map<ObjectId, JournalEntry>()
  for (const [id, { size, stamp, lineNumber, isSynced: wasSynced }] of reading.entries) {
    const isSynced = stamp !== undefined && (wasSynced || lineNumber < reading.syncedLines)
    const isTrusted = reading.isOurs && (isSameBoot || (isSynced && (keepsOrder || reading.isClean)))
    entries.set(id, isTrusted ? { size, stamp, isSynced } : { size, stamp: undefined, isSynced: false })
  }
  const isComplete = reading.isOurs && reading.isSound && reading.isClean && endsWithNewline
  return { entries, isComplete }
}

/** What the lines so far have said. */
class Reading {
  readonly entries = new Map<ObjectId, JournalEntry & { readonly lineNumber: number }>()
  bootId = ''
  isOurs = false
  isSound = true
  isClean = false
  /** What was said in fewer lines has reached the disk. */
  syncedLines = 0
  #mark: { readonly name: string; readonly lineNumber: number } | undefined

  take(line: string, lineNumber: number): void {
    if (lineNumber === 0) {
      this.isOurs = HEADERS.includes(line)
      return
    }
    this.isClean = line === 'clean'
    if (this.isClean) this.syncedLines = lineNumber
    else if (!this.#takeFact(line.split(' '), lineNumber)) this.isSound = false
  }

  /** False: it is no line of a journal. */
  #takeFact([sign, name, size, stamp, rest]: string[], lineNumber: number): boolean {
    if (name === undefined) return false
    if (sign === 'boot' || sign === 'mark' || sign === 'synced') {
      if (size !== undefined) return false
      if (sign === 'boot') this.bootId = name
      else if (sign === 'mark') this.#mark = { name, lineNumber }
      // One whose mark was lost, or went with a rewrite, tells nothing.
      else if (this.#mark?.name === name) this.syncedLines = this.#mark.lineNumber
      return true
    }
    if (!isObjectId(name)) return false
    this.entries.delete(name)
    const bytes = size !== undefined && /^\d{1,15}$/.test(size) ? Number(size) : undefined
    const isSynced = sign === '='
    if ((sign === '+' || isSynced) && bytes !== undefined && stamp !== undefined && rest === undefined) {
      if (!isStampOfSize(stamp, bytes)) return false
      this.entries.set(name, { size: bytes, stamp, isSynced, lineNumber })
      return true
    }
    if (sign === '?' && bytes !== undefined && stamp === undefined) {
      this.entries.set(name, { size: bytes, stamp: undefined, isSynced: false, lineNumber })
      return true
    }
    return sign === '-' && size === undefined
  }
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

function addedLine(id: ObjectId, { size, stamp, isSynced }: JournalEntry): string {
  if (stamp === undefined) return `? ${id} ${size}\n`
  return `${isSynced ? '=' : '+'} ${id} ${size} ${stamp}\n`
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

  /** Before the disk is asked for everything; gives the mark for `synced`. */
  mark(): string {
    // Unlike those of any other journal, whose blocks a disk may show in place of ours after a power cut.
    const mark = randomBytes(8).toString('hex')
    this.#append(`mark ${mark}\n`)
    return mark
  }

  /** The disk has everything that was written before the mark. */
  synced(mark: string): void {
    this.#append(`synced ${mark}\n`)
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
      // Before anything is deleted: a `clean` that outlives a power cut would speak for what was deleted.
      fsyncSync(this.#fd)
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
