/** Results: printed, and kept in bench/results/ with machine and command line; partial ones are only printed. */
import { mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { repository } from '../test/support/parts.js'
import { machine, median } from './measure.js'

export interface Series {
  readonly what: string
  readonly seconds: readonly number[]
  readonly peakMiB?: readonly number[]
}

export interface Goal {
  readonly what: string
  readonly value: number
  /** `at least` or `at most` this. */
  readonly sense: '>=' | '<='
  readonly goal: number
}

export interface Table {
  readonly columns: readonly string[]
  readonly rows: readonly (readonly string[])[]
}

/** Rounds are interleaved: each runs every contender once, in a random order. */
export async function interleave(rounds: number, contenders: readonly (() => Promise<unknown>)[]): Promise<void> {
  for (let round = 0; round < rounds; round++) for (const run of shuffled(contenders)) await run()
}

export function shuffled<T>(values: readonly T[]): T[] {
  const keyed = values.map(value => ({ value, key: Math.random() }))
  return keyed.sort((a, b) => a.key - b.key).map(({ value }) => value)
}

export function number(value: number): string {
  if (!Number.isFinite(value)) return '?'
  return value >= 1000
    ? Math.round(value).toLocaleString('en')
    : value >= 100
      ? value.toFixed(0)
      : value >= 1
        ? value.toFixed(2)
        : value.toFixed(3)
}

/** Median and range. */
export function range(values: readonly number[]): string {
  return `${number(median(values))} (${number(Math.min(...values))} to ${number(Math.max(...values))})`
}

export function secondsTable(series: readonly Series[]): Table {
  return {
    columns: ['what', 'seconds, median (range)', 'peak MiB'],
    rows: series.map(({ what, seconds, peakMiB }) => [what, range(seconds), peakMiB ? number(median(peakMiB)) : '']),
  }
}

export function writeReport(
  name: string,
  notes: readonly string[],
  tables: readonly Table[],
  goals: readonly Goal[],
  { isKept = true }: { readonly isKept?: boolean } = {},
): void {
  const row = (cells: readonly string[]) => `| ${cells.join(' | ')} |`
  const lines = [
    `# ${name}`,
    '',
    `date: ${new Date().toISOString().slice(0, 10)}`,
    ...machine(),
    `command: npm run bench -- ${process.argv.slice(2).join(' ')}`,
    ...notes,
    '',
    ...tables.flatMap(({ columns, rows }) => [row(columns), row(columns.map(() => '---')), ...rows.map(row), '']),
    '| goal | measured | | |',
    '| --- | --- | --- | --- |',
    ...goals.map(({ what, value, sense, goal }) => {
      const isMet = sense === '>=' ? value >= goal : value <= goal
      return `| ${what} | ${number(value)} | ${sense} ${number(goal)} | ${isMet ? 'met' : '**missed**'} |`
    }),
    '',
  ]
  const text = lines.join('\n')
  process.stdout.write(`${text}\n`)
  if (!isKept) return
  const folder = join(repository, 'bench/results')
  mkdirSync(folder, { recursive: true })
  writeFileSync(join(folder, `${name}.md`), text)
}
