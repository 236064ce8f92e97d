/**
 * Our end of the link to bobbin-fuse (native/link/frames.md): a socket that we have inherited. It is
 * the only thing that holds us: when it closes, bobbin-fuse has gone, and so do we.
 */
import { Socket } from 'node:net'
import { BobbinError, type Log } from '../model/index.js'
import type { ObjectId } from '../store/index.js'
import {
  type EvictOutcome,
  encodeFrame,
  FrameReader,
  type FromFuse,
  LINK_VERSION,
  type LinkedMount,
  type LinkMount,
  type LinkStats,
  OBJECTS_PER_FRAME,
  type ToFuse,
  type VerifiedObject,
} from './link-frames.js'

/** What bobbin-fuse asks and tells, for the transport. */
export interface LinkHandlers {
  ensure(request: number, mount: number, ino: number): void
  cancel(request: number): void
  access(mount: number, first: number, records: Buffer): void
  closed(mount: number): void
  ended(mount: number): void
  indexDamaged(mount: number, reason: string): void
  asked(caller: number, uid: number, gid: number, line: string): void
}

type Answer = Extract<FromFuse, { kind: 'mounted' | 'mountFailed' | 'unmountDone' | 'evictDone' | 'stats' }>
type Told = Exclude<FromFuse, Answer | { kind: 'hello' | 'mounts' }>

const HELLO_MS = 30_000

export class Link {
  readonly #socket: Socket
  readonly #log: Log
  readonly #reader = new FrameReader()
  readonly #answers = new Map<number, { resolve(answer: Answer): void; reject(error: unknown): void }>()
  /** What came before anybody listened. */
  #early: Told[] = []
  #handlers: LinkHandlers | undefined
  #lastRequest = 0
  #onMounts: ((mounts: readonly LinkedMount[]) => void) | undefined
  #isEnding = false
  /** Resolves when bobbin-fuse has gone. */
  readonly closed: Promise<void>

