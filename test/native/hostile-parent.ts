/**
 * Unmounts as root, in a mount namespace of its own (hostile.ts), what a daemon that was killed has left, while a
 * thread exchanges a folder above it with a link: to a folder in which somebody else has mounted something. That
 * has to stay.
 *
 * Ends with 0 and a line of JSON that says what happened, or with 1 and what was broken.
 */
import { execFileSync, spawnSync } from 'node:child_process'
import { existsSync, lstatSync, mkdirSync, openSync, renameSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { Worker } from 'node:worker_threads'
import { Mounts } from '../../daemon/control/mounts.js'
import { hasCode } from '../../daemon/model/index.js'
import { mountAt, readMountTable } from '../../daemon/mount/mount-table.js'
import { transportNamed } from '../../daemon/mount/transports.js'
import { unmountPath } from '../../daemon/mount/unmount.js'
import { createSource } from '../../daemon/source/index.js'
import { rememberingLog } from '../support/objects.js'

export interface ParentOptions {
  readonly folder: string
  readonly seconds: number
  /** A bobbin-fuse. */
  readonly program: string
}

/** O_PATH, which Node.js does not name: holds a mount without asking it anything. */
const O_PATH = 0o10000000

const { folder, seconds, program } = JSON.parse(process.argv[2]!) as ParentOptions
const roots = join(folder, 'roots')
const mountpoint = join(roots, 'swap/m')
const foreign = join(folder, 'outside/m')
const source = createSource({ ioTimeoutMs: 1000, offline: true })

function tmpfs(path: string): void {
  execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=64k', 'foreign', path])
}

/** A mount of ours whose server is gone: the shell had the only descriptor. Returns its id. */
function mountDead(path: string): number {
  const options = 'ro,rootmode=40000,user_id=0,group_id=0,subtype=bobbin'
  const script = `exec 3<>/dev/fuse && mount -i -t fuse -o fd=3,${options} bobbin:dead "$1"`
  execFileSync('sh', ['-c', script, 'sh', path])
  return mountAt(path)!.id
}

function unmount(path: string, id: number, ...more: string[]): number | null {
  return spawnSync(program, ['--unmount', path, '--mount-id', String(id), ...more]).status
}

/** Every way in which `--unmount` ends, while nobody exchanges anything. */
function endings() {
  const at = (name: string) => join(roots, name)
  for (const name of ['dead/inside', 'else']) mkdirSync(at(name), { recursive: true })
  const id = mountDead(at('dead'))
  tmpfs(at('else'))
  symlinkSync(roots, at('to-roots'))
  const found = {
    noNumber: spawnSync(program, ['--unmount', at('dead')]).status,
    dots: unmount(`${roots}/../roots/dead`, id),
    link: unmount(at('to-roots/dead'), id),
    notThere: unmount(at('swap'), id),
    somethingElse: unmount(at('else'), id),
    notOurs: unmount(at('else'), mountAt(at('else'))!.id),
  }
  tmpfs(at('dead'))
  const covered = unmount(at('dead'), id, '--lazy')
  execFileSync('umount', [at('dead')])
  openSync(at('dead'), O_PATH)
  const inUse = unmount(at('dead'), id)
  const lazy = unmount(at('dead'), id, '--lazy')
  return { ...found, covered, inUse, lazy, gone: unmount(at('dead'), id) }
}

/** Wherever the thread that exchanges was stopped. */
function putBack(): void {
  const [swap, swapFolder] = [join(roots, 'swap'), join(roots, 'swap-folder')]
  if (!existsSync(swapFolder)) return
  if (lstatSync(swap, { throwIfNoEntry: false })) renameSync(swap, join(roots, 'swap-link'))
  renameSync(swapFolder, swap)
}

/** As a daemon does at its start. */
async function clearDead(): Promise<void> {
  writeFileSync(join(folder, 'cache/mounts'), `${JSON.stringify(mountpoint)}\n`)
  await new Mounts({
    cacheDir: join(folder, 'cache'),
    source,
    isOffline: () => true,
    transport: transportNamed('fuse-native', undefined),
    openMode: 'auto',
    // No mount is gone on with, so nothing is read.
    objects: { open: () => Promise.reject(new Error('nothing is read')), stateOf: () => 'absent', roomBytes: () => 0 },
    log: rememberingLog(),
  }).begin()
}

async function main(): Promise<void> {
  for (const path of [join(roots, 'swap/m'), foreign]) mkdirSync(path, { recursive: true })
  symlinkSync(join(folder, 'outside'), join(roots, 'swap-link'))
  const ended = endings()
  tmpfs(foreign)
  const foreignId = mountAt(foreign)!.id
  const hasMount = (id: number) => readMountTable().some(mounted => mounted.id === id)
  const counts = { cleared: 0, refused: 0, tries: 0 }
  for (const until = Date.now() + seconds * 1000; Date.now() < until || counts.cleared === 0; ) {
    const id = mountDead(mountpoint)
    const exchanger = new Worker(new URL('./hostile-daemon.js', import.meta.url), { workerData: roots })
    while (!existsSync(join(roots, 'swap-folder'))) await sleep(1)
    while (hasMount(id)) {
      const way = counts.tries++ % 3
      try {
        if (way === 0) await clearDead()
        else await unmountPath(mountpoint, { isForced: way === 1, program })
      } catch (error) {
        if (!hasCode(error, 'LOCAL_IO', 'ALREADY_MOUNTED')) throw error
        counts.refused++
      }
      if (!hasMount(foreignId)) {
        process.stdout.write(`a mount that is somebody else's is gone after ${counts.tries} tries\n`)
        process.exit(1)
      }
    }
    counts.cleared++
    await exchanger.terminate()
    putBack()
  }
  process.stdout.write(`${JSON.stringify({ ended, counts })}\n`)
}

await main()
