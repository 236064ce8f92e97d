/** A whole access log, for tests whose logs are small. */
import { type AccessLogFacts, type AccessRecord, readAccessLog } from '../../daemon/mount/access-log.js'

export function wholeAccessLog(path: string): {
  readonly facts: AccessLogFacts
  readonly records: readonly AccessRecord[]
} {
  const log = readAccessLog(path)
  if (log === undefined) throw new Error(`${path} has no first line`)
  return { facts: log.facts, records: [...log.records] }
}
