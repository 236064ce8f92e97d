/** Sizes as `20GiB`, durations as `30s`: how people write them and how we print them. */
import { BobbinError } from './errors.js'

const BYTES_BY_UNIT: Readonly<Record<string, number>> = {
  '': 1,
  b: 1,
  k: 2 ** 10,
  kib: 2 ** 10,
  kb: 1e3,
  m: 2 ** 20,
  mib: 2 ** 20,
  mb: 1e6,
  g: 2 ** 30,
  gib: 2 ** 30,
  gb: 1e9,
  t: 2 ** 40,
  tib: 2 ** 40,
  tb: 1e12,
}

const MS_BY_UNIT: Readonly<Record<string, number>> = { ms: 1, s: 1e3, m: 60e3, h: 3600e3, d: 86_400e3 }

/** Bytes. Throws INVALID_ARGUMENT. */
export function parseBytes(text: string): number {
  const match = /^(\d+(?:\.\d+)?)\s*([a-z]*)$/i.exec(text.trim())
  const unit = match ? BYTES_BY_UNIT[match[2]!.toLowerCase()] : undefined
  if (!match || unit === undefined) {
    throw new BobbinError('INVALID_ARGUMENT', `not a size: ${JSON.stringify(text)} (write it like 20GiB or 500MB)`)
  }
  return Math.floor(Number(match[1]) * unit)
}

/** Milliseconds. Throws INVALID_ARGUMENT. */
export function parseDurationMs(text: string): number {
  const match = /^(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)$/i.exec(text.trim())
  if (!match) {
    throw new BobbinError('INVALID_ARGUMENT', `not a duration: ${JSON.stringify(text)} (write it like 30s or 5m)`)
  }
  return Math.round(Number(match[1]) * MS_BY_UNIT[match[2]!.toLowerCase()]!)
}

export function formatBytes(bytes: number): string {
  if (bytes < 1024) return `${bytes} B`
  let value = bytes
  let unit = -1
  while (value >= 1024 && unit < 4) {
    value /= 1024
    unit++
  }
  return `${value.toFixed(value < 10 ? 2 : value < 100 ? 1 : 0)} ${['KiB', 'MiB', 'GiB', 'TiB', 'PiB'][unit]}`
}

export function formatDuration(ms: number): string {
  if (ms < 1000) return `${Math.round(ms)} ms`
  if (ms < 60e3) return `${(ms / 1000).toFixed(1)} s`
  return `${Math.floor(ms / 60e3)} min ${Math.round((ms % 60e3) / 1000)} s`
}
