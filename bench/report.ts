/** Results: printed, and kept in bench/results/ with machine and command line. */
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

/** Rounds are interleaved: each runs every contender once, in an order of its own. */
export async function interleave(rounds: number, contenders: readonly (() => Promise<void>)[]): Promise<void> {
  for (let round = 0; round < rounds; round++) {
    const order = contenders.map((run, i) => ({ run, key: (i * 7 + round * 3) % contenders.length }))
    for (const { run } of order.sort((a, b) => a.key - b.key)) await run()
  }
}

export function writeReport(
  name: string,
  notes: readonly string[],
  series: readonly Series[],
  goals: readonly Goal[],
): void {
  const number = (value: number) => (value >= 100 ? value.toFixed(0) : value >= 1 ? value.toFixed(2) : value.toFixed(3))
  const range = (values: readonly number[]) =>
    `${number(median(values))} (${number(Math.min(...values))} to ${number(Math.max(...values))})`
  const lines = [
    `# ${name}`,
    '',
    `date: ${new Date().toISOString().slice(0, 10)}`,
    ...machine(),
    `command: npm run bench -- ${process.argv.slice(2).join(' ')}`,
    ...notes,
    '',
    '| what | seconds, median (range) | peak MiB |',
    '| --- | --- | --- |',
    ...series.map(
      ({ what, seconds, peakMiB }) => `| ${what} | ${range(seconds)} | ${peakMiB ? number(median(peakMiB)) : ''} |`,
    ),
    '',
    '| ratio | measured | goal | |',
    '| --- | --- | --- | --- |',
    ...goals.map(({ what, value, sense, goal }) => {
      const isMet = sense === '>=' ? value >= goal : value <= goal
      return `| ${what} | ${number(value)} | ${sense} ${goal} | ${isMet ? 'met' : '**missed**'} |`
    }),
    '',
  ]
  const text = lines.join('\n')
  process.stdout.write(`${text}\n`)
  const folder = join(repository, 'bench/results')
  mkdirSync(folder, { recursive: true })
  writeFileSync(join(folder, `${name}.md`), text)
}
