/**
 * Content-addressed objects on disk, shared by packages and revisions.
 *
 * An object is here when it is known to be what its name says. It comes in by `reserve` (room is
 * made first: the quota and the free-space floor are hard), is written to a temporary file by the
 * fetcher, which hashes it while it streams, and is admitted by a rename. It goes when room is
 * needed, in the order of eviction-order.ts, never one that is open or pinned.
 *
 * A checked object is remembered by its stamp (stamp.ts), in memory and in the journal
 * (journal.ts). Whatever has no stamp, or another one than the file has now, is hashed before its
 * next use; what does not hash to its name is logged, counted and removed, and the caller fetches
 * it again. So is what the disk may have lost (unsynced.ts). Opening never follows a symbolic link and never waits for a fifo.
 *
 * File calls on objects are synchronous where they take microseconds (open, fstat, rename): the
 * thread pool costs ten times that. Reading, deleting and walking are not.
 */
import {
  type BigIntStats,
  closeSync,
  constants,
  existsSync,
  fstatSync,
  lstatSync,
  mkdirSync,
  openSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import {
  BobbinError,
  formatBytes,
  hasCode,
  type Log,
  localError,
  type ObjectSpec,
  silentLog,
  systemCode,
  throwIfAborted,
} from '../model/index.js'
import { type CacheRoom, keepShare, limitsPath, type RoomHold } from './cache-room.js'
import { pruneCompiled } from './compiled-files.js'
import { EvictionOrder } from './eviction-order.js'
import { type HashFile, type HashFileOptions, hashFile } from './hash-file.js'
import { currentBootId, Journal, type JournalEntry } from './journal.js'
import { type ObjectId, objectId, objectPath, objectsFolder, temporaryFolder } from './layout.js'
import { recoverObjects } from './recover.js'
import { Reservation } from './reservation.js'
import { type HeldRoom, Room } from './room.js'
import { type Stamp, stampOf } from './stamp.js'
import { Unsynced } from './unsynced.js'
import { type CacheUsage, measureUsage, NO_USAGE } from './usage.js'
import { WriteBack } from './write-back.js'
import { keepsWriteOrder } from './write-order.js'

/** An open object: its bytes were checked. */
export interface ObjectHandle {
  /** Open for reading. Handles of one object share it: use positions. */
  readonly fd: number
  readonly path: string
  /** Bytes. */
  readonly size: number
  close(): Promise<void>
}

/** An open object of the store; it is not evicted until it is closed. */
export interface StoredObject extends ObjectHandle {
  /** Another handle of the same object. */
  clone(): StoredObject
  /** The same object, also held when this is closed. */
  pin(): Pin
}

/** An object that is here, checked and not evicted until it is released. Whoever reads it opens its path. */
export interface Pin {
  /** Bytes. */
  readonly size: number
  /** Once. `distance`: how many bytes will be taken into use before this object is again, where that is known. */
  release(distance?: number): void
}

export interface StoreOptions {
  /** Quota: all objects, what is being fetched, and what lies in the cache beside them. Bytes. Default: four fifths of what the disk could give. */
  readonly bytesMax?: number | undefined
  /** What is left to others on the disk. Bytes. Default: a twentieth of the disk, at most 2 GiB. */
  readonly freeBytesMin?: number | undefined
  readonly log?: Log
  /**
   * Somebody else who opens objects by their paths. An object is deleted when it has answered `gone`:
   * then it holds nothing of it and asks before the next use. Default: there is nobody.
   */
  readonly letGo?: LetGo | undefined
  /** How much of the store they have open, for the error of a full store. Bytes. Default: nothing. */
  readonly openElsewhere?: (() => Promise<number>) | undefined
  /** How objects are hashed again. Default: in this thread. */
  readonly hashFile?: HashFile
  /** bobbin-fuse, which can sync through a descriptor that we hold. Default: sync(1). */
  readonly syncProgram?: string | undefined
  /** Does the file system keep deletions before reuse? Default: what is known of it (write-order.ts). */
  readonly keepsOrder?: boolean | undefined
  /** The disk is asked so long after an object came in. Milliseconds; default: 5000. */
  readonly syncAfterMs?: number | undefined
}

/** `open`: it stays. `used`: it was used since the last time it was asked for, so others go first. */
export type LetGo = (ids: readonly ObjectId[]) => Promise<readonly ('gone' | 'open' | 'used')[]>

export interface StoreStats {
  readonly bytes: number
  readonly limitBytes: number
  readonly objects: number
  readonly pinnedBytes: number
  readonly pinnedObjects: number
  /** Room that fetches under way have taken. */
  readonly reservedBytes: number
  /** What lies in the cache beside objects, as it was measured last. */
  readonly usage: CacheUsage
  readonly evictions: number
  /** Objects in the store that turned out not to be what their name says. */
  readonly refused: number
  /** Objects that were given up because the disk had lost what was written to it. */
  readonly lost: number
}

/** Who calls has acquired the ownership of the cache. */
export async function openStore(cacheDir: string, options: StoreOptions = {}): Promise<ObjectStore> {
  const log = options.log ?? silentLog
  const bootId = currentBootId()
  const folder = objectsFolder(cacheDir)
  makeFolders(cacheDir)
  const writeBack = new WriteBack(folder, options.syncProgram)
  const journalPath = join(folder, 'journal')
  const keepsOrder = options.keepsOrder ?? keepsWriteOrder(folder)
  const { entries, isComplete } = await recoverObjects(cacheDir, journalPath, { bootId, keepsOrder }, log)
  const journal = new Journal(journalPath, bootId, log)
  const usage = await measureUsage(cacheDir).catch(error => {
    log.warn({ error: String(error) }, 'cannot look at what the cache takes')
    return NO_USAGE
  })
  const store = new ObjectStore(cacheDir, entries, journal, writeBack, usage, options)
  store.begin(isComplete)
  return store
}

function makeFolders(cacheDir: string): void {
  for (const path of [objectsFolder(cacheDir), temporaryFolder(cacheDir)]) {
    try {
      mkdirSync(path, { recursive: true, mode: 0o750 })
    } catch (error) {
      throw localError(`make the folder ${path}`, error)
    }
  }
}

/** One object that is here. */
interface ObjectRecord {
  readonly id: ObjectId
  /** Of the file. Bytes. */
  size: number
  /** `undefined`: has to be hashed before it is used. */
  stamp: Stamp | undefined
  /** Has the disk the bytes of the stamp, as far as it can be told? */
  isSynced: boolean
  /** Handles, pins and checks under way. Above zero: it stays. */
  pins: number
  /** Those of them that use its descriptor. */
  opens: number
  /** Bytes until its next use, from when it was last let go. */
  distance: number | undefined
  /** Open while there are handles. */
  fd: number | undefined
  checking: Promise<boolean> | undefined
}

/** A journal of mostly dead lines is written anew; the constant spares small stores. */
const DEAD_LINES_MAX = 10_000
/** Objects that are asked for at once before they are deleted. */
const EVICT_BATCH = 256
/** Others write to the cache, too: logs, and packages that were compiled while no daemon ran. */
const SETTLE_MS = 60_000

export class ObjectStore implements CacheRoom {
  readonly #records = new Map<ObjectId, ObjectRecord>()
  readonly #resting = new EvictionOrder<ObjectRecord>()
  readonly #room: Room
  readonly #log: Log
  readonly #hashFile: HashFile
  readonly #letGo: LetGo | undefined
  readonly #openElsewhere: (() => Promise<number>) | undefined
  readonly #journal: Journal
  readonly #writeBack: WriteBack
  readonly #unsynced: Unsynced<ObjectRecord>
  readonly #cacheDir: string
  /** Reservations are made one after the other: each sees the room that the one before has left. */
  #lastTurn: Promise<unknown> = Promise.resolve()
  #bytes = 0
  #pinnedBytes = 0
  #pinnedObjects = 0
  #evictions = 0
  #refused = 0
  #lost = 0
  #temporaries = 0
  readonly #settling: NodeJS.Timeout

  /** For `openStore`. Entries: least recently used first. */
  constructor(
    cacheDir: string,
    entries: ReadonlyMap<ObjectId, JournalEntry>,
    journal: Journal,
    writeBack: WriteBack,
    usage: CacheUsage,
    options: StoreOptions,
  ) {
    this.#cacheDir = cacheDir
    this.#journal = journal
    this.#log = options.log ?? silentLog
    this.#hashFile = options.hashFile ?? hashFile
    this.#letGo = options.letGo
    this.#openElsewhere = options.openElsewhere
    this.#writeBack = writeBack
    this.#unsynced = new Unsynced({
      writeBack,
      mark: () => journal.mark(),
      onSynced: (records, mark) => {
        for (const record of records) record.isSynced = true
        journal.synced(mark)
      },
      onLost: records => void this.#giveUp([...records]),
      syncAfterMs: options.syncAfterMs,
    })
    for (const [id, { size, stamp, isSynced }] of entries) {
      const record = newRecord(id, size, stamp)
      record.isSynced = isSynced
      // Of a session that was killed: nobody has asked the disk about it.
      if (stamp !== undefined && !isSynced) this.#unsynced.add(record)
      this.#records.set(id, record)
      this.#resting.add(record)
      this.#bytes += size
    }
    this.#room = new Room(cacheDir, this.#bytes, usage, options)
    this.#settling = setInterval(() => void this.settle(), SETTLE_MS)
    this.#settling.unref()
  }

  /** For `openStore`: starts the journal of this session. */
  begin(isComplete: boolean): void {
    this.#sayLimits()
    if (isComplete) this.#journal.resume()
    else this.#journal.rewrite(this.#entriesByLastUse())
  }

  /** For those who write to the cache while no daemon runs, or cannot reach it, and for bobbin-fuse, which answers `df`. */
  #sayLimits(): void {
    const { bytesMax: limitBytes, freeBytesMin, otherBytes } = this.#room
    const path = limitsPath(this.#cacheDir)
    // native/session/cache_room.cpp reads these four, in this order.
    const text = `${JSON.stringify({ limitBytes, freeBytesMin, objectBytes: this.#bytes, otherBytes })}\n`
    try {
      writeFileSync(`${path}.new`, text, { mode: 0o640 })
      renameSync(`${path}.new`, path)
    } catch (error) {
      this.#log.warn({ path, error: String(error) }, 'cannot write down the limits of the cache')
    }
  }

  /** What is known of an object, without touching the disk. */
  stateOf(spec: ObjectSpec): 'absent' | 'unchecked' | 'checked' {
    const record = this.#records.get(objectId(spec))
    if (record === undefined) return 'absent'
    return record.stamp === undefined ? 'unchecked' : 'checked'
  }

  /** Opens an object that is here and needs no hashing. Throws OBJECT_CORRUPT as `open` does. */
  openNow(spec: ObjectSpec): StoredObject | undefined {
    const record = this.#records.get(objectId(spec))
    if (record === undefined || !this.#openFile(record)) return undefined
    if (record.stamp === undefined) {
      this.#closeFile(record)
      return undefined
    }
    try {
      this.#checkSize(record, spec)
    } catch (error) {
      this.#closeFile(record)
      throw error
    }
    this.#pin(record)
    return this.#handle(record)
  }

  /**
   * Holds an object that is here and needs no hashing; some microseconds, and no descriptor. Throws OBJECT_CORRUPT as
   * `open` does.
   */
  pinNow(spec: ObjectSpec): Pin | undefined {
    const record = this.#records.get(objectId(spec))
    if (record?.stamp === undefined || !this.#isUntouched(record)) return undefined
    this.#checkSize(record, spec)
    this.#pin(record)
    return this.#pinOf(record)
  }

  /** Of an object's file. Bytes; `undefined`: it is not here. */
  sizeOf(id: ObjectId): number | undefined {
    return this.#records.get(id)?.size
  }

  /**
   * Opens an object, after hashing it again where that is needed; `undefined`: it has to be fetched.
   * Throws OBJECT_CORRUPT when the object is sound and has another size than the manifest says, and INTERRUPTED.
   */
  async open(spec: ObjectSpec, options: HashFileOptions = {}): Promise<StoredObject | undefined> {
    const id = objectId(spec)
    for (;;) {
      const record = this.#records.get(id)
      if (record === undefined) return undefined
      // The file may change while others have it open: it may need more than one check, but ends as damaged or sound.
      const object = this.openNow(spec)
      if (object !== undefined) return object
      if (this.#records.get(id) !== record) continue
      record.checking ??= this.#check(record, spec, options).finally(() => {
        record.checking = undefined
      })
      try {
        if (!(await record.checking)) return undefined
      } catch (error) {
        // Whoever began it has given up; we have not.
        if (!hasCode(error, 'INTERRUPTED') || options.signal?.aborted) throw error
      }
    }
  }

  /**
   * Makes room for an object and a temporary file to write it to. Waits for other fetches where
   * what they have reserved may come free; throws STORE_FULL when there can be no room.
   */
  reserve(bytes: number, options: { readonly signal?: AbortSignal | undefined } = {}): Promise<Reservation> {
    const turn = this.#lastTurn.then(() => this.#reserve(bytes, options.signal))
    this.#lastTurn = turn.catch(() => {})
    return turn
  }

  async #reserve(bytes: number, signal: AbortSignal | undefined): Promise<Reservation> {
    await this.#makeRoom(bytes, `${bytes} bytes`, signal)
    return this.#makeReservation(bytes)
  }

  async #makeRoom(bytes: number, what: string, signal: AbortSignal | undefined): Promise<void> {
    for (;;) {
      throwIfAborted(signal)
      const missing = this.#room.missing(bytes, this.#bytes)
      if (missing <= 0) return
      // A reservation is over soon, though its object may then stay open.
      if (missing <= this.#bytes - this.#pinnedBytes && (await this.#evict(missing)) > 0) continue
      if (this.#room.reservations.size > 0) await this.#room.change(signal)
      else if ((await this.#prune(missing)) === 0) {
        const openElsewhere = (await this.#openElsewhere?.().catch(() => 0)) ?? 0
        throw this.#room.fullError(what, bytes, this.#bytes, this.#pinnedBytes + openElsewhere)
      }
    }
  }

  /** Compiled packages and plans that nobody uses; says what came free. */
  async #prune(bytes: number): Promise<number> {
    const freed = await pruneCompiled(this.#cacheDir, bytes)
    if (freed > 0) {
      this.#log.info({ bytes: freed }, `deleted ${formatBytes(freed)} of compiled packages and plans that nobody uses`)
      await this.#measure()
    }
    return freed
  }

  /** Room for files that are no objects; whoever writes them asks first (store/cache-room.ts). */
  hold(what: string): RoomHold {
    const held: HeldRoom = { bytes: 0, unwrittenBytes: 0 }
    this.#room.holds.add(held)
    return {
      grow: async bytes => {
        if (bytes <= held.bytes) return
        let elsewhere = 0
        for (const other of this.#room.holds) if (other !== held) elsewhere += other.bytes
        await keepShare(this.#cacheDir, this.#room.bytesMax, { bytes, what, elsewhere })
        const turn = this.#lastTurn.then(async () => {
          const before = held.bytes
          held.bytes = bytes
          held.unwrittenBytes = bytes - before
          try {
            await this.#makeRoom(0, `${what} (${formatBytes(bytes)})`, undefined)
          } catch (error) {
            held.bytes = before
            held.unwrittenBytes = 0
            throw error
          }
        })
        this.#lastTurn = turn.catch(() => {})
        await turn
      },
      end: () => {
        if (!this.#room.holds.has(held)) return
        // It counts until the files have been seen where they lie.
        void this.#measure().finally(() => {
          this.#room.holds.delete(held)
          this.#room.changed()
        })
      },
    }
  }

  /** Other limits from now on, where they are given. Evicts down to a lower one. */
  async limit({ bytesMax, freeBytesMin }: Pick<StoreOptions, 'bytesMax' | 'freeBytesMin'>): Promise<void> {
    this.#room.bytesMax = bytesMax ?? this.#room.bytesMax
    this.#room.freeBytesMin = freeBytesMin ?? this.#room.freeBytesMin
    this.#sayLimits()
    this.#room.changed()
    await this.settle()
  }

  /** Looks at what lies in the cache beside objects, and makes room where that has become too much. Each minute, and when asked. */
  async settle(): Promise<void> {
    await this.#measure()
    const turn = this.#lastTurn.then(() => this.#makeRoom(0, 'what lies in it', undefined))
    this.#lastTurn = turn.catch(() => {})
    await turn.catch(error => this.#log.warn({ error: String(error) }, 'the cache is over its limit'))
    this.#sayLimits()
  }

  async #measure(): Promise<void> {
    try {
      this.#room.usage = await measureUsage(this.#cacheDir)
    } catch (error) {
      this.#log.warn({ error: String(error) }, 'cannot look at what the cache takes')
    }
  }

  #makeReservation(bytes: number): Reservation {
    this.#mendFolders()
    const reservation = new Reservation(this.#temporaryPath('object'), bytes, ended => this.#room.giveBack(ended))
    this.#room.reservations.add(reservation)
    return reservation
  }

  /**
   * Takes in the reservation's file, whose bytes the caller has hashed, and opens it. The
   * reservation is over, whatever happens.
   */
  admit(spec: ObjectSpec, reservation: Reservation): StoredObject {
    const id = objectId(spec)
    const path = objectPath(this.#cacheDir, id)
    let fd: number | undefined
    try {
      fd = openObject(reservation.path)
      const [stats, written] = [fstatSync(fd), fstatSync(reservation.fd)]
      if (stats.ino !== written.ino || stats.size !== spec.size) {
        throw new BobbinError('LOCAL_IO', `${reservation.path} was changed while it was written`)
      }
      this.#rename(reservation.path, path)
    } catch (error) {
      if (fd !== undefined) closeSync(fd)
      reservation.discard()
      throw localError(`write ${path}`, error)
    }
    const present = this.#records.get(id)
    if (present !== undefined) this.#forget(present)
    // A rename moves the ctime, so this is the time for the stamp.
    const stamp = stampOf(fstatSync(fd, { bigint: true }))
    const record = newRecord(id, spec.size, stamp, fd)
    this.#records.set(id, record)
    this.#bytes += record.size
    this.#pin(record)
    this.#journal.added(id, record)
    this.#unsynced.add(record)
    this.#compactJournal()
    reservation.end()
    return this.#handle(record)
  }

  /** What the cache could take, where all its objects gave way. Throws LOCAL_IO. */
  roomBytes(): number {
    return this.#room.inAll(this.#bytes)
  }

  stats(): StoreStats {
    return {
      bytes: this.#bytes,
      limitBytes: this.#room.bytesMax,
      objects: this.#records.size,
      pinnedBytes: this.#pinnedBytes,
      pinnedObjects: this.#pinnedObjects,
      reservedBytes: this.#room.reservedBytes,
      usage: this.#room.usage,
      evictions: this.#evictions,
      refused: this.#refused,
      lost: this.#lost,
    }
  }

  /** Ends well: waits until the disk has everything, so that nothing needs a check after the next boot. */
  async close(): Promise<void> {
    clearInterval(this.#settling)
    for (const reservation of [...this.#room.reservations]) reservation.discard()
    this.#journal.rewrite(this.#entriesByLastUse())
    if ((await this.#unsynced.close()) === 'synced') this.#journal.clean()
    else this.#journal.close()
    this.#writeBack.close()
  }

  *#entriesByLastUse(): Iterable<readonly [ObjectId, JournalEntry]> {
    for (const record of this.#resting.values()) yield [record.id, record]
    for (const [id, record] of this.#records) if (record.pins > 0) yield [id, record]
  }

  #compactJournal(): void {
    if (this.#journal.lines > DEAD_LINES_MAX + 2 * this.#records.size) this.#journal.rewrite(this.#entriesByLastUse())
  }

  /** Opens the record's file and drops its stamp if the file has another one. False: the object is gone. */
  #openFile(record: ObjectRecord): boolean {
    let stats: BigIntStats
    try {
      record.fd ??= openObject(objectPath(this.#cacheDir, record.id))
      stats = fstatSync(record.fd, { bigint: true })
    } catch (error) {
      this.#closeFile(record)
      const code = systemCode(error) ?? ''
      if (['EMFILE', 'ENFILE', 'ENOMEM', 'EACCES', 'EIO'].includes(code)) {
        throw localError(`open ${objectPath(this.#cacheDir, record.id)}`, error)
      }
      // Deleted by hand, or something else lies in its place (ELOOP: a symbolic link; ENXIO: a socket).
      if (code !== 'ENOENT') this.#logDamage(record, `cannot be opened (${code})`)
      this.#drop(record)
      return false
    }
    if (!stats.isFile()) {
      this.#logDamage(record, 'is not a regular file')
      this.#closeFile(record)
      this.#drop(record)
      return false
    }
    if (record.stamp !== undefined && record.stamp !== stampOf(stats)) {
      this.#log.warn({ object: record.id }, 'a cached object was touched, it is checked again')
      record.stamp = undefined
    }
    return true
  }

  /** Without opening it: is it the file that was checked? */
  #isUntouched(record: ObjectRecord): boolean {
    try {
      const path = objectPath(this.#cacheDir, record.id)
      const stats = lstatSync(path, { bigint: true, throwIfNoEntry: false })
      return stats?.isFile() === true && stampOf(stats) === record.stamp
    } catch {
      // Whoever opens it is told why.
      return false
    }
  }

  /** Closes the record's file unless somebody uses it. */
  #closeFile(record: ObjectRecord): void {
    if (record.opens > 0 || record.fd === undefined) return
    closeSync(record.fd)
    record.fd = undefined
  }

  /** Hashes an object that is here. False: it was not what its name says, and is gone. */
  async #check(record: ObjectRecord, { hash }: ObjectSpec, options: HashFileOptions): Promise<boolean> {
    if (!this.#openFile(record)) return false
    const fd = record.fd!
    this.#pin(record)
    record.opens++
    try {
      const before = fstatSync(fd, { bigint: true })
      const size = Number(before.size)
      const found = await this.#hashFile(fd, hash.type, size, options)
      const isUnchanged = stampOf(fstatSync(fd, { bigint: true })) === stampOf(before)
      if (found === hash.hex && isUnchanged) {
        this.#resize(record, size)
        record.stamp = stampOf(before)
        record.isSynced = false
        if (this.#records.get(record.id) === record) {
          this.#journal.added(record.id, record)
          // Whoever touched the file may have written to it.
          this.#unsynced.add(record)
        }
        return true
      }
      const reason = isUnchanged ? 'does not hash to its name' : 'was changed while it was checked'
      this.#logDamage(record, reason, { expected: hash.hex, found })
      if (this.#records.get(record.id) === record) this.#drop(record)
      return false
    } finally {
      record.opens--
      this.#unpin(record)
    }
  }

  #logDamage(record: ObjectRecord, reason: string, fields: object = {}): void {
    this.#refused++
    this.#log.error({ object: record.id, ...fields }, `a cached object ${reason}: it is removed`)
  }

  #checkSize(record: ObjectRecord, spec: ObjectSpec): void {
    if (record.size === spec.size) return
    throw new BobbinError(
      'OBJECT_CORRUPT',
      `the manifest says ${spec.size} bytes, but the object that has its hash has ${record.size}`,
    )
  }

  /** Takes over one pin. */
  #handle(record: ObjectRecord): StoredObject {
    const fd = record.fd!
    record.opens++
    let isOpen = true
    const another = () => {
      if (!isOpen) throw new BobbinError('INTERNAL', `the handle of ${record.id} is closed`)
      record.pins++
    }
    return {
      fd,
      path: objectPath(this.#cacheDir, record.id),
      size: record.size,
      clone: () => {
        another()
        return this.#handle(record)
      },
      pin: () => {
        another()
        return this.#pinOf(record)
      },
      close: async () => {
        if (!isOpen) return
        isOpen = false
        record.opens--
        this.#unpin(record)
      },
    }
  }

  /** Takes over one pin. */
  #pinOf(record: ObjectRecord): Pin {
    let isHeld = true
    return {
      size: record.size,
      release: distance => {
        if (!isHeld) return
        isHeld = false
        // Of several who held it, the one who needs it first.
        if (distance !== undefined) record.distance = Math.min(distance, record.distance ?? distance)
        this.#unpin(record)
      },
    }
  }

  #pin(record: ObjectRecord): void {
    if (record.pins++ > 0) return
    this.#resting.delete(record)
    this.#resting.advance(record.size)
    record.distance = undefined
    this.#pinnedBytes += record.size
    this.#pinnedObjects++
  }

  #unpin(record: ObjectRecord): void {
    this.#closeFile(record)
    if (--record.pins > 0) return
    if (this.#records.get(record.id) !== record) return
    this.#pinnedBytes -= record.size
    this.#pinnedObjects--
    this.#resting.add(record, record.distance)
    this.#room.changed()
  }

  #resize(record: ObjectRecord, size: number): void {
    if (this.#records.get(record.id) === record) {
      this.#bytes += size - record.size
      this.#pinnedBytes += size - record.size
    }
    record.size = size
  }

  /** Takes a record out of the books; its handles stay good. */
  #forget(record: ObjectRecord): void {
    this.#records.delete(record.id)
    this.#unsynced.delete(record)
    this.#bytes -= record.size
    if (record.pins > 0) {
      this.#pinnedBytes -= record.size
      this.#pinnedObjects--
    } else {
      this.#resting.delete(record)
    }
    this.#room.changed()
  }

  /** Forgets an object and deletes whatever lies in its place. */
  #drop(record: ObjectRecord): void {
    this.#forget(record)
    rmSync(objectPath(this.#cacheDir, record.id), { recursive: true, force: true })
    this.#journal.removed(record.id)
  }

  /**
   * The disk has lost something that was written to it, perhaps of these: they are deleted, so that nobody opens
   * them any more. Those who have one open keep what the page cache has of it.
   */
  async #giveUp(records: readonly ObjectRecord[]): Promise<void> {
    this.#log.error(
      { cache: this.#cacheDir, objects: records.length },
      'the disk of the cache has lost what was written to it: objects that came in since it last had everything are fetched again',
    )
    this.#lost += records.length
    for (const record of records) if (this.#records.get(record.id) === record) this.#drop(record)
    // The journal may have lost lines, too.
    this.#journal.rewrite(this.#entriesByLastUse())
    for (let at = 0; at < records.length; at += EVICT_BATCH) {
      const ids = records.slice(at, at + EVICT_BATCH).map(({ id }) => id)
      // Whoever has files of them at hand closes them. Those used lately are let go when asked a second time.
      for (let turn = 0; turn < 2; turn++) await this.#letGo?.(ids).catch(() => {})
    }
  }

  /** Bytes that it freed: fewer than asked for when the rest is open elsewhere. */
  async #evict(bytes: number): Promise<number> {
    const deletions: Promise<void>[] = []
    const kept: ObjectRecord[] = []
    let freed = 0
    // Those in use come round a second time, then it is their turn.
    for (let asked = 0; freed < bytes && asked <= 2 * this.#records.size + EVICT_BATCH; ) {
      const batch = this.#candidates(bytes - freed)
      if (batch.length === 0) break
      asked += batch.length
      const outcomes = await this.#letGo?.(batch.map(({ id }) => id))
      for (const [i, record] of batch.entries()) {
        // While we waited it was opened here, or has gone.
        if (record.pins > 0 || this.#records.get(record.id) !== record) continue
        const outcome = outcomes?.[i] ?? 'gone'
        if (outcome === 'used') this.#resting.add(record)
        else if (outcome === 'open') kept.push(record)
        else {
          freed += record.size
          this.#resting.delete(record)
          this.#records.delete(record.id)
          this.#unsynced.delete(record)
          this.#bytes -= record.size
          this.#evictions++
          deletions.push(this.#room.remove(objectPath(this.#cacheDir, record.id), this.#temporaryPath('evicted')))
          this.#journal.removed(record.id)
        }
      }
    }
    for (const record of kept) {
      if (record.pins === 0 && this.#records.get(record.id) === record) this.#resting.add(record)
    }
    this.#compactJournal()
    if (deletions.length > 0)
      this.#log.info({ objects: deletions.length, bytes: freed }, `evicted ${formatBytes(freed)}`)
    await Promise.all(deletions)
    return freed
  }

  /** The first to go, for so many bytes, taken out of the order. */
  #candidates(bytes: number): ObjectRecord[] {
    const batch: ObjectRecord[] = []
    for (let sum = 0; sum < bytes && batch.length < EVICT_BATCH; ) {
      const record = this.#resting.take()
      if (record === undefined) break
      batch.push(record)
      sum += record.size
    }
    return batch
  }

  /** Objects that were checked and not touched since, as far as is known without looking. */
  *verified(): Generator<{ readonly id: ObjectId; readonly stamp: Stamp }> {
    for (const { id, stamp } of this.#records.values()) if (stamp !== undefined) yield { id, stamp }
  }

  #rename(from: string, to: string): void {
    try {
      renameSync(from, to)
    } catch (error) {
      const code = systemCode(error)
      if (code === 'ENOENT') mkdirSync(join(to, '..'), { recursive: true, mode: 0o750 })
      // A folder in its place can only be rubbish.
      else if (code === 'EISDIR' || code === 'ENOTEMPTY' || code === 'EEXIST')
        rmSync(to, { recursive: true, force: true })
      else throw error
      renameSync(from, to)
    }
  }

  /**
   * Makes folders again that somebody has deleted, and forgets the objects that went with them. Without the cache itself nothing is made:
   * then the daemon ends (control/cache-watch.ts).
   */
  #mendFolders(): void {
    const folders = [objectsFolder(this.#cacheDir), temporaryFolder(this.#cacheDir)]
    if (folders.every(path => existsSync(path)) || !existsSync(this.#cacheDir)) return
    this.#log.warn({ cache: this.#cacheDir }, 'somebody has deleted folders of the cache: they are made again')
    makeFolders(this.#cacheDir)
    for (const record of [...this.#records.values()]) {
      if (!existsSync(objectPath(this.#cacheDir, record.id))) this.#forget(record)
    }
    // The journal went with them.
    this.#journal.rewrite(this.#entriesByLastUse())
  }

  #temporaryPath(kind: 'object' | 'evicted'): string {
    this.#temporaries++
    return join(temporaryFolder(this.#cacheDir), `${process.pid}-${this.#temporaries}.${kind}`)
  }
}

function newRecord(id: ObjectId, size: number, stamp: Stamp | undefined, fd?: number): ObjectRecord {
  return { id, size, stamp, isSynced: false, pins: 0, opens: 0, distance: undefined, fd, checking: undefined }
}

function openObject(path: string): number {
  return openSync(path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK | constants.O_NOCTTY)
}
