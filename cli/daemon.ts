import { runDaemon } from '../daemon/control/daemon.js'
import { type CommonFlags, readSettings } from './settings.js'

/** In the foreground, until SIGTERM or Ctrl-C; what it has to say goes to stderr as JSON lines. */
export async function daemon(flags: CommonFlags): Promise<void> {
  await runDaemon(readSettings(flags))
}
