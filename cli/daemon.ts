import { spawn } from 'node:child_process'
import { daemonCommand } from '../daemon/control/bobbin-fuse.js'
import { runDaemon } from '../daemon/control/daemon.js'
import { BobbinError } from '../daemon/model/index.js'
import { requireCache } from './context.js'
import { type CommonFlags, readSettings } from './settings.js'

/**
 * In the foreground, until SIGTERM or Ctrl-C; what it has to say goes to stderr as JSON lines. Where
 * bobbin-fuse has started us, we are its daemon; else it is started, and we wait for its end.
 */
export async function daemon(flags: CommonFlags): Promise<void> {
  const settings = readSettings(flags)
  requireCache(settings.cacheDir)
  if (process.env.BOBBIN_LINK_FD !== undefined) return runDaemon(settings)
  const { argv } = daemonCommand(settings)
  if (argv[0] === process.execPath) return runDaemon(settings)
  const child = spawn(argv[0]!, argv.slice(1), { stdio: 'inherit' })
  for (const signal of ['SIGTERM', 'SIGINT', 'SIGHUP', 'SIGUSR2'] as const) process.on(signal, () => child.kill(signal))
  process.exitCode = await new Promise<number>((resolve, reject) => {
    child.once('error', error => reject(new BobbinError('LOCAL_IO', `cannot start ${argv[0]}: ${error.message}`)))
    child.once('exit', code => resolve(code ?? 1))
  })
}
