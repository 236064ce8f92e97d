/** JSON lines on stderr, which is a log file, the journal, or somebody's terminal: so no word in them is a control character. */
import { type DestinationStream, type Logger, pino } from 'pino'
import { escapeJson } from '../model/index.js'

export function createLog(): Logger {
  const stderr = pino.destination({ fd: 2, sync: true })
  const escaping: DestinationStream = { write: line => void stderr.write(escapeJson(line)) }
  return pino({ base: { pid: process.pid } }, escaping)
}
