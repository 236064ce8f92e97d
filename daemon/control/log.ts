/**
 * JSON lines on stderr, which is a log file, the journal, or somebody's terminal: so no word in them is a control character, and
 * the journal is told how severe each is.
 */
import { type Logger, pino } from 'pino'
import { escapeJson } from '../model/index.js'
import { hearLibraries } from '../model/library-words.js'
import { isJournal, priorityOf } from './journal.js'

export function createLog(): Logger {
  const stderr = pino.destination({ fd: 2, sync: true })
  const isPrefixed = isJournal()
  // pino sets lastLevel on a stream that asks for metadata.
  const escaping = {
    [Symbol.for('pino.metadata')]: true,
    lastLevel: 0,
    write(line: string): void {
      stderr.write(`${isPrefixed ? `<${priorityOf(this.lastLevel)}>` : ''}${escapeJson(line)}`)
    },
  }
  const log = pino({ base: { pid: process.pid } }, escaping)
  hearLibraries(words => log.warn({ words }, 'a library or Node.js warns'))
  return log
}
