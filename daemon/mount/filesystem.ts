/**
 * One package as a read-only filesystem: paths in, attributes and bytes out. It knows the package and
 * where objects come from, and nothing of FUSE or of any binding.
 *
 * An open file is a pinned, verified object. Everything else is read from the package index, and an
 * index that turns out damaged is rebuilt once and asked again.
 */
import { read as readCallback } from 'node:fs'
import { promisify } from 'node:util'
import { type IndexNode, type PackageIndex, ROOT_INO } from '../index/package-index.js'
import { BobbinError, type Entry, formatPhysicalKey, hasCode, type Log, localError } from '../model/index.js'
import { formatManifestHash } from '../model/object-hash.js'
import { atPresentPlace } from '../package/moved-objects.js'
import type { OpenedPackage } from '../package/package-cache.js'
import { formatRegistry } from '../registry/reference.js'
import type { MountOptions, ObjectProvider, ProvidedObject } from './transport.js'

export interface Attributes {
  readonly ino: number
  /** Type and permission bits, as st_mode. */
  readonly mode: number
  readonly uid: number
  readonly gid: number
  /** Bytes. */
  readonly size: number
  /** Of mtime, ctime and atime alike. Unix milliseconds. */
  readonly timeMs: number
  /** Of 512 bytes. */
  readonly blocks: number
}

export interface NamedAttributes {
  readonly name: string
  readonly attributes: Attributes
}

export interface Statistics {
  readonly entries: number
  readonly bytes: number
  /** What the cache could take. */
  readonly freeBytes: number
}

const DIRECTORY_MODE = 0o040555
const FILE_MODE = 0o100444
const WRITE_BITS = 0o222
/** XATTR_SIZE_MAX of Linux. */
export const ATTRIBUTE_BYTES_MAX = 65_536
const ATTRIBUTE_PREFIX = 'user.quilt.'
const FILE_ATTRIBUTES = ['hash', 'hash_type', 'physical_key', 'meta', 'cached', 'verified'] as const
const ROOT_ATTRIBUTES = ['top_hash', 'package', 'registry', 'meta', 'message'] as const
const FOLDER_ATTRIBUTES = ['meta'] as const

const read = promisify(readCallback)

interface OpenFile {
  readonly object: ProvidedObject
  readonly size: number
  readonly key: string
}

export interface FilesystemRequest {
  readonly opened: OpenedPackage
  readonly objects: ObjectProvider
  readonly options: MountOptions
  readonly log: Log
}

export class PackageFilesystem {
  readonly #files = new Map<number, OpenFile>()
  #nextHandle = 1
  #isClosed = false

  constructor(private readonly request: FilesystemRequest) {}

  /** Throws ENTRY_NOT_FOUND, NOT_A_DIRECTORY. */
  async getattr(path: string): Promise<Attributes> {
    return this.#withIndex(index => this.#attributes(this.#find(index, path)))
  }

