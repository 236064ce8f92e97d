/**
 * A daemon under somebody else's control: what bobbin-fuse starts instead of ours, in a mount namespace of its
 * own (hostile.ts). It asks for mounts, unmounts and indexes by paths that it must not have, while a thread
 * exchanges folders with links, and after each answer it looks into the mount table:
 *
 * - a mount of bobbin-fuse lies only on the empty folders below the roots, never over or inside another mount;
 * - every mount that somebody else has made is still there;
 * - bobbin-fuse answers, and lives.
 *
 * The same seed asks for the same things in the same order; what the thread exchanges in between is up to the
 * scheduler. Ends with 0, or with 1 and one line of JSON that says what was broken, after which frames.
 */
import { execFileSync } from 'node:child_process'
import { mkdirSync, renameSync, symlinkSync, writeFileSync } from 'node:fs'
import { Socket } from 'node:net'
import { join } from 'node:path'
import { isMainThread, Worker, workerData } from 'node:worker_threads'
import {
  encodeFrame,
  FrameReader,
  type FromFuse,
  LINK_OPEN_MODES,
  LINK_VERSION,
  type LinkMount,
  type ToFuse,
} from '../../daemon/mount/link-frames.js'
import { type MountedAt, readMountTable } from '../../daemon/mount/mount-table.js'
import type { ObjectId } from '../../daemon/store/index.js'

export interface HostileOptions {
  readonly folder: string
  readonly index: string
  readonly manifest: string
  readonly seed: number
  readonly seconds: number
  /** `exchange`: one mountpoint, mounted and unmounted below a folder that is exchanged all the time. */
  readonly play: 'all' | 'exchange'
}

const ANSWER_MS = 60_000
/** At once; more would only make the table longer. */
const MOUNTS_MAX = 12
const KEPT_FRAMES = 30
const LONG = 'n'.repeat(255)

/** Puts a link to `outside` in the place of the folder `swap`, and back. */
function exchangeForEver(roots: string): void {
  const at = (name: string) => join(roots, name)
  for (;;) {
    renameSync(at('swap'), at('swap-folder'))
    renameSync(at('swap-link'), at('swap'))
    renameSync(at('swap'), at('swap-link'))
    renameSync(at('swap-folder'), at('swap'))
  }
}

/** mulberry32: small, and the same everywhere. */
function randomFrom(seed: number): () => number {
  let state = seed >>> 0
  return () => {
    state = (state + 0x6d2b79f5) >>> 0
    let mixed = Math.imul(state ^ (state >>> 15), state | 1)
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61)
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32
  }
}

class Hostile {
  readonly #roots: string
  readonly #random: () => number
  readonly #allowed: ReadonlySet<string>
  readonly #link: Socket
  readonly #answers = new Map<number, (frame: FromFuse) => void>()
  readonly #frames: string[] = []
  /** Ids of mounts that are, or were, ours. */
  readonly #ours: number[] = []
  /** Ids of mounts of somebody else's that have to stay. */
  #foreign: ReadonlySet<number> = new Set()
  /** What was mounted before, all over the machine; it may go meanwhile. */
  readonly #others = new Set(readMountTable().map(keyOf))
  #stacked: string | undefined
  #request = 0
  readonly counts = { mounted: 0, refused: 0, unmounted: 0, kept: 0, upgrades: 0 }