  private constructor(fd: number, log: Log) {
    this.#log = log
    this.#socket = new Socket({ fd, readable: true, writable: true })
    this.closed = new Promise(resolve => {
      this.#socket.once('close', () => {
        const error = new BobbinError('DAEMON_UNAVAILABLE', 'bobbin-fuse has gone')
        for (const { reject } of this.#answers.values()) reject(error)
        this.#answers.clear()
        resolve()
      })
    })
    // A reset says no more than the close that follows.
    this.#socket.on('error', () => {})
    this.#socket.on('data', chunk => this.#receive(chunk))
  }

  /** Says hello; resolves to the link and the mounts that outlived an earlier daemon. */
  static async open(
    fd: number,
    { version, log }: { readonly version: string; readonly log: Log },
  ): Promise<{ link: Link; mounts: readonly LinkedMount[] }> {
    const link = new Link(fd, log)
    const mounts = new Promise<readonly LinkedMount[]>((resolve, reject) => {
      link.#onMounts = resolve
      const timer = setTimeout(
        () => reject(new BobbinError('DAEMON_UNAVAILABLE', 'bobbin-fuse did not say hello')),
        HELLO_MS,
      )
      timer.unref()
      link.closed.then(() => reject(new BobbinError('DAEMON_UNAVAILABLE', 'bobbin-fuse has gone')))
    })
    link.send({ kind: 'hello', version: LINK_VERSION, pid: process.pid, program: `bobbin ${version}` })
    return { link, mounts: await mounts }
  }

  /** From now on; what came before is handed on first. */
  listen(handlers: LinkHandlers): void {
    this.#handlers = handlers
    const early = this.#early
    this.#early = []
    for (const frame of early) this.#take(frame)
  }

  send(frame: ToFuse): void {
    if (!this.#socket.destroyed) this.#socket.write(encodeFrame(frame))
  }

  async mount(mount: LinkMount): Promise<Extract<Answer, { kind: 'mounted' }>> {
    const answer = await this.#ask(request => ({ kind: 'mount', request, ...mount }))
    if (answer.kind === 'mounted') return answer
    if (answer.kind !== 'mountFailed') throw unexpected(answer)
    const code = { unavailable: 'FUSE_UNAVAILABLE', mountpoint: 'MOUNTPOINT_UNUSABLE', other: 'LOCAL_IO' } as const
    throw new BobbinError(code[answer.cause], answer.message)
  }

  async unmount(mount: number, isForced: boolean): Promise<Extract<Answer, { kind: 'unmountDone' }>> {
    const answer = await this.#ask(request => ({ kind: 'unmount', request, mount, isForced }))
    if (answer.kind !== 'unmountDone') throw unexpected(answer)
    return answer
  }

  /** Asks bobbin-fuse to let go of objects; each outcome stands for the id in its place. */
  async letGo(ids: readonly ObjectId[]): Promise<readonly EvictOutcome[]> {
    const answer = await this.#ask(request => ({ kind: 'evictAsk', request, ids }))
    if (answer.kind !== 'evictDone' || answer.outcomes.length !== ids.length) throw unexpected(answer)
    return answer.outcomes
  }

  async stats(): Promise<LinkStats> {
    const answer = await this.#ask(request => ({ kind: 'statsAsk', request }))
    if (answer.kind !== 'stats') throw unexpected(answer)
    return answer
  }

  /** Tells what is verified. In parts, so that others have their turn meanwhile. */
  async tellKnown(objects: Iterable<VerifiedObject>): Promise<void> {
    let part: VerifiedObject[] = []
    for (const object of objects) {
      part.push(object)
      if (part.length < OBJECTS_PER_FRAME) continue
      this.send({ kind: 'known', objects: part })
      part = []
      await new Promise(setImmediate)
    }
    if (part.length > 0) this.send({ kind: 'known', objects: part })
  }

  /** Tells bobbin-fuse to end with us. Resolves when that was sent. */
  async stop(): Promise<void> {
    this.#isEnding = true
    if (this.#socket.destroyed) return
    await new Promise<void>(resolve => {
      this.#socket.write(encodeFrame({ kind: 'stop' }), () => resolve())
    })
  }

  #ask(frameOf: (request: number) => ToFuse): Promise<Answer> {
    const request = ++this.#lastRequest
    return new Promise((resolve, reject) => {
      if (this.#socket.destroyed) return reject(new BobbinError('DAEMON_UNAVAILABLE', 'bobbin-fuse has gone'))
      this.#answers.set(request, { resolve, reject })
      this.send(frameOf(request))
    })
  }

  #receive(chunk: Buffer): void {
    try {
      for (const frame of this.#reader.push(chunk)) this.#take(frame)
    } catch (error) {
      if (this.#isEnding) return
      // Of another version, or a bug: nothing can be said to each other.
      this.#log.error({ error: error instanceof Error ? error.stack : String(error) }, 'the link is broken')
      this.#socket.destroy()
    }
  }

  #take(frame: FromFuse): void {
    switch (frame.kind) {
      case 'hello':
        if (frame.version === LINK_VERSION) break
        throw new BobbinError('INTERNAL', `${frame.program} speaks version ${frame.version} of the link`)
      case 'mounts':
        this.#onMounts?.(frame.mounts)
        break
      case 'mounted':
      case 'mountFailed':
      case 'unmountDone':
      case 'evictDone':
      case 'stats':
        this.#answers.get(frame.request)?.resolve(frame)
        this.#answers.delete(frame.request)
        break
      default:
        if (this.#handlers === undefined) this.#early.push(frame)
        else tell(this.#handlers, frame)
    }
  }
}

function tell(handlers: LinkHandlers, frame: Told): void {
  switch (frame.kind) {
    case 'ensure':
      handlers.ensure(frame.request, frame.mount, frame.ino)
      break
    case 'cancel':
      handlers.cancel(frame.request)
      break
    case 'access':
      handlers.access(frame.mount, frame.first, frame.records)
      break
    case 'closed':
      handlers.closed(frame.mount)
      break
    case 'ended':
      handlers.ended(frame.mount)
      break
    case 'indexDamaged':
      handlers.indexDamaged(frame.mount, frame.reason)
      break
    case 'asked':
      handlers.asked(frame.caller, frame.uid, frame.gid, frame.line)
      break
    default:
      frame satisfies never
  }
}

function unexpected(answer: Answer): BobbinError {
  return new BobbinError('INTERNAL', `bobbin-fuse answered with ${answer.kind}`)
}