  /** Children with their attributes, in the byte order of their names. Throws NOT_A_DIRECTORY. */
  async readdir(path: string): Promise<NamedAttributes[]> {
    return this.#withIndex(index => {
      const node = this.#find(index, path)
      if (node.kind !== 'directory') throw new BobbinError('NOT_A_DIRECTORY', `${path} is a file`)
      return Array.from(index.children(node.ino), child => ({ name: child.name, attributes: this.#attributes(child) }))
    })
  }

  /** Waits for the object; returns a handle for `read` and `release`. Throws IS_A_DIRECTORY, and what the provider throws. */
  async open(path: string): Promise<number> {
    const entry = await this.#entry(path)
    let object: ProvidedObject
    try {
      const { objects, opened } = this.request
      object = await atPresentPlace(opened, entry, present => objects.open(present, { label: present.key }))
    } catch (error) {
      if (!hasCode(error, 'INTERRUPTED')) {
        const code = error instanceof BobbinError ? error.code : 'INTERNAL'
        this.request.log.error({ key: entry.key, code, error: String(error) }, 'a file could not be opened')
      }
      throw error
    }
    if (this.#isClosed) {
      await object.close()
      throw this.#closedError()
    }
    const handle = this.#freeHandle()
    this.#files.set(handle, { object, size: entry.size, key: entry.key })
    return handle
  }

  /** Handles are 32 bits wide on the way through the binding. */
  #freeHandle(): number {
    while (this.#files.has(this.#nextHandle)) this.#nextHandle = (this.#nextHandle % 0x7fff_ffff) + 1
    const handle = this.#nextHandle
    this.#nextHandle = (handle % 0x7fff_ffff) + 1
    return handle
  }

  /** Fills `into` from byte `position`; returns how many bytes: fewer than asked only at the end of the file. */
  async read(handle: number, into: Uint8Array, position: number): Promise<number> {
    const file = this.#files.get(handle)
    if (file === undefined) throw new BobbinError('INTERNAL', `no open file ${handle}`)
    const length = Math.min(into.length, Math.max(0, file.size - position))
    for (let done = 0; done < length; ) {
      let bytesRead: number
      try {
        ;({ bytesRead } = await read(file.object.fd, into, done, length - done, position + done))
      } catch (error) {
        throw localError(`read ${file.object.path}`, error)
      }
      if (bytesRead === 0) {
        this.request.log.error(
          { key: file.key, path: file.object.path },
          'a cached object was cut short while it was open',
        )
        throw new BobbinError('OBJECT_CORRUPT', `the cached object of ${file.key} was cut short`)
      }
      done += bytesRead
    }
    return length
  }

  async release(handle: number): Promise<void> {
    const file = this.#files.get(handle)
    this.#files.delete(handle)
    await file?.object.close()
  }

  /**
   * Full names; by default none. A program that copies a file with its attributes copies all that are named, and values can be
   * larger than another filesystem takes, change, or be wrong of the copy once somebody edits it. A program that knows a name
   * gets its value either way. A value that the kernel cannot carry is never named.
   */
  async listxattr(path: string): Promise<string[]> {
    return this.#withIndex(index => {
      const node = this.#find(index, path)
      if (!this.request.options.listAttributes) return []
      const names = node.kind === 'file' ? FILE_ATTRIBUTES : node.ino === ROOT_INO ? ROOT_ATTRIBUTES : FOLDER_ATTRIBUTES
      const isCarried = (name: string) => {
        const value = this.#attribute(index, node, name)
        return value !== undefined && Buffer.byteLength(value) <= ATTRIBUTE_BYTES_MAX
      }
      return names.filter(isCarried).map(name => ATTRIBUTE_PREFIX + name)
    })
  }

  /** Throws NO_ATTRIBUTE, TOO_LARGE. */
  async getxattr(path: string, name: string): Promise<Buffer> {
    const value = await this.#withIndex(index => {
      const node = this.#find(index, path)
      if (!name.startsWith(ATTRIBUTE_PREFIX)) return undefined
      return this.#attribute(index, node, name.slice(ATTRIBUTE_PREFIX.length))
    })
    if (value === undefined) throw new BobbinError('NO_ATTRIBUTE', `${path} has no attribute ${name}`)
    const bytes = Buffer.from(value)
    if (bytes.length > ATTRIBUTE_BYTES_MAX) {
      throw new BobbinError(
        'TOO_LARGE',
        `${name} of ${path} has ${bytes.length} bytes, the kernel carries at most ${ATTRIBUTE_BYTES_MAX}`,
      )
    }
    return bytes
  }

  statfs(): Statistics {
    const { entries, directories, bytes } = this.request.opened.index.facts
    let freeBytes = 0
    try {
      freeBytes = this.request.objects.roomBytes()
    } catch (error) {
      this.request.log.warn({ error: String(error) }, 'cannot say what the cache could take')
    }
    return { entries: entries + directories, bytes, freeBytes }
  }

  /**
   * For when nobody can ask any more. The kernel does not tell of the last close in a mount that was
   * detached, so what is open is closed here.
   */
  async close(): Promise<void> {
    this.#isClosed = true
    for (const handle of [...this.#files.keys()]) await this.release(handle)
  }

  #closedError(): BobbinError {
    return new BobbinError('NOT_MOUNTED', `${this.request.opened.name} was unmounted`)
  }

  #attribute(index: PackageIndex, node: IndexNode, name: string): string | undefined {
    if (name === 'meta') return index.metadata(node.ino)
    if (node.ino === ROOT_INO) return this.#rootAttribute(index, name)
    if (node.kind === 'directory') return undefined
    const entry = index.entry(node.ino, '')
    switch (name) {
      case 'hash':
        return formatManifestHash(entry.hash)
      case 'hash_type':
        return entry.hash.type
      case 'physical_key':
        return formatPhysicalKey(entry.physicalKey)
      case 'cached':
        return String(this.request.objects.stateOf(entry) !== 'absent')
      case 'verified':
        return String(this.request.objects.stateOf(entry) === 'checked')
      default:
        return undefined
    }
  }

  #rootAttribute(index: PackageIndex, name: string): string | undefined {
    const { opened } = this.request
    switch (name) {
      case 'top_hash':
        return opened.topHash
      case 'package':
        return opened.name
      case 'registry':
        return formatRegistry(opened.registry)
      case 'message':
        return index.message
      default:
        return undefined
    }
  }

  #attributes(node: IndexNode): Attributes {
    const { options, opened } = this.request
    const size = node.kind === 'file' ? node.size : 4096
    return {
      ino: node.ino,
      mode:
        ((node.kind === 'file' ? FILE_MODE : DIRECTORY_MODE) | (options.showsWriteBits ? WRITE_BITS : 0)) &
        ~options.umask,
      uid: options.uid,
      gid: options.gid,
      size,
      timeMs: opened.timestampMs,
      blocks: node.kind === 'file' ? Math.ceil(size / 512) : 0,
    }
  }

  #entry(path: string): Promise<Entry> {
    return this.#withIndex(index => {
      const node = this.#find(index, path)
      if (node.kind === 'directory') throw new BobbinError('IS_A_DIRECTORY', `${path} is a directory`)
      return index.entry(node.ino, path.slice(1))
    })
  }

  /** `path` is absolute within the mount. */
  #find(index: PackageIndex, path: string): IndexNode {
    const node = index.find(path.slice(1))
    if (node === undefined) throw new BobbinError('ENTRY_NOT_FOUND', `no ${path} in this package`)
    return node
  }

  async #withIndex<T>(use: (index: PackageIndex) => T): Promise<T> {
    const { opened, log } = this.request
    if (this.#isClosed) throw this.#closedError()
    try {
      return use(opened.index)
    } catch (error) {
      if (!hasCode(error, 'INDEX_DAMAGED')) throw error
      log.warn({ index: opened.indexPath, error: error.message }, 'the package index is damaged, it is made again')
    }
    await opened.rebuild()
    return use(opened.index)
  }
}
