/** Starts the daemon in the background, for a command that needs one. */
import { spawn } from 'node:child_process'
import { accessSync, closeSync, constants, mkdirSync, openSync, readFileSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { BobbinError, localError, systemCode } from '../model/index.js'
import { daemonCommand } from './bobbin-fuse.js'
import { type DaemonClient, findDaemon } from './client.js'
import type { DaemonOptions } from './daemon.js'
import { cutLog, daemonLogPath, LOG_BYTES_MAX } from './own-log.js'
import { KEPT } from './surroundings.js'

const START_MS = 15_000
const POLL_MS = 50

/**
 * The daemon of the cache, started when none runs. Two who start one at once get the same: the second
 * process finds the cache taken and ends. Throws DAEMON_UNAVAILABLE with the end of the log.
 */
export async function ensureDaemon(options: DaemonOptions): Promise<{ client: DaemonClient; isStarted: boolean }> {
  const running = findDaemon(options.cacheDir)
  if (running !== undefined && (await running.isAlive())) return { client: running, isStarted: false }
  if (!mayStartIn(options.cacheDir)) {
    throw new BobbinError(
      'DAEMON_UNAVAILABLE',
      `no daemon answers for ${options.cacheDir}, and only the owner of that folder can start one: start it as that user (bobbin.service does), or name a cache of your own with --cache`,
    )
  }
  const logPath = daemonLogPath(options.cacheDir)
  const log = openLog(options.cacheDir, logPath)
  const { argv } = daemonCommand(options)
  // It belongs to no run, whoever has started it (cli/run/leftovers.ts), and has a log of its own.
  const { BOBBIN_RUN: _, BOBBIN_LOG: __, [KEPT]: ___, ...env } = process.env
  const child = spawn(argv[0]!, argv.slice(1), { detached: true, cwd: '/', stdio: ['ignore', 'ignore', log], env })
  closeSync(log)
  child.unref()
  let exitCode: number | null | undefined
  child.once('exit', code => {
    exitCode = code
  })
  for (const deadline = Date.now() + START_MS; Date.now() < deadline; await sleep(POLL_MS)) {
    const client = findDaemon(options.cacheDir)
    if (client !== undefined && (await client.isAlive())) {
      // Somebody else's was faster. Ours might be so slow that it would find the cache free again.
      if (client.pid !== child.pid) child.kill()
      return { client, isStarted: client.pid === child.pid }
    }
    // Ended because another one has the cache: that one will answer soon.
    if (exitCode !== undefined && client === undefined) break
  }
  throw new BobbinError('DAEMON_UNAVAILABLE', `the daemon did not start; the end of ${logPath}:${logTail(logPath)}`)
}

/** False: the folder is another user's. */
function mayStartIn(cacheDir: string): boolean {
  try {
    accessSync(cacheDir, constants.W_OK)
    return true
  } catch (error) {
    return !['EACCES', 'EROFS'].includes(systemCode(error) ?? '')
  }
}

function openLog(cacheDir: string, path: string): number {
  try {
    mkdirSync(cacheDir, { recursive: true, mode: 0o750 })
    const log = openSync(path, 'a', 0o640)
    // Not renamed: a bobbin-fuse that goes on would write to the file of before without end.
    cutLog(log, path, LOG_BYTES_MAX)
    return log
  } catch (error) {
    throw localError(`write ${path}`, error)
  }
}

function logTail(path: string): string {
  try {
    return readFileSync(path, 'utf8')
      .trimEnd()
      .split('\n')
      .slice(-5)
      .map(line => `\n  ${line}`)
      .join('')
  } catch {
    return '\n  (no log)'
  }
}
