/** The daemon's process: its options are the one argument, as JSON (control/launch.ts writes it). */
import './model/library-words.js'
import { type DaemonOptions, runDaemon } from './control/daemon.js'
import { isJournal, priorityOf } from './control/journal.js'
import { escapeJson, hasCode, settleHome } from './model/index.js'

/** pino's. */
const FATAL = 60

settleHome()

try {
  await runDaemon(JSON.parse(process.argv[2] ?? '') as DaemonOptions)
  process.exit(0)
} catch (error) {
  process.stderr.write(
    `${isJournal() ? `<${priorityOf(FATAL)}>` : ''}${escapeJson(JSON.stringify({ level: FATAL, msg: error instanceof Error ? error.message : String(error) }))}\n`,
  )
  process.exit(hasCode(error, 'CACHE_IN_USE') ? 11 : 1)
}
