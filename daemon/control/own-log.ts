/**
 * Keeps the log that this process and others append to from growing without end: what it holds goes to `<path>.1`, and it is cut.
 *
 * The writers have inherited a descriptor and cannot be told to open another file, so the file stays and its content goes. A
 * line that is written between the copy and the cut is lost. Only a file that is opened for appending is cut: a writer with a
 * place of its own would go on there. Where stderr goes anywhere else (the journal, a terminal, a file of the user's own), nothing is done.
 */
import { copyFileSync, fstatSync, ftruncateSync, readFileSync, renameSync, rmSync, statSync } from 'node:fs'
import { join } from 'node:path'

/** Of the log, and of what it held before. */
export const LOG_BYTES_MAX = 10 * 2 ** 20
const LOOK_MS = 10_000
const STDERR = 2
/** open(2), as /proc shows it. */
const O_APPEND = 0o2000

/** Where the daemon and bobbin-fuse write, when nobody has started them in the foreground. */
export function daemonLogPath(cacheDir: string): string {
  return join(cacheDir, 'daemon.log')
}

/** Looks at once, and from time to time. `path`: where stderr goes when it is our log. */
export function boundLog(path: string): { close(): void } {
  const look = () => cutLog(STDERR, path, LOG_BYTES_MAX)
  look()
  const timer = setInterval(look, LOOK_MS).unref()
  return { close: () => clearInterval(timer) }
}

export function cutLog(fd: number, path: string, bytesMax: number): void {
  try {
    const [written, named] = [fstatSync(fd), statSync(path)]
    const isOurs = written.isFile() && written.dev === named.dev && written.ino === named.ino && isAppended(fd)
    if (!isOurs || written.size <= bytesMax) return
    try {
      copyFileSync(path, `${path}.1.new`)
      renameSync(`${path}.1.new`, `${path}.1`)
    } catch {
      // The disk is full, perhaps of this log: that it becomes smaller matters more.
      rmSync(`${path}.1.new`, { force: true })
    }
    ftruncateSync(fd, 0)
  } catch {
    // There is no such file, or it cannot be cut. Nobody is the worse for it now.
  }
}

function isAppended(fd: number): boolean {
  const flags = /^flags:\s*([0-7]+)$/m.exec(readFileSync(`/proc/self/fdinfo/${fd}`, 'utf8'))?.[1]
  return flags !== undefined && (Number.parseInt(flags, 8) & O_APPEND) !== 0
}