  constructor(private readonly options: HostileOptions) {
    this.#roots = join(options.folder, 'roots')
    this.#random = randomFrom(options.seed)
    const empty = ['e1', 'e2', 'a/b/c', 'swap/m', 'swap-folder/m', `deep/${LONG}`, 'foreign/inside']
    this.#allowed = new Set([...empty.map(name => join(this.#roots, name)), join(options.folder, 'roots-2/e')])
    this.#build()
    this.#link = new Socket({ fd: Number(process.env.BOBBIN_LINK_FD), readable: true, writable: true })
    const reader = new FrameReader()
    this.#link.on('data', chunk => {
      for (const frame of reader.push(chunk)) if ('request' in frame) this.#answers.get(frame.request)?.(frame)
    })
    this.#link.on('error', () => {})
    this.#link.on('close', () => this.#fail('bobbin-fuse has gone'))
    this.send({ kind: 'hello', version: LINK_VERSION, pid: process.pid, program: 'hostile' })
  }

  /** The folders, and mounts that are somebody else's: they have to outlive all of this. */
  #build(): void {
    const { folder } = this.options
    for (const name of ['e1', 'e2', 'a/b/c', 'swap/m', `deep/${LONG}`, 'full', 'foreign', 'served'])
      mkdirSync(join(this.#roots, name), { recursive: true })
    writeFileSync(join(this.#roots, 'full/file'), '')
    symlinkSync(join(folder, 'outside'), join(this.#roots, 'swap-link'))
    symlinkSync(join(folder, 'outside'), join(this.#roots, 'link'))
    mkdirSync(join(folder, 'roots-2/e'), { recursive: true })
    for (const name of ['m', 'empty']) mkdirSync(join(folder, 'outside', name), { recursive: true })
    for (const path of [join(folder, 'outside/m'), join(this.#roots, 'foreign')]) tmpfs(path)
    mkdirSync(join(this.#roots, 'foreign/inside'))
    execFileSync('mkfifo', [join(folder, 'fifo')])
    const isBelow = ({ mountpoint }: MountedAt) => mountpoint.startsWith(`${folder}/`)
    this.#foreign = new Set(
      readMountTable()
        .filter(isBelow)
        .map(({ id }) => id),
    )
  }

  send(frame: ToFuse): void {
    this.#frames.push(JSON.stringify(frame, (_, value) => (typeof value === 'bigint' ? String(value) : value)))
    if (this.#frames.length > KEPT_FRAMES) this.#frames.shift()
    this.#link.write(encodeFrame(frame))
  }

  async #ask(make: (request: number) => ToFuse): Promise<FromFuse> {
    const request = ++this.#request
    const answer = new Promise<FromFuse>(resolve => this.#answers.set(request, resolve))
    this.send(make(request))
    const late = setTimeout(() => this.#fail('bobbin-fuse does not answer'), ANSWER_MS)
    const frame = await answer
    clearTimeout(late)
    this.#answers.delete(request)
    return frame
  }

  #fail(what: string): never {
    giveUp({ what, frames: this.#frames })
  }

  /** Looks whether everything is as it must be. */
  check(): void {
    const table = readMountTable()
    const ours = table.filter(mounted => mounted.type === 'fuse.bobbin' && !this.#others.has(keyOf(mounted)))
    const places = new Set<string>()
    for (const { mountpoint } of ours) {
      if (!this.#allowed.has(mountpoint)) this.#fail(`a mount on ${mountpoint}`)
      // A folder that is exchanged has two names, and is one place.
      const place = mountpoint.replace('swap-folder', 'swap')
      if (places.has(place)) this.#fail(`two mounts on ${mountpoint}`)
      places.add(place)
    }
    if (ours.length !== this.#ours.length)
      this.#fail(`${ours.length} mounts where ${this.#ours.length} were made and are not unmounted`)
    const ids = new Set(table.map(({ id }) => id))
    for (const id of this.#foreign) if (!ids.has(id)) this.#fail(`mount ${id}, which is somebody else's, is gone`)
  }

  async mount(mountpoint: string, wishes: Partial<LinkMount> = {}): Promise<void> {
    const answer = await this.#ask(request => ({
      ...{ kind: 'mount', request, uid: 0, gid: 0, umask: 0, allowOther: false, openMode: 'auto', timeNs: 0n },
      listAttributes: false,
      ...{ source: 'bobbin:test/small', registry: 's3://bucket', package: 'test/small', message: undefined, note: '' },
      caller: 0,
      ...{ index: this.options.index, manifest: this.options.manifest, mountpoint },
      ...wishes,
    }))
    if (answer.kind === 'mounted') {
      this.counts.mounted++
      this.#ours.push(answer.mount)
    } else {
      this.counts.refused++
    }
    this.check()
  }

  async unmount(mount: number, isForced: boolean): Promise<void> {
    const answer = await this.#ask(request => ({ kind: 'unmount', request, mount, isForced }))
    if (answer.kind === 'unmountDone' && answer.outcome === 'done') {
      this.counts.unmounted++
      const at = this.#ours.indexOf(mount)
      if (at >= 0) this.#ours.splice(at, 1)
    } else {
      this.counts.kept++
    }
    this.check()
  }

  async exchange(): Promise<void> {
    await this.mount(join(this.#roots, 'swap/m'))
    for (const mount of [...this.#ours]) await this.unmount(mount, this.#random() < 0.5)
  }

  #pick<T>(values: readonly T[]): T {
    return values[Math.floor(this.#random() * values.length)]!
  }

  /** Most of them are wrong, each in one way of its own. (Relative ones and NULs are refused with their frame.) */
  #mountpoint(): string {
    const { folder } = this.options
    const good = this.#pick([...this.#allowed])
    const chance = this.#random()
    if (chance < 0.4) return good
    if (chance < 0.5) {
      const names = good.split('/')
      names.splice(1 + Math.floor(this.#random() * names.length), 0, this.#pick(['..', '.', '', 'e1/..', LONG]))
      return names.join('/')
    }
    return this.#pick(
      [
        ...['full', 'foreign', 'foreign/inside', 'a', 'a/b', 'link/empty', 'link/m', 'swap-link/m', 'missing', ''],
        ...[
          '../outside/empty',
          '../roots/e1',
          'e1/d',
          'swap',
          'deep',
          `${LONG}n`,
          'full/file',
          'e1/../../outside/empty',
        ],
      ]
        .map(name => `${this.#roots}/${name}`)
        .concat(
          ...['/', '/proc/self/cwd', '/etc', '/proc/self/fd/3', `${this.#roots}-2`, `${folder}/outside/empty`],
          ...[`/proc/self/root${good}`, `${'/'.repeat(5000)}`, `${this.#roots}/${'x/'.repeat(3000)}x`],
        ),
    )
  }

  #file(good: string): string {
    const { folder } = this.options
    if (this.#random() < 0.8) return good
    return this.#pick([
      ...['/dev/null', '/dev/zero', '/proc/self/mem', '/nowhere', '', 'relative', folder, join(folder, 'fifo')],
      ...[join(this.#roots, 'full/file'), this.options.manifest, this.options.index, join(this.#roots, 'e1/d/f')],
    ])
  }

  /** Somebody with the right to puts a mount on one of ours, or takes it away. */
  #stack(): void {
    if (this.#stacked !== undefined) {
      execFileSync('umount', [this.#stacked])
      this.#foreign = new Set([...this.#foreign].filter(id => readMountTable().some(mounted => mounted.id === id)))
      this.#stacked = undefined
      return
    }
    const ours = readMountTable().filter(
      mounted =>
        mounted.type === 'fuse.bobbin' && this.#allowed.has(mounted.mountpoint) && !mounted.mountpoint.includes('swap'),
    )
    if (ours.length === 0) return
    this.#stacked = this.#pick(ours).mountpoint
    tmpfs(this.#stacked)
    this.#foreign = new Set([...this.#foreign, (readMountTable().at(-1) as MountedAt).id])
  }

  async anything(): Promise<void> {
    const { index, manifest } = this.options
    const chance = this.#random()
    const mount =
      this.#random() < 0.9 && this.#ours.length > 0 ? this.#pick(this.#ours) : Math.floor(this.#random() * 99)
    const request = Math.floor(this.#random() * 50)
    if (chance < 0.45 && this.#ours.length < MOUNTS_MAX) {
      return await this.mount(this.#mountpoint(), {
        uid: this.#pick([0, 1000, 2 ** 32 - 1]),
        umask: this.#pick([0, 0o777]),
        allowOther: this.#random() < 0.5,
        openMode: this.#pick(LINK_OPEN_MODES),
        source: this.#pick(['bobbin:test/small', '', 'tmpfs', 'a b\n\\,fd=0', 's'.repeat(300), LONG]),
        index: this.#file(index),
        manifest: this.#file(manifest),
      })
    }
    if (chance < 0.85) return await this.unmount(mount, this.#random() < 0.5)
    if (chance < 0.9) this.send({ kind: 'index', mount, index: this.#file(index), manifest: this.#file(manifest) })
    else if (chance < 0.93) this.send({ kind: 'failed', request, errno: 1 + Math.floor(this.#random() * 500) })
    else if (chance < 0.95) this.send({ kind: 'logged', mount, count: Math.floor(this.#random() * 1e6) })
    else if (chance < 0.97) await this.#ask(asked => ({ kind: 'evictAsk', request: asked, ids: [SOME_OBJECT] }))
    else if (chance < 0.98) this.#stack()
    else if (chance < 0.99) await this.#ask(asked => ({ kind: 'statsAsk', request: asked }))
    else if (this.#random() < 0.3) {
      // It has to know what it was, and where it may mount, after it replaced itself.
      process.kill(process.ppid, 'SIGUSR2')
      this.counts.upgrades++
    }
    this.check()
  }

  async end(): Promise<void> {
    if (this.#stacked !== undefined) this.#stack()
    for (const mount of [...this.#ours]) await this.unmount(mount, true)
    process.stdout.write(`${JSON.stringify(this.counts)}\n`)
    this.#link.removeAllListeners('close')
    this.#link.end(encodeFrame({ kind: 'stop' }), () => process.exit(0))
  }
}

/** bobbin-fuse would start another one, so it goes first. */
function giveUp(report: object): never {
  process.stdout.write(`${JSON.stringify(report)}\n`)
  process.kill(process.ppid, 'SIGKILL')
  process.exit(1)
}

const SOME_OBJECT = `sha256/${'ab'.repeat(32)}` as ObjectId

function keyOf({ id, mountpoint }: MountedAt): string {
  return `${id} ${mountpoint}`
}

function tmpfs(path: string): void {
  execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=64k', 'foreign', path])
}

async function main(options: HostileOptions): Promise<void> {
  process.on('uncaughtException', error => giveUp({ what: error.stack }))
  const hostile = new Hostile(options)
  const exchanger = new Worker(new URL(import.meta.url), { workerData: join(options.folder, 'roots') })
  const play = options.play === 'exchange' ? () => hostile.exchange() : () => hostile.anything()
  for (const until = Date.now() + options.seconds * 1000; Date.now() < until; ) await play()
  await exchanger.terminate()
  await hostile.end()
}

if (isMainThread) await main(JSON.parse(process.argv[2]!) as HostileOptions)
else exchangeForEver(workerData as string)
