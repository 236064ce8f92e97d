/**
 * The promises of SEMANTICS.md whose tests did not run: reads tap's logs, prints a line per such promise, and fails
 * if there is one. A test that ran is a line `ok 3 - title (S4, S5) # time=12ms`; a skipped test has no time.
 *
 *   node .ci/promises.mjs LOG…
 */
import { readFileSync } from 'node:fs'

const semantics = readFileSync(new URL('../SEMANTICS.md', import.meta.url), 'utf8')
const promises = [...semantics.matchAll(/^- \*\*(S\d+)\*\*/gm)].map(([, number]) => number)

const shown = new Set()
for (const path of process.argv.slice(2)) {
  for (const [, title] of readFileSync(path, 'utf8').matchAll(/^ *ok \d+ - (.*) # time=[\d.]+m?s(?: \{)?$/gm)) {
    for (const [, numbers] of title.matchAll(/\((S\d+(?:, S\d+)*)\)/g))
      for (const number of numbers.split(', ')) shown.add(number)
  }
}

const missing = promises.filter(number => !shown.has(number))
for (const number of missing) console.log(`${number} of SEMANTICS.md: no test with this number in its title ran`)
process.exitCode = missing.length > 0 || promises.length === 0 ? 1 : 0
