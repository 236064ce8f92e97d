/**
 * Whether stderr is systemd's journal, and how severe a line is for it: `journalctl -p err` finds what begins with `<3>`
 * (sd-daemon(3)); the journal takes the number away. Processes with another stderr inherit the variable, too, so the
 * descriptor is compared, as systemd.exec(5) has it.
 */
import { fstatSync } from 'node:fs'

const STDERR = 2

export function isJournal(fd = STDERR, environment: NodeJS.ProcessEnv = process.env): boolean {
  const named = environment.JOURNAL_STREAM
  if (!named) return false
  try {
    const { dev, ino } = fstatSync(fd, { bigint: true })
    return named === `${dev}:${ino}`
  } catch {
    return false
  }
}

/** syslog's number for a level of pino's: critical, error, warning, information, debugging. */
export function priorityOf(level: number): number {
  if (level >= 60) return 2
  if (level >= 50) return 3
  if (level >= 40) return 4
  return level >= 30 ? 6 : 7
}
