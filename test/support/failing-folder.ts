/**
 * A file system that fails like a network's: it shows a folder through FUSE, and while a control file says so, every call on it is
 * answered with that error number. A process of its own: `node failing-folder.js FOLDER MOUNTPOINT CONTROL`.
 */
import { type ChildProcess, spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import {
  closeSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { createRequire } from 'node:module'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

export interface FailingFolder {
  readonly path: string
  /** `errno`: a positive number. */
  fail(errno: number): void
  heal(): void
}

/** Shows `folder` at `path`. */
export async function failingFolder(
  t: { teardown(end: () => unknown): void },
  folder: string,
  path: string,
): Promise<FailingFolder> {
  mkdirSync(path)
  const control = `${path}.control`
  const child: ChildProcess = spawn(process.execPath, [fileURLToPath(import.meta.url), folder, path, control], {
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  t.teardown(() => {
    spawnSync('umount', ['-l', path])
    child.kill('SIGKILL')
  })
  await once(child.stdout!, 'data')
  return {
    path,
    fail: errno => writeFileSync(control, String(errno)),
    heal: () => rmSync(control, { force: true }),
  }
}

function serve(folder: string, mountpoint: string, control: string): void {
  const Fuse = createRequire(import.meta.url)('fuse-native')
  const failure = (): number => {
    try {
      return -Number(readFileSync(control, 'utf8'))
    } catch {
      return 0
    }
  }
  const codeOf = (error: unknown) => (error as { errno?: number }).errno ?? -5
  /** The answer of `act`, or the error. */
  const answer = (callback: (code: number, value?: unknown) => void, act: () => unknown) => {
    const failed = failure()
    if (failed !== 0) return callback(failed)
    try {
      callback(0, act())
    } catch (error) {
      callback(codeOf(error))
    }
  }
  type Callback = (code: number, value?: unknown) => void
  const fuse = new Fuse(mountpoint, {
    readdir: (path: string, callback: Callback) => answer(callback, () => readdirSync(join(folder, path))),
    getattr: (path: string, callback: Callback) => answer(callback, () => statSync(join(folder, path))),
    open: (path: string, _flags: number, callback: Callback) =>
      answer(callback, () => openSync(join(folder, path), 'r')),
    read: (_path: string, fd: number, buffer: Buffer, length: number, at: number, callback: (code: number) => void) => {
      const failed = failure()
      callback(failed !== 0 ? failed : readSync(fd, buffer, 0, length, at))
    },
    release: (_path: string, fd: number, callback: Callback) => {
      closeSync(fd)
      callback(0)
    },
  })
  fuse.mount((error: unknown) => {
    if (error) throw error
    process.stdout.write('ready\n')
  })
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const [folder, mountpoint, control] = process.argv.slice(2) as [string, string, string]
  serve(folder, mountpoint, control)
}
